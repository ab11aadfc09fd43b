"""Closing the propagation: labels become units, units become groups."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from subprune_fx.graph.components import components
from subprune_fx.graph.labels import Labels, compact, cut, distinct, varying
from subprune_fx.graph.propagation import Consumer, Origin, Propagation
from subprune_fx.graph.step import Tree, leaves

T = TypeVar("T")

PAIRS = 2
"""Complementary choices of units that an op is tried with: one pair may fit by luck."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Units with the same producers that appear in the same tensors: one decision.

    Since at least one unit of a group stays, so does a channel of every tensor, whatever is split off.

    Attributes:
        name: The first producer; `#2` and so on where it makes the channels of several groups.
        units: Unit numbers, ascending; shape (n,).
        producers: Layers that make the channels.
        followers: Parameters met elementwise, layers with parameters per channel, and padding, that go along.
        consumers: Names of the consumers that read at least one of the units, in graph order.
        normalised: Whether a statistic is taken over its channels: what is left of them depends on all that is kept.
        depthwise: Whether a depthwise convolution reads some of its channels.
    """

    name: str
    units: NDArray[np.int64]
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    normalised: bool = False
    depthwise: bool = False


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Channels of one producer that stay, with the reason; 0 of them: steps that stay whole."""

    name: str
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ChannelGraph:
    """The dependency graph of a network.

    Attributes:
        groups: Prunable groups in the order of their first producer.
        frozen: What is not prunable.
        unit: By label, its unit number; unit 0 is "no channel"; shape (labels,).
        prunable: By unit, whether a group holds it; shape (units,).
        contractions: All contractions with a weight, by node name, in graph order.
        shared: Parameters that are read at several places, which cannot be reweighted for one of them, and the names
            of the steps that read them.
        axes: Labels of weights, by parameter name and dimension.
        elements: Labels of parameters met elementwise, shaped like them.
        values: Labels of every node's value.
        unknown: Steps that channels reach and that are not in the op table, or have weights not known to the graph.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    unit: NDArray[np.int64]
    prunable: NDArray[np.bool_]
    contractions: dict[str, Consumer]
    shared: dict[str, frozenset[str]]
    axes: dict[str, dict[int, Labels]]
    elements: dict[str, Labels]
    values: dict[str, Tree]
    unknown: tuple[str, ...]

    @property
    def consumers(self) -> tuple[str, ...]:
        """Contractions that read at least one prunable unit."""
        return tuple(name for name, c in self.contractions.items() if self.prunable[self.unit[c.labels]].any())

    @property
    def loose(self) -> int:
        """How many rows and columns of weights can go; units are larger in one graph than in another."""
        labels = (labels for axes in self.axes.values() for labels in axes.values())
        return sum(int(self.prunable[self.unit[part]].sum()) for part in labels)

    def positions(self, group: Group) -> NDArray[np.int64]:
        """By unit, its position in `group`, -1 elsewhere; shape (units,)."""
        found = np.full(self.prunable.size, -1, dtype=np.int64)
        found[group.units] = np.arange(group.units.size)
        return found

    def alive(self, kept: Iterable[NDArray[np.int64]], groups: Iterable[Group]) -> NDArray[np.bool_]:
        """By unit, whether it survives when each of `groups` keeps only its units `kept`; shape (units,)."""
        found = np.ones(self.prunable.size, dtype=bool)
        for group, units in zip(groups, kept, strict=True):
            found[group.units] = False
            found[units] = True
        return found

    def keep(self, kept: Iterable[NDArray[np.int64]], groups: Iterable[Group]) -> NDArray[np.bool_]:
        """The same by label; shape (labels,)."""
        return np.asarray(self.alive(kept, groups)[self.unit])

    def samples(self) -> tuple[NDArray[np.bool_], ...]:
        """Pairs of `keep` masks for trying an op: of every group some at random, and the others.

        How many differs from group to group, so that equal parts do not stay equal by chance.
        """
        rng = np.random.default_rng(0)
        masks = []
        for _ in range(PAIRS):
            chosen = [
                rng.choice(group.units, rng.integers(1, group.units.size), replace=False) for group in self.groups
            ]
            rest = [np.setdiff1d(group.units, part) for group, part in zip(self.groups, chosen, strict=True)]
            masks += [self.keep(chosen, self.groups), self.keep(rest, self.groups)]
        return tuple(masks)


def close(state: Propagation) -> ChannelGraph:
    """Units, groups and refusals of a finished propagation."""
    state.settle()
    _make_rectangular(state)
    unit = state.components()
    unit = np.where(unit == unit[0], 0, unit + 1) if unit.size else unit
    unit = np.unique(unit, return_inverse=True)[1].astype(np.int64)
    count = int(unit.max()) + 1
    reasons = _reasons(state, unit, count)
    groups, frozen = _groups(state, unit, reasons)
    prunable = np.zeros(count, dtype=bool)
    for group in groups:
        prunable[group.units] = True
    return ChannelGraph(
        groups=groups,
        frozen=(*_whole(state), *frozen),
        unit=unit,
        prunable=prunable,
        contractions={consumer.name: consumer for consumer in state.consumers},
        shared={name: frozenset(steps) for name, steps in state.reads.items() if len(steps) > 1},
        axes=state.axes,
        elements=state.elements,
        values=state.values,
        unknown=tuple(state.unknown),
    )


def stuck(state: Propagation, channels: ChannelGraph) -> frozenset[str]:
    """Grouped convolutions that read or make channels of which none can be dropped.

    What couples the channels of a group (heads, a normalisation) and the slots of all groups leaves no choice. Where
    the first is known to a grouped convolution, it loses whole groups; where it comes later, that may be tried.
    """
    units = {name: [channels.unit[part] for part in parts] for name, parts in state.slots.items()}
    return frozenset(
        name for name, parts in units.items() if any(part.any() and not channels.prunable[part].any() for part in parts)
    )


def _make_rectangular(state: Propagation) -> None:
    """A tensor whose channels spread over several dimensions loses whole slices of one of them.

    The dimension that leaves most choices keeps its freedom; along the others labels are unified, or stay where one of
    them is no channel. Repeats until no more are unified, since each union may spread to other tensors. Parameters that
    nothing prunable meets stay whole.
    """
    tensors = [labels for tree in state.values.values() for labels in leaves(tree)]
    pending = [labels for labels in (*tensors, *state.elements.values()) if len(varying(labels)) > 1]
    produced = np.zeros(state.count, dtype=bool)
    for origin in state.origins:
        produced[origin.start : origin.stop] = origin.producer
    changed = True
    while pending and changed:
        unit = state.components()
        made = np.zeros(unit.size, dtype=bool)
        made[unit[produced]] = True
        changed = False
        for labels in pending:
            small = unit[compact(labels)]
            axes = varying(small)
            if len(axes) < 2 or not made[small].any():
                continue
            free = max(axes, key=lambda axis: (_choices(small, axis, made, unit[0]), small.shape[axis]))
            others = tuple(axis for axis in axes if axis != free)
            state.tie(compact(labels), others, "a reshape couples it with channels that cannot be pruned")
            first = cut(small, others)
            changed |= bool(((first != small) & (first != unit[0]) & (small != unit[0])).any())


def _choices(small: NDArray[np.int64], axis: int, made: NDArray[np.bool_], none: np.int64) -> int:
    """How many sets of units are left to choose from if each slice along `axis` lives or dies as a whole.

    A slice with anything in it that is no channel (unit `none`) stays, and all that it is connected with.
    """
    rows = np.moveaxis(small, axis, 0).reshape(small.shape[axis], -1)
    index, column = np.nonzero(made[rows])
    if not index.size:
        return 0
    numbers, inverse = np.unique(rows[index, column], return_inverse=True)
    count = rows.shape[0]
    found = components(index, count + inverse, count + numbers.size)
    stay = found[:count][(rows == none).any(axis=1)]
    return int(np.setdiff1d(found[count:], stay).size)


def _reasons(state: Propagation, unit: NDArray[np.int64], count: int) -> dict[int, str]:
    """By frozen unit, the first reason."""
    reasons: dict[int, str] = {}
    for labels, reason in reversed(state.frozen()):
        reasons.update(dict.fromkeys(distinct(unit[labels]).tolist(), reason))
    reasons[0] = ""
    assert max(reasons) < count
    return reasons


def _groups(
    state: Propagation, unit: NDArray[np.int64], reasons: dict[int, str]
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Units with the same producers and places form a group; what is frozen is counted by producer and reason."""
    spans = [(np.arange(origin.start, origin.stop), origin) for origin in state.origins]
    made = _by_unit(unit, [(labels, origin) for labels, origin in spans if origin.producer])
    followed = [(labels, origin.name) for labels, origin in spans if not origin.producer]
    following = _by_unit(unit, [*followed, *state.follows])
    readers = _by_unit(unit, [(consumer.labels, consumer.name) for consumer in state.consumers])
    places = _places(state, unit)
    members: dict[tuple[int, ...], list[int]] = {}
    refused: Counter[tuple[str, str]] = Counter()
    widths = _widths(unit, state.origins)
    for number, origins in made.items():
        if number in reasons:
            refused[origins[0].name, reasons[number]] += widths[origins[0].start, number] if number else 0
        else:
            members.setdefault((int(places[number]), *(origin.start for origin in origins)), []).append(number)
    names = Counter[str]()
    groups = []
    normalised, depthwise = _units_in(unit, state.normalised), _units_in(unit, state.depthwise)
    for units in members.values():
        producers = _distinct(origin.name for origin in made[units[0]])
        reading = _distinct(name for number in units for name in readers.get(number, ()))
        if len(units) == 1 or not reading:
            width = sum(widths[made[number][0].start, number] for number in units)
            alone = "it is a single channel" if width == 1 else "all of it stays or goes together"
            why = alone if len(units) == 1 else "no layer that could be reweighted reads it"
            refused[producers[0], why] += width
            continue
        followers = _distinct(name for number in units for name in following.get(number, ()))
        names[producers[0]] += 1
        name = producers[0] if names[producers[0]] == 1 else f"{producers[0]}#{names[producers[0]]}"
        numbers = np.asarray(sorted(units), dtype=np.int64)
        through, deep = (bool(np.isin(numbers, met).any()) for met in (normalised, depthwise))
        groups.append(Group(name, numbers, producers, followers, reading, through, deep))
    frozen = tuple(Frozen(name, channels, reason) for (name, reason), channels in refused.items() if channels)
    return tuple(groups), frozen


def _whole(state: Propagation) -> tuple[Frozen, ...]:
    """A row for each reason for which steps stay whole."""
    rest = {reason: len(names) - 1 for reason, names in state.whole.items()}
    more = {reason: f" and {count} more" if count else "" for reason, count in rest.items()}
    return tuple(Frozen(f"{names[0]}{more[reason]}", 0, reason) for reason, names in state.whole.items())


def _units_in(unit: NDArray[np.int64], runs: Iterable[Labels]) -> NDArray[np.int64]:
    """Units that are part of any of the runs."""
    return distinct(unit[np.concatenate([np.zeros(0, np.int64), *(labels.ravel() for labels in runs)])])


def _widths(unit: NDArray[np.int64], origins: Iterable[Origin]) -> dict[tuple[int, int], int]:
    """By first label of a run and unit, how many of the run's channels that unit is."""
    found: dict[tuple[int, int], int] = {}
    for origin in origins:
        numbers, counts = np.unique(unit[origin.start : origin.stop], return_counts=True)
        starts = [origin.start] * numbers.size
        found.update(zip(zip(starts, numbers.tolist(), strict=True), counts.tolist(), strict=True))
    return found


def _by_unit(unit: NDArray[np.int64], runs: Iterable[tuple[Labels, T]]) -> dict[int, list[T]]:
    """By unit, what is said of runs of labels that it is part of."""
    found: dict[int, list[T]] = {}
    for labels, item in runs:
        for number in distinct(unit[labels]).tolist():
            found.setdefault(number, []).append(item)
    return found


def _places(state: Propagation, unit: NDArray[np.int64]) -> NDArray[np.uint64]:
    """By unit, a number that says in which values it appears: the sum of random ones, one a value."""
    rng = np.random.default_rng(0)
    found = np.zeros(int(unit.max()) + 1, dtype=np.uint64)
    for tree in state.values.values():
        for labels in leaves(tree):
            here = np.zeros(found.size, dtype=bool)
            here[unit[compact(labels)]] = True
            found[here] += rng.integers(2**63, dtype=np.uint64)
    return found


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
