"""Einsums that are no products of two tensors.

Those of more are products of two, from left to right, as torch itself computes them; that of one is a sum and a
transpose.
"""

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


def single(equation: str) -> tuple[list[int], list[int]] | None:
    """Dimensions of the only tensor that are summed up, and the order of the others, counted without them.

    None where there are more, a letter comes twice, or dots.

    >>> single("nchw->hwn")
    ([1], [1, 2, 0])
    """
    given, arrow, out = equation.replace(" ", "").partition("->")
    if "," in given or "." in given or len(set(given)) < len(given):
        return None
    left = [letter for letter in given if letter in out] if arrow else list(given)
    order = [left.index(letter) for letter in (out if arrow else sorted(left))]
    return [d for d, letter in enumerate(given) if letter not in left], order
