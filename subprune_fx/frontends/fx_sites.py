"""Nodes of an fx graph whose arguments may spell sizes, and what is left of their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from subprune_fx.frontends.calls import Call
from subprune_fx.graph.labels import Labels, survivors
from subprune_fx.graph.step import Tree, leaves

Keep = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Site:
    """A node whose arguments may spell sizes.

    Attributes:
        node: The fx node.
        call: Its bound call.
        operands: Labels of its tensor operands; the sizes it spells are read off the first.
        after: Labels of its value.
        rest: Its arguments after the first, sizes evaluated.
        run: The op on labels, with constants changed.
        numbers: Inputs of the node that are no tensors.
        varying: Nodes whose value depends on the number of samples.
        number: What a node that is no tensor computes when only some labels survive.
    """

    node: fx.Node
    call: Call
    operands: tuple[Labels, ...]
    after: Tree
    rest: tuple[Any, ...]
    run: Callable[..., Tree]
    numbers: frozenset[fx.Node]
    varying: AbstractSet[fx.Node]
    number: Callable[[fx.Node, Keep], Any]

    @property
    def before(self) -> Labels:
        """Labels of the first operand."""
        return self.operands[0]


def survivor_shapes(tree: Tree, keep: Keep) -> list[list[int]]:
    """Shape of each tensor of a value when only the labels in `keep` survive."""
    return [
        [
            size if index is None else len(index)
            for size, index in zip(labels.shape, survivors(labels, keep), strict=True)
        ]
        for labels in leaves(tree)
    ]


def sizes_left(tree: Tree, keep: Keep) -> list[int]:
    """The same of the first tensor alone; most values have one."""
    return survivor_shapes(tree, keep)[0]


def alive_along(labels: Labels, keep: Keep) -> list[Keep | None]:
    """By dimension, which of its indices survive; None where all do."""
    picked = survivors(labels, keep)
    return [
        None if index is None else np.isin(np.arange(size), index)
        for size, index in zip(labels.shape, picked, strict=True)
    ]


def path_of(site: Site, name: str) -> tuple[str | int, ...]:
    """Where a named argument of a node is written."""
    if name in site.node.kwargs:
        return ("kwargs", name)
    return ("args", list(site.call.arguments).index(name))


def layer_path(site: Site, name: str, *index: int) -> tuple[str | int, ...]:
    """Where the layer whose weight a function reads keeps the size that the function is told."""
    weight = site.call.arguments.get("weight")
    layer, _, role = str(getattr(weight, "target", "")).rpartition(".")
    return (layer, name, *index) if layer and role == "weight" else ()
