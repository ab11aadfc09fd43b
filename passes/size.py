"""Size of the pruned network as a function of what each group keeps, without pruning anything."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.graph.labels import Labels, compact, varying, vector
from subprune_fx.graph.step import leaves
from subprune_fx.passes.flops import flops


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of the size: `times` the product of a tensor's dimensions.

    Attributes:
        times: What the product is multiplied by.
        shape: The dimensions now.
        labels: Of the dimensions that carry channels.
    """

    times: int
    shape: tuple[int, ...]
    labels: Mapping[int, Labels]


@dataclasses.dataclass(frozen=True)
class _Table:
    """How one group enters the terms.

    Attributes:
        terms: Those that it enters, (t,).
        counts: Of the indices of each dimension, how many belong to its first 0..n units, (t, rank, n + 1).
    """

    terms: NDArray[np.int64]
    counts: NDArray[np.int64]


class SizeModel:
    """What a network costs under any budget: parameters or multiply-adds.

    It is a sum of products of dimension sizes, and each size is a constant plus, per group, how many of its indices
    belong to the first k units of the group's nested order.

    Attributes:
        units: Units by group.
        total: Of the original network.
    """

    def __init__(
        self, network: FxNetwork, orders: Mapping[str, NDArray[np.int64]], terms: Sequence[Term], total: int
    ) -> None:
        """Tabulate.

        Args:
            network: The analysed network.
            orders: Nested order of each group, positions within the group; asked for only where units of a group have
                unequal shares of a term.
            terms: What is added up.
            total: What they are for the original network, without what compiling adds.
        """
        channels = network.channels
        self.total = total
        self.units = {group.name: len(group.units) for group in channels.groups}
        owner = np.full(channels.prunable.size, -1, dtype=np.int64)
        place = np.zeros(channels.prunable.size, dtype=np.int64)
        for number, group in enumerate(channels.groups):
            owner[group.units] = number
            place[group.units] = np.arange(len(group.units))
        self._owner, self._place, self._unit, self._orders = owner, place, channels.unit, orders
        self._names = list(self.units)
        self._times = np.array([term.times for term in terms], dtype=np.int64)
        self._fixed = np.ones((len(terms), max((len(term.shape) for term in terms), default=0)), dtype=np.int64)
        counted: dict[str, dict[int, dict[int, NDArray[np.int64]]]] = {name: {} for name in self._names}
        for row, term in enumerate(terms):
            self._fixed[row, : len(term.shape)] = term.shape
            for axis, labels in term.labels.items():
                for name, counts in self._counts(labels).items():
                    counted[name].setdefault(row, {})[axis] = counts
                    self._fixed[row, axis] -= counts[-1]
        self._tables = {name: self._table(self.units[name], by_row) for name, by_row in counted.items()}

    def _table(self, units: int, by_row: Mapping[int, Mapping[int, NDArray[np.int64]]]) -> _Table:
        counts = np.zeros((len(by_row), self._fixed.shape[1], units + 1), dtype=np.int64)
        for i, by_axis in enumerate(by_row.values()):
            for axis, count in by_axis.items():
                counts[i, axis] = count
        return _Table(np.fromiter(by_row, dtype=np.int64), counts)

    def _counts(self, labels: Labels) -> dict[str, NDArray[np.int64]]:
        """By group, how many of the positions belong to its first 0..n units."""
        units = self._unit[labels]
        found = {}
        for number in np.unique(self._owner[units]).tolist():
            if number < 0:
                continue
            name = self._names[number]
            places = self._place[units[self._owner[units] == number]]
            per_unit = np.bincount(places, minlength=self.units[name])
            if np.ptp(per_unit) > 0:
                per_unit = per_unit[self._orders[name]]
            found[name] = np.concatenate([[0], np.cumsum(per_unit)])
        return found

    def of(self, keep: Mapping[str, int]) -> int:
        """The size when each group keeps `keep[group]` units."""
        return self.sum(self.dimensions(keep))

    def dimensions(self, keep: Mapping[str, int]) -> NDArray[np.int64]:
        """The sizes of all terms' dimensions under a budget, (terms, rank)."""
        found = self._fixed.copy()
        for name, table in self._tables.items():
            found[table.terms] += table.counts[:, :, keep[name]]
        return found

    def sum(self, dimensions: NDArray[np.int64]) -> int:
        """The size of a network whose terms have these dimensions."""
        return int(self._times @ dimensions.prod(1))

    def widths(self, group: str) -> NDArray[np.int64]:
        """Of every dimension that depends on `group`, how many positions its first 0..n units make up, (.., n + 1)."""
        counts = self._tables[group].counts.reshape(-1, self.units[group] + 1)
        return counts[counts[:, -1] > 0]

    def stepped(self, steps: Mapping[str, NDArray[np.int64]]) -> SizeModel:
        """The same where a group that keeps k means the k-th of its `steps`, which are numbers of units."""
        found = copy.copy(self)
        found.units = {name: len(allowed) for name, allowed in steps.items()}
        found._tables = {  # noqa: SLF001 - its own
            name: dataclasses.replace(table, counts=table.counts[:, :, [0, *steps[name]]])
            for name, table in self._tables.items()
        }
        return found

    def neighbours(self, group: str) -> set[str]:
        """Groups that share a term with `group` (itself among them): their savings depend on what it keeps."""
        own = self._tables[group].terms
        return {name for name, table in self._tables.items() if np.isin(table.terms, own).any()} | {group}

    def savings(self, dimensions: NDArray[np.int64], group: str, now: int, fewer: Sequence[int]) -> NDArray[np.int64]:
        """What is saved when a group goes from `now` to `fewer` units and nothing else changes, for each.

        Args:
            dimensions: With `now` units, see `dimensions`.
            group: The group.
            now: Units that it keeps.
            fewer: Units that it might keep.
        """
        table = self._tables[group]
        before = dimensions[table.terms]
        after = before[:, :, None] + table.counts[:, :, fewer] - table.counts[:, :, now, None]
        saved: NDArray[np.int64] = self._times[table.terms] @ (before.prod(1)[:, None] - after.prod(1))
        return saved


def parameters(
    network: FxNetwork, orders: Mapping[str, NDArray[np.int64]], example: Inputs, *, intercepts: bool
) -> SizeModel:
    """Elements of all parameters.

    Args:
        network: The analysed network.
        orders: See `SizeModel`.
        example: Not looked at.
        intercepts: Count the biases that consumers without one will get.
    """
    del example
    named = dict(network.graph_module.named_parameters())
    terms = [Term(1, tuple(value.shape), _labels(network, name)) for name, value in named.items()]
    source = source_of(network.graph_module)
    added = source.biases if source is not None else frozenset()
    if intercepts:
        for name in network.channels.consumers:
            where = network.intercepts.get(name)
            if where is not None and (where.new or where.name in added):
                outputs = network.channels.contractions[name].outputs
                terms.append(Term(1, outputs.shape, {0: outputs}))
    return SizeModel(network, orders, terms, sum(value.numel() for value in named.values()))


def multiply_adds(
    network: FxNetwork, orders: Mapping[str, NDArray[np.int64]], example: Inputs, *, intercepts: bool
) -> SizeModel:
    """Multiply-adds of all contractions for one sample.

    Those of a weight are its elements times the positions it is applied at. A contraction without a weight of its
    own in the dependency graph (depthwise, two activations) counts in proportion to the channels of its output.

    Args:
        network: The analysed network.
        orders: See `SizeModel`.
        example: Inputs; the first dimension counts samples.
        intercepts: Not looked at: additions are not counted.
    """
    del intercepts
    channels, terms = network.channels, []
    counted = flops(network.graph_module, example)
    shapes = {name: tuple(value.shape) for name, value in network.graph_module.named_parameters(remove_duplicate=False)}
    for name, (count, value_shape) in counted.items():
        consumer = channels.contractions.get(name)
        if consumer is not None and consumer.weight in shapes:
            shape, labels = shapes[consumer.weight], _labels(network, consumer.weight)
        else:
            shape, labels = value_shape, _varying(network, leaves(channels.values[name])[0])
        varying_size = math.prod(shape[axis] for axis in labels)
        fixed = tuple(size if axis in labels else 1 for axis, size in enumerate(shape))
        terms.append(Term(count // varying_size, fixed, labels))
    return SizeModel(network, orders, terms, sum(count for count, _ in counted.values()))


TARGETS: dict[str, Callable[..., SizeModel]] = {"params": parameters, "flops": multiply_adds}
"""What the ratio counts."""

MEASURED = {"size": "params", "latency": "flops"}
"""What the ratio measures (`passes.gauges`), and what counts in its place when it is shared out."""


def _labels(network: FxNetwork, name: str) -> Mapping[int, Labels]:
    """Labels along each labelled dimension of a parameter."""
    channels = network.channels
    if name in channels.axes:
        return channels.axes[name]
    return _varying(network, channels.elements[name]) if name in channels.elements else {}


def _varying(network: FxNetwork, labels: Labels) -> dict[int, Labels]:
    units = network.channels.unit[compact(labels)]
    return {axis: vector(labels, axis) for axis in varying(units)}
