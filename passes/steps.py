"""Which numbers of units a group may keep, and budgets that count in those instead of in units.

A rule of `passes.budgets` sees a group that may keep 8, 16 or 24 channels as a group of three: every rule then honours
alignment and fixed layers without knowing of them, and sizes are met exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from subprune_fx.errors import SubpruneError
from subprune_fx.graph.channels import ChannelGraph, Group
from subprune_fx.graph.propagation import Consumer
from subprune_fx.passes.budget import Budget, Curves, Sizes, Trial
from subprune_fx.passes.dependencies import check_patterns
from subprune_fx.passes.size import SizeModel
from subprune_fx.plan import Layer
from subprune_fx.selectors import Keep

Steps = Mapping[str, NDArray[np.int64]]
"""By group, the numbers of units that it may keep, ascending, at least one."""

BLOCK = 4
"""Of this the widths that convolutions read are multiples unless the user says. Others onnxruntime's optimiser leaves
out of its layout of blocks of channels: eight convolutions of 3 x 3 on 16 x 16 take 167 microseconds with 28 channels,
264 with 30, four depthwise ones on 14 x 14 with their neighbours 93 with 156, 329 with 154."""
SMALL = 8
"""Ordinary convolutions with fewer inputs read them as they are."""
NARROW = 4 * BLOCK
"""With fewer units, multiples are too coarse a choice."""


@dataclasses.dataclass(frozen=True)
class Multiple:
    """What widths have to be: multiples of `of`, or smaller than `above`."""

    of: int = 1
    above: int = 0


def multiples(channels: ChannelGraph, align: int | None) -> Mapping[str, Multiple]:
    """By group, what its widths have to be.

    Args:
        channels: Of the network.
        align: Multiples of this, all of them; None: of `BLOCK` where convolutions read them.
    """
    if align is not None:
        return {group.name: Multiple(align) for group in channels.groups}
    return {group.name: _block(channels, group) for group in channels.groups}


def _block(channels: ChannelGraph, group: Group) -> Multiple:
    if len(group.units) < NARROW:
        return Multiple()
    readers = [one for name in group.consumers if _convolves(channels, one := channels.contractions[name])]
    if group.depthwise or any(not np.isin(channels.unit[one.labels], group.units).all() for one in readers):
        return Multiple(BLOCK, BLOCK)  # a sum of widths is a multiple where all are
    return Multiple(BLOCK, SMALL) if readers else Multiple()


def _convolves(channels: ChannelGraph, consumer: Consumer) -> bool:
    """Whether it reads channels of images."""
    return consumer.axis == 1 and consumer.groups == 1 and channels.values[consumer.name].ndim == 4


def steps_of(
    widths: SizeModel, multiple: Mapping[str, Multiple], layers: Sequence[Layer], *, strict: bool = True
) -> Steps:
    """What each group may keep.

    Args:
        widths: Counts of parameters.
        multiple: By group, what every width that depends on it has to be, if it is pruned at all.
        layers: What the user fixes; of several that match a layer the last counts.
        strict: Refuse numbers of channels that are fixed otherwise.

    Raises:
        SubpruneError: A pattern matches no group, or asks for what a group does not have.
    """
    check_patterns((layer.pattern for layer in layers), list(widths.units))
    found = {}
    for name, units in widths.units.items():
        every = np.arange(1, units + 1)
        counts = widths.widths(name)[:, 1:]
        fine = ((counts % multiple[name].of == 0) | (counts < multiple[name].above)).all(0)
        allowed, wanted = every[fine | (every == units)], layer_of(name, layers)
        if wanted is not None and wanted.channels is not None and not strict:
            allowed = every
        found[name] = allowed if wanted is None else _fixed(name, wanted, allowed, units, multiple[name].of)
    return MappingProxyType(found)


def layer_of(name: str, layers: Sequence[Layer]) -> Layer | None:
    """What is wanted of a group, if anything is."""
    return next((layer for layer in reversed(layers) if fnmatchcase(name, layer.pattern)), None)


def only_layers(steps: Steps, units: Mapping[str, int], layers: Sequence[Layer]) -> Keep:
    """Units to keep where only what the layers ask for is done."""
    return {name: units[name] if layer_of(name, layers) is None else int(steps[name][0]) for name in steps}


def _fixed(name: str, layer: Layer, allowed: NDArray[np.int64], units: int, align: int) -> NDArray[np.int64]:
    """The one number of units that a layer is to keep."""
    wanted = layer.channels if layer.channels is not None else math.floor(units / (layer.ratio or 1) + 1e-9)
    if not 1 <= wanted <= units:
        what = f"{layer} leaves {wanted} of its {units} channels"
        raise SubpruneError(what, where=name, remedy=f"between 1 and {units} can stay")
    if wanted == units:
        return np.asarray([units])
    if layer.channels is not None and wanted not in allowed:
        near = ", ".join(str(k) for k in sorted(allowed, key=lambda k: abs(int(k) - wanted))[:2])
        raise SubpruneError(f"{wanted} channels are not aligned to {align}", where=name, remedy=f"use {near}")
    return allowed[allowed <= wanted][-1:] if allowed[0] <= wanted else allowed[:1]


def units_of(steps: Steps, keep: Mapping[str, int]) -> Keep:
    """From steps to units."""
    return {name: int(steps[name][step - 1]) for name, step in keep.items()}


def rounded(steps: Steps, keep: Mapping[str, int]) -> Keep:
    """From units to the largest steps that are not above, or the first ones."""
    return {name: max(1, int(np.searchsorted(steps[name], kept, "right"))) for name, kept in keep.items()}


@dataclasses.dataclass(frozen=True)
class _Curves(Mapping[str, NDArray[np.float64]]):
    """Error curves at no unit and at every step; each is made when it is asked for."""

    curves: Curves
    steps: Steps

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.curves[name][[0, *self.steps[name]]]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)


def stepped(budget: Budget, steps: Steps) -> Budget:
    """The same budget, counting in steps."""

    def at_steps(trial: Trial) -> Trial:
        def measure(sizes: Sizes) -> dict[str, NDArray[np.float64]]:
            return trial({name: [int(steps[name][k - 1]) for k in ks] for name, ks in sizes.items()})

        return measure

    return Budget(
        size=budget.size.stepped(steps),
        error=_Curves(budget.error, steps),
        accuracy=at_steps(budget.accuracy),
        change=at_steps(budget.change),
    )
