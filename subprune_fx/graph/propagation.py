"""The state of label propagation: which labels exist, which are equal, which are frozen and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from subprune_fx.graph.components import components
from subprune_fx.graph.labels import Labels, compact, constant, cut, distinct, expand, varying
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
        axis: Channel dimension of the output.
        data: Channel dimension of the input.
        groups: Of a grouped convolution.
        blocks: How many matrices of a stack read the same channels, each in rows of its own.
        shuffled: Whether its rows are in an order that the data decides: another network's are others.
        source: Name of the node whose value it reads.
        offset: Name of the node that computes its bias, or None.
    """

    name: str
    module: str
    weight: str
    bias: str | None
    labels: Labels
    outputs: Labels
    axis: int
    data: int
    groups: int
    source: str
    offset: str | None = None
    blocks: int = 1
    shuffled: bool = False


class Propagation:
    """Collects what the rules find; `channels.close` makes units and groups of it.

    Attributes:
        values: Labels of every node's output, by node name.
        axes: Labels of contraction weights, by parameter name and dimension.
        elements: Labels of parameters met elementwise, by parameter name, shaped like them.
        consumers: In graph order.
        origins: Runs of labels in the order they were made.
        statistics: By label of a statistic (a mean over channels, say), the channels it was taken over.
        scaled: Channels over which a statistic was taken, the elements of a parameter that it was multiplied with
            before it met them, and what did so.
        normalised: Channels over which some statistic is taken.
        depthwise: Channels that a depthwise convolution reads.
        reads: By parameter, the steps that read it.
        unknown: Steps that channels reach and that are not in the op table, or have weights not known to the graph.
        whole: Steps that stay whole whatever reaches them, by reason.
        follows: Channels that a layer's parameters follow one by one, and the layer, in graph order.
        slots: Channels that a grouped convolution reads and makes, whose groups all keep the same, by step.
        by_group: Steps with a grouped convolution that loses whole groups instead.
    """

    def __init__(self, by_group: frozenset[str] = frozenset()) -> None:
        self.values: dict[str, Tree] = {}
        self.axes: dict[str, dict[int, Labels]] = {}
        self.elements: dict[str, Labels] = {}
        self.consumers: list[Consumer] = []
        self.origins: list[Origin] = []
        self.statistics: dict[int, Labels] = {}
        self.scaled: list[tuple[Labels, Labels, str]] = []
        self.normalised: list[Labels] = []
        self.depthwise: list[Labels] = []
        self.reads: dict[str, set[str]] = {}
        self.unknown: list[str] = []
        self.whole: dict[str, list[str]] = {}
        self.follows: list[tuple[Labels, str]] = []
        self.slots: dict[str, tuple[Labels, Labels]] = {}
        self.by_group = by_group
        self.count = 1
        self._loose: list[tuple[int, int]] = []
        self._pairs: list[tuple[Labels, Labels]] = []
        self._unit = np.zeros(0, np.int64)
        self._frozen: list[tuple[Labels, str]] = []

    def fresh(self, count: int, name: str, *, producer: bool) -> Labels:
        """`count` new labels, made at `name`."""
        start, self.count = self.count, self.count + count
        self.origins.append(Origin(start, self.count, name, producer))
        return np.arange(start, self.count, dtype=np.int64)

    def follower(self, count: int, name: str) -> Labels:
        """`count` new labels that follow whatever they meet, or stay."""
        made = self.fresh(count, name, producer=False)
        self._loose.append((int(made[0]), int(made[-1]) + 1))
        return made

    def freeze(self, labels: Tree, reason: str) -> None:
        """Keep every channel of `labels`, because of `reason`."""
        found = distinct(compact(labels))
        found = found[found > 0]
        if found.size:
            self._frozen.append((found, reason))
        for label in self.statistics.keys() & set(found.tolist()):
            self._frozen.append((self.statistics[label], reason))

    def tie(self, labels: Labels, axes: Iterable[int], reason: str) -> Labels:
        """The channels along `axes` live or die together; the labels with those dimensions cut to stride 0."""
        tied = cut(labels, set(axes))
        self.unify(tied, labels, reason)
        return tied

    def statistic(self, channels: Labels, name: str) -> int:
        """The label of something computed from all of `channels`, to be used on those channels only."""
        found = distinct(compact(channels))
        found = found[found > 0]
        label = int(self.fresh(1, name, producer=False)[0])
        self.statistics[label] = found
        self.normalised.append(found)
        return label

    def loose(self, labels: Labels) -> bool:
        """Whether all the labels are those of elements of parameters: they follow whatever they meet, or stay."""
        found = distinct(compact(labels))
        found = found[found > 0]
        if not self._loose or not found.size:
            return not found.size
        starts, stops = np.asarray(self._loose).T
        position = np.searchsorted(starts, found, side="right") - 1
        return bool(((position >= 0) & (found < stops[position])).all())

    def unify(self, left: Labels, right: Labels, reason: str) -> None:
        """The channels at each position of two arrays of one shape live or die together.

        Where one of them is label 0 the other is frozen, because of `reason`.
        """
        a, b = (array.ravel() for array in np.broadcast_arrays(compact(left), compact(right)))
        differ = a != b
        if not differ.any():
            return
        pairs = np.stack(np.divmod(distinct(a[differ] * self.count + b[differ]), self.count), axis=1)
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
            labels = np.zeros(size, np.int64) if size < 2 else self.follower(size, operand.name)
            self.elements[operand.name] = labels.reshape([operand.shape[axis] for axis in _inverse(operand)])
        return expand(self.elements[operand.name].transpose(_order(operand)), operand.shape)

    def pin(self, param: Param, reason: str) -> None:
        """Keep a parameter whole: something reads it that cannot be followed."""
        for labels in (*self.axes.get(param.name, {}).values(), self.elements.get(param.name)):
            self.freeze(np.zeros(0, np.int64) if labels is None else labels, reason)
        whole = constant([param.shape[axis] for axis in _inverse(param)])
        self.elements.setdefault(param.name, whole)

    def weight_axis(self, param: Param, axis: int, labels: Labels) -> Labels:
        """Say which labels a dimension of a weight carries; returns the labels it has had from its first use on."""
        if param.name in self.elements:
            self.freeze(labels, f"weight {param.name} is also read as a plain tensor")
            self.freeze(self.elements[param.name], f"weight {param.name} is also read by a layer")
        axis = param.own(axis)
        known = self.axes.setdefault(param.name, {})
        if axis in known:
            self.unify(known[axis], labels, f"weight {param.name} is shared with a layer whose channels are fixed")
            return known[axis]
        known[axis] = labels
        return labels

    def known(self, labels: Labels) -> Labels:
        """The same labels with stride 0 along dimensions where they are equal as far as is known."""
        if len(varying(labels)) < 2:
            return labels
        unit = expand(self.components()[compact(labels)], labels.shape)
        return cut(labels, set(range(labels.ndim)).difference(varying(unit)))

    def components(self) -> NDArray[np.int64]:
        """By label, the number of its set of equal labels, shape (count,); not to be written to.

        Sets only grow: what has been found before is gone through again as sets, and not label by label.
        """
        known = self._unit
        if known.size < self.count:
            sets = int(known.max()) + 1 if known.size else 0
            self._unit = known = np.concatenate([known, np.arange(sets, sets + self.count - known.size)])
        if self._pairs:
            left, right = (np.concatenate(ends) for ends in zip(*self._pairs, strict=True))
            self._unit = components(known[left], known[right], int(known.max()) + 1)[known]
            self._pairs.clear()
        return self._unit

    def same(self, left: Labels, right: Labels) -> bool:
        """Whether two sets of labels are the same channels, as far as is known."""
        unit = self.components()
        a, b = (distinct(unit[labels[labels > 0]]) for labels in (compact(left), compact(right)))
        return np.array_equal(a, b)

    def misuse(self, channels: Labels, op: str) -> None:
        """Keep channels of which an op uses a statistic for something else than to normalise them."""
        self.freeze(channels, f"{op} uses a statistic over them for something else than to normalise them")

    def settle(self) -> None:
        """Freeze channels whose scaled statistic was scaled by something else than a parameter of theirs."""
        for channels, elements, op in self.scaled:
            if not self.same(channels, elements):
                self.misuse(channels, op)

    def frozen(self) -> list[tuple[Labels, str]]:
        """Frozen labels with the reason, in the order they were found."""
        return self._frozen


def _order(param: Param) -> tuple[int, ...]:
    return tuple(range(len(param.shape))) if param.order is None else param.order


def _inverse(param: Param) -> list[int]:
    """By dimension of the parameter itself, the dimension it is read as."""
    order = _order(param)
    return [order.index(axis) for axis in range(len(order))]
