"""Numbers of a node that stay what they were when channels go, since the weights were trained with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from subprune_fx.frontends.fx_sites import Keep, Site
from subprune_fx.graph.kinds import MOVING
from subprune_fx.plan import Constant


def held(site: Site, keep: Keep, changed: Sequence[Constant] = ()) -> tuple[Constant, ...]:
    """Numbers that enter the arithmetic, or say where to cut what stays whole, stay what they were.

    They were computed from a size that shrinks, but the weights were trained with the original number. One that
    also depends on the number of samples has no fixed value and is left to the graph.

    Args:
        site: The node.
        keep: By label, whether it survives.
        changed: What is known of it; the rest is looked at.
    """
    numbers, everything = site.numbers - site.varying, np.ones_like(keep)
    found = []
    for path, argument in _spelled(site.node) if numbers else ():
        known = any(path[: len(constant.path)] == constant.path for constant in changed)
        used: list[fx.Node] = []
        fx.node.map_arg(argument, used.append)
        if known or not used or not numbers.issuperset(used):
            continue
        old, new = (evaluated(site, argument, labels) for labels in (everything, keep))
        if isinstance(old, int | float | slice) and old != new:
            value = {"start": old.start, "stop": old.stop, "step": old.step} if isinstance(old, slice) else old
            found.append(Constant("node", site.node.name, path, value))
    return tuple(found)


def scaled(site: Site, keep: Keep) -> tuple[Constant, ...]:
    """Ops that move nothing: their numbers, such as a scale of `x.shape[1] ** -0.5`."""
    return () if site.call.row is None or site.call.row.kind in MOVING else held(site, keep)


def evaluated(site: Site, argument: Any, keep: Keep) -> Any:
    """An argument of a node when only the labels in `keep` survive."""
    return fx.node.map_arg(argument, lambda node: site.number(node, keep))


def _spelled(node: fx.Node) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Arguments and entries of lists, with where they are."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [
        *((("args", position), argument) for position, argument in enumerate(node.args)),
        *((("kwargs", name), argument) for name, argument in node.kwargs.items()),
    ]
    for path, argument in pending:
        if isinstance(argument, (tuple, list)):
            pending += [((*path, position), entry) for position, entry in enumerate(argument)]
        else:
            yield path, argument
