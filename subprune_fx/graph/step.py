"""One node of a network as the dependency analysis sees it; front ends produce these, whatever their framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subprune_fx.graph.kinds import Row
from subprune_fx.graph.labels import Labels

Tree = Any  # a label array, or tuples, lists and dicts of them, shaped like the node's value


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter or buffer of the network, by its qualified name.

    Attributes:
        name: Qualified name; tied parameters share the first one.
        shape: Shape as it is read here.
        order: Where it is read transposed, the parameter's own dimension behind each dimension of `shape`.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None

    def own(self, axis: int) -> int:
        """The parameter's own dimension that is read as `axis`."""
        axis %= len(self.shape)
        return axis if self.order is None else self.order[axis]

    def permuted(self, dims: Sequence[int]) -> Param:
        """The same parameter read with its dimensions in another order."""
        order = tuple(self.own(axis) for axis in dims)
        shape = tuple(self.shape[axis] for axis in dims)
        return Param(self.name, shape, None if order == tuple(range(len(order))) else order)


@dataclasses.dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        name: The node's own name, unique in its graph.
        op: What to call the op in a message, e.g. `nn.LSTM`.
        row: Its row in the op table; None for an op without one.
        operands: Positional tensor operands: the labels of activations, or a `Param`.
        roles: Parameters by role (`weight`, `bias`, ...), those that are present.
        attrs: Further facts: `groups`, `dims`, `keepdim`, `pads`, `parts`, whichever the kind reads; `opaque`: a module
            that is not in the table has parameters, which another tracer may see.
        shape: Shape of the output; None where it is not one tensor.
        blank: Label-0 arrays shaped like the node's value.
        run: Runs the op on label arrays in place of its activation operands (moving ops only).
        module: Qualified name of the module that is called, or the node's name.
        source: For contractions with a weight, the name of the node whose value it contracts.
        offset: For those with a computed bias, the name of the node that computes it.
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
    source: str = ""
    offset: str | None = None


def shape_of(step: Step) -> tuple[int, ...]:
    """Shape of the one tensor that the step returns.

    Raises:
        ValueError: If it returns something else.
    """
    if step.shape is None:
        message = f"{step.name}: {step.op} has no single output"
        raise ValueError(message)
    return step.shape


def per_tensor(rule: Callable[[tuple[int, ...]], Labels], step: Step) -> Tree:
    """What `rule` makes of the shape of each tensor that the step returns (a maximum comes with where it was)."""
    if isinstance(step.blank, tuple):
        return tuple(rule(part.shape) for part in step.blank)
    return rule(step.blank.shape)


def leaves(tree: Tree) -> list[Labels]:
    """The label arrays of a tree, in order."""
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in leaves(item)]
    if isinstance(tree, Mapping):
        return [leaf for item in tree.values() for leaf in leaves(item)]
    return [] if tree is None else [tree]
