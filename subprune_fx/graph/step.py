"""One node of a network as the dependency analysis sees it; front ends produce these, whatever their framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subprune_fx.graph.labels import Labels
from subprune_fx.graph.optable import Row

Tree = Any  # a label array, or tuples, lists and dicts of them, shaped like the node's value


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter or buffer of the network, by its qualified name.

    Attributes:
        name: Qualified name; tied parameters share the first one.
        shape: Its shape.
    """

    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        name: The node's own name, unique in its graph.
        op: What to call the op in a message, e.g. `nn.LSTM`.
        row: Its row in the op table; None for an op without one.
        operands: Positional tensor operands: the labels of activations, or a `Param`.
        roles: Parameters by role (`weight`, `bias`, ...), those that are present.
        attrs: Further facts: `groups`, `dims`, `keepdim`, `pads`, `parts`, whichever the kind reads.
        shape: Shape of the output; None where it is not one tensor.
        blank: Label-0 arrays shaped like the node's value.
        run: Runs the op on label arrays in place of its activation operands (moving ops only).
        module: Qualified name of the module that is called, or the node's name.
    """

    name: str
    op: str
    row: Row | None
    operands: tuple[Tree | Param, ...]
    roles: Mapping[str, Param]
    attrs: Mapping[str, Any]
    shape: tuple[int, ...] | None
    blank: Tree
    run: Callable[[Sequence[Labels]], Tree]
    module: str


def leaves(tree: Tree) -> list[Labels]:
    """The label arrays of a tree, in order."""
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in leaves(item)]
    if isinstance(tree, Mapping):
        return [leaf for item in tree.values() for leaf in leaves(item)]
    return [] if tree is None else [tree]
