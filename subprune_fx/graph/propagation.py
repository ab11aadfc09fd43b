"""The state of label propagation: which labels exist, which are equal, which are frozen and why."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from subprune_fx.graph.labels import Labels, compact, constant, expand
from subprune_fx.graph.step import Param, Tree


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run of labels was made.

    Attributes:
        start: First label.
        stop: One past the last.
        name: The layer or parameter they belong to.
        producer: True where a contraction makes these channels (False: a parameter met elementwise, padding).
    """

    start: int
    stop: int
    name: str
    producer: bool


@dataclasses.dataclass(frozen=True)
class Consumer:
    """A contraction that reads labelled channels: the place where dropped channels are folded into others.

    Attributes:
        name: Node name.
        module: Qualified name of its layer.
        weight: Name of its weight parameter.
        bias: Name of its bias parameter, or None.
        labels: Label of each input channel, shape (inputs,).
        outputs: Label of each output channel, shape (outputs,).
        axis: Channel dimension of input and output.
        groups: Of a grouped convolution.
    """

    name: str
    module: str
    weight: str
    bias: str | None
    labels: Labels
    outputs: Labels
    axis: int
    groups: int


class Propagation:
    """Collects what the rules find; `units` closes it.

    Attributes:
        values: Labels of every node's output, by node name.
        axes: Labels of contraction weights, by parameter name and dimension.
        elements: Labels of parameters met elementwise, by parameter name, shaped like them.
        consumers: In graph order.
        origins: Runs of labels in the order they were made.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tree] = {}
        self.axes: dict[str, dict[int, Labels]] = {}
        self.elements: dict[str, Labels] = {}
        self.consumers: list[Consumer] = []
        self.origins: list[Origin] = []
        self.count = 1
        self._pairs: list[tuple[Labels, Labels]] = []
        self._frozen: list[tuple[Labels, str]] = []

    def fresh(self, count: int, name: str, *, producer: bool) -> Labels:
        """`count` new labels, made at `name`."""
        start, self.count = self.count, self.count + count
        self.origins.append(Origin(start, self.count, name, producer))
        return np.arange(start, self.count, dtype=np.int64)

    def freeze(self, labels: Tree, reason: str) -> None:
        """Keep every channel of `labels`, because of `reason`."""
        found = np.unique(compact(labels))
        found = found[found > 0]
        if found.size:
            self._frozen.append((found, reason))

    def unify(self, left: Labels, right: Labels, reason: str) -> None:
        """The channels at each position of two arrays of one shape live or die together.

        Where one of them is label 0 the other is frozen, because of `reason`.
        """
        a, b = (array.ravel() for array in np.broadcast_arrays(compact(left), compact(right)))
        differ = a != b
        if not differ.any():
            return
        pairs = np.unique(np.stack([a[differ], b[differ]], axis=1), axis=0)
        zero = (pairs == 0).any(axis=1)
        self.freeze(pairs[zero], reason)
        both = pairs[~zero]
        self._pairs.append((both[:, 0], both[:, 1]))

    def of(self, operand: Tree | Param) -> Tree:
        """Labels of an operand; a parameter met for the first time gets one label per element."""
        if not isinstance(operand, Param):
            return operand
        known = self.axes.get(operand.name)
        if known is not None:
            for labels in known.values():
                self.freeze(labels, f"weight {operand.name} is also read as a plain tensor")
            return constant(operand.shape)
        if operand.name not in self.elements:
            size = int(np.prod(operand.shape))
            single = size == 1
            labels = np.zeros(1, np.int64) if single else self.fresh(size, operand.name, producer=False)
            self.elements[operand.name] = labels.reshape(operand.shape)
        return expand(self.elements[operand.name], operand.shape)

    def weight_axis(self, param: Param, axis: int, labels: Labels) -> Labels:
        """Say which labels a dimension of a weight carries; returns the labels it has had from its first use on."""
        if param.name in self.elements:
            self.freeze(labels, f"weight {param.name} is also read as a plain tensor")
            self.freeze(self.elements[param.name], f"weight {param.name} is also read by a layer")
        known = self.axes.setdefault(param.name, {})
        if axis in known:
            self.unify(known[axis], labels, f"weight {param.name} is shared with a layer whose channels are fixed")
            return known[axis]
        known[axis] = labels
        return labels

    def components(self) -> NDArray[np.int64]:
        """By label, the number of its set of equal labels, shape (count,)."""
        left = np.concatenate([a for a, _ in self._pairs] or [np.zeros(0, np.int64)])
        right = np.concatenate([b for _, b in self._pairs] or [np.zeros(0, np.int64)])
        graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def frozen(self) -> list[tuple[Labels, str]]:
        """Frozen labels with the reason, in the order they were found."""
        return self._frozen
