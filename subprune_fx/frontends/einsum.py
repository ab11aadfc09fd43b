"""Products of three tensors and more (einsum) as products of two, from left to right, as torch itself computes them."""

from __future__ import annotations


def pairs(equation: str) -> list[str]:
    """Equations of the products of two; none where there are no more, letters of the result are missing, or dots.

    >>> pairs("ab,bc,cd->ad")
    ['ab,bc->ac', 'ac,cd->ad']
    """
    given, arrow, out = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    if len(parts) < 3 or not arrow or "." in equation:
        return []
    found, read = [], parts[0]
    for number in range(1, len(parts)):
        later = set(out).union(*parts[number + 1 :])
        both = dict.fromkeys(read + parts[number])
        made = "".join(letter for letter in both if letter in later) if number < len(parts) - 1 else out
        found.append(f"{read},{parts[number]}->{made}")
        read = made
    return found
