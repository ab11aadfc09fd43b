"""Products of two tensors in an fx graph: which arguments are multiplied, and over which dimensions."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

from torch import fx

from subprune_fx.frontends.calls import Call

Letters = tuple[str, str, str]
"""Dimensions of both factors and of the result, one letter each; equal letters are equal dimensions."""


def factors(call: Call) -> tuple[Any, Any, Any]:
    """The two factors of a product and what is added to it, or None."""
    if call.name in ("einsum", "routed"):
        found = call.arguments.get("operands", ())
        return (found[0], found[1], None) if len(found) == 2 else (None, None, None)
    if call.name in ("addmm", "baddbmm"):
        first, second = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")
        return call.get(first), call.get(second), call.get("input")
    left, right = call.get("input"), call.get("other", call.get("mat2", call.get("b")))
    if call.name == "cdist":
        left, right = call.get("input", call.get("x1")), call.get("other", call.get("x2"))
    return (right, left, None) if call.name == "rmatmul" else (left, right, None)


def letters(call: Call, ranks: tuple[int, int]) -> Letters | None:
    """Its dimensions; None where it is no plain product of two tensors."""
    return _RULES.get(call.name, _matmul)(call, ranks)


def _matmul(_call: Call, ranks: tuple[int, int]) -> Letters | None:
    if min(ranks) < 2:
        return None
    batch = string.ascii_uppercase[: max(ranks) - 2]
    left, right = (batch[len(batch) - (rank - 2) :] for rank in ranks)
    return left + "lc", right + "cn", batch + "ln"


def _cdist(call: Call, ranks: tuple[int, int]) -> Letters | None:
    """All rows of one factor with all of the other; what is summed over is a power of their difference."""
    found = _matmul(call, ranks)
    return None if found is None else (found[0], found[1].removesuffix("cn") + "nc", found[2])


def _einsum(call: Call, ranks: tuple[int, int]) -> Letters | None:
    """An equation as torch spells it, ellipses written out."""
    equation = call.get("equation")
    if not isinstance(equation, str):
        return None
    given, arrow, out = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    if len(parts) != 2:
        return None
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks, strict=True) if "..." in part]
    dots = "".join(spare[: max(widths, default=0)])
    if not arrow:
        seen = "".join(parts).replace("...", "")
        out = "..." + "".join(letter for letter in sorted(set(seen)) if seen.count(letter) == 1)
    left, right = (
        part.replace("...", dots[len(dots) - (rank - len(part.replace("...", ""))) :] if "..." in part else "")
        for part, rank in zip(parts, ranks, strict=True)
    )
    out = out.replace("...", dots)
    unique = all(len(set(part)) == len(part) for part in (left, right, out))
    return (left, right, out) if unique else None


def _tensordot(call: Call, ranks: tuple[int, int]) -> Letters | None:
    """Over the last dimensions of one factor and the first of the other, or over those that are told."""
    aten = "dims_self" in call.arguments
    over = (call.get("dims_self"), call.get("dims_other")) if aten else call.get("dims", 2)
    if isinstance(over, int):
        over = (range(ranks[0] - over, ranks[0]), range(over))
    if not isinstance(over, (tuple, list)) or len(over) != 2:
        return None
    left, right = (list(string.ascii_letters[start : start + rank]) for start, rank in zip((0, 26), ranks, strict=True))
    for a, b in zip(*over, strict=True):
        right[b] = left[a]
    out = [letter for letter in (*left, *right) if not (letter in left and letter in right)]
    return "".join(left), "".join(right), "".join(out)


_RULES: dict[str, Callable[[Call, tuple[int, int]], Letters | None]] = {
    "einsum": _einsum,
    "routed": _einsum,
    "cdist": _cdist,
    "tensordot": _tensordot,
}


def is_scaled(call: Call) -> bool:
    """Whether the product or what is added to it is multiplied with a number, or taken of differences.

    Then no weight is what is read.
    """
    return call.name == "cdist" or any(call.get(name, 1) != 1 for name in ("alpha", "beta"))


def is_weight(matrix: str, other: str, out: str) -> bool:
    """Whether the dimensions of a factor are those of a weight: one that is summed over, one that is made.

    All others stay where they were: a layer is fitted row by row, to the rows that it gave.
    """
    summed = [letter for letter in matrix if letter in other and letter not in out]
    made = [letter for letter in matrix if letter in out and letter not in other]
    rows, left = ([letter for letter in part if letter not in matrix] for part in (other, out))
    return len(matrix) == 2 and len(summed) == 1 and len(made) == 1 and rows == left


def is_stack(matrix: str, other: str, out: str) -> bool:
    """Whether they are those of a stack of weights: one dimension more, that all three have, says which of them."""
    which = [letter for letter in matrix if letter in other and letter in out]
    if len(matrix) != 3 or len(which) != 1 or len(other) < 3:
        return False
    return is_weight(*(part.replace(which[0], "") for part in (matrix, other, out)))


def attention_operands(call: Call) -> list[fx.Node]:
    """Query, key, value and, if there is one, the mask."""
    found = (call.get(name) for name in ("query", "key", "value", "attn_mask"))
    return [node for node in found if isinstance(node, fx.Node)]
