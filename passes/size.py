"""Parameters of the pruned network as a function of what each group keeps, without pruning anything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.labels import Labels, compact, varying, vector


class SizeModel:
    """Parameter count under any budget.

    Each parameter is a product of dimension sizes, and each size is a constant plus, per group, how many of its
    indices belong to the first k units of the group's nested order.
    """

    def __init__(self, network: FxNetwork, orders: Mapping[str, NDArray[np.int64]], *, intercepts: bool) -> None:
        """Tabulate.

        Args:
            network: The analysed network.
            orders: Nested order of each group, positions within the group; may be partial guesses, since only
                units with unequal shares of a parameter depend on it.
            intercepts: Count the biases that consumers without one will get.
        """
        channels = network.channels
        self.units = {group.name: len(group.units) for group in channels.groups}
        owner = np.full(channels.prunable.size, -1, dtype=np.int64)
        rank = np.zeros(channels.prunable.size, dtype=np.int64)
        for number, group in enumerate(channels.groups):
            owner[group.units] = number
            rank[group.units[orders[group.name]]] = np.arange(len(group.units))
        self._owner, self._rank, self._unit = owner, rank, channels.unit
        self._names = list(self.units)
        parameters = dict(network.graph_module.named_parameters())
        self.total = sum(parameter.numel() for parameter in parameters.values())
        self._factors: list[list[tuple[int, dict[str, NDArray[np.int64]]]]] = []
        for name, parameter in parameters.items():
            self._add(tuple(parameter.shape), _labels(network, name))
        if intercepts:
            for name in channels.consumers:
                where = network.intercepts.get(name)
                if where is not None and where.new:
                    outputs = channels.contractions[name].outputs
                    self._add(outputs.shape, {0: outputs})

        self._touching = {
            name: [factors for factors in self._factors if any(name in counts for _, counts in factors)]
            for name in self._names
        }

    def _add(self, shape: tuple[int, ...], labels: Mapping[int, Labels]) -> None:
        factors = []
        for axis, size in enumerate(shape):
            counts = self._counts(labels[axis]) if axis in labels else {}
            factors.append((size - sum(int(count[-1]) for count in counts.values()), counts))
        self._factors.append(factors)

    def _counts(self, labels: Labels) -> dict[str, NDArray[np.int64]]:
        """By group, how many of the positions belong to its first 0..n units."""
        units = self._unit[labels]
        found = {}
        for number in np.unique(self._owner[units]).tolist():
            if number < 0:
                continue
            name = self._names[number]
            ranks = self._rank[units[self._owner[units] == number]]
            per_unit = np.bincount(ranks, minlength=self.units[name])
            found[name] = np.concatenate([[0], np.cumsum(per_unit)])
        return found

    def parameters(self, keep: Mapping[str, int]) -> int:
        """Parameters when each group keeps `keep[group]` units."""
        total = 0
        for factors in self._factors:
            product = 1
            for fixed, counts in factors:
                product *= fixed + sum(int(count[keep[name]]) for name, count in counts.items())
            total += product
        return total

    def neighbours(self, group: str) -> set[str]:
        """Groups that share a parameter with `group` (itself among them): their savings depend on what it keeps."""
        return {name for factors in self._touching[group] for _, counts in factors for name in counts} | {group}

    def saving(self, keep: Mapping[str, int], group: str, fewer: int) -> int:
        """Parameters saved when `group` goes from `keep[group]` to `fewer` units and nothing else changes."""
        changed = {**keep, group: fewer}
        saved = 0
        for factors in self._touching[group]:
            before = after = 1
            for fixed, counts in factors:
                before *= fixed + sum(int(count[keep[name]]) for name, count in counts.items())
                after *= fixed + sum(int(count[changed[name]]) for name, count in counts.items())
            saved += before - after
        return saved


def _labels(network: FxNetwork, name: str) -> dict[int, Labels]:
    """Labels along each labelled dimension of a parameter."""
    channels = network.channels
    if name in channels.axes:
        return channels.axes[name]
    if name not in channels.elements:
        return {}
    labels = channels.elements[name]
    units = channels.unit[compact(labels)]
    return {axis: vector(labels, axis) for axis in varying(units)}
