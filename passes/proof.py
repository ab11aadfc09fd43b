"""Before anything is decided: does a pruned network compute what masking says it must?

The dependency graph rests on a rule for each op, and a rule may be wrong for what a network does with it. So half of
the channels of every group are dropped once, and the smaller network has to give the outputs of the masked original.
Groups that break this are found by halving the set, and stay as they are, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs, in_double, one_more
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.graph.channels import Group
from subprune_fx.passes.dependencies import narrowed
from subprune_fx.passes.masked import Masked
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.scratch import Scratch
from subprune_fx.plan import Decision, Plan

SINGLE, DOUBLE = 1e-3, 1e-6
"""Largest difference that passes for rounding, as a fraction of the largest output, in float32 and float64.

A wrong channel moves an output by its own scale. What float32 leaves undecided is run again in float64.
"""


def proven(network: FxNetwork, example: Inputs) -> FxNetwork:
    """The network, without the groups whose pruning differs from their masking.

    Args:
        network: The analysed network.
        example: Inputs to compare outputs on; two samples are enough.

    Raises:
        SubpruneError: If no group is left.
    """
    found = checked(network, example)
    if not found.channels.groups:
        raise SubpruneError(
            f"nothing to prune: {found.channels.frozen[-1].reason}",
            remedy="report the network to subprune_fx: a rule for one of its ops is wrong",
        )
    return found


def checked(network: FxNetwork, example: Inputs) -> FxNetwork:
    """`proven`, for a reader: there may be no group left."""
    while network.channels.groups:
        guilty = _guilty(network.channels.groups, partial(_fault, network, example=example))
        if not guilty:
            break
        network = narrowed(network, {group.name: f"pruned and masked network differ ({why})" for group, why in guilty})
    return network


def halved(network: FxNetwork, seed: int = 0) -> tuple[Plan, fx.GraphModule]:
    """A plan in which every group keeps a random half of its units, weights as they are, and what it makes."""
    rng, channels = np.random.default_rng(seed), network.channels
    kept = [np.sort(rng.permutation(group.units.size)[: max(1, group.units.size // 2)]) for group in channels.groups]
    scratch = Scratch(network)
    units = (group.units[chosen] for group, chosen in zip(channels.groups, kept, strict=True))
    scratch.shrink(channels.alive(units, channels.groups))
    decisions = tuple(
        Decision(group.name, group.units.size, tuple(chosen.tolist()), 0.0)
        for group, chosen in zip(channels.groups, kept, strict=True)
    )
    plan = scratch.plan(decisions)
    return plan, apply(plan, network.graph_module)


def difference(left: Any, right: Any) -> float:
    """Largest difference of two outputs as a fraction of the second's largest finite value.

    It is infinite where shapes differ, or where a difference is undefined; equal infinities are none.
    """
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True):
        if not isinstance(b, Tensor):
            worst = worst if a == b else math.inf
        elif a.shape != b.shape:
            worst = math.inf
        elif b.numel():
            kind = b.dtype if b.is_floating_point() or b.is_complex() else torch.float64  # flags have no difference
            got, wanted = a.to(kind), b.to(kind)
            finite = wanted[wanted.isfinite()].abs()
            scale = max(float(finite.max()), 1e-12) if finite.numel() else 1e-12
            apart = float((got - wanted).masked_fill(got == wanted, 0).abs().max()) / scale
            worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst


def _guilty(groups: Sequence[Group], fault: Callable[[Sequence[Group]], str]) -> list[tuple[Group, str]]:
    """Groups that cannot be pruned, with what goes wrong; where only all of them together fail, the later half."""
    why = fault(groups)
    if not why:
        return []
    if len(groups) == 1:
        return [(groups[0], why)]
    middle = len(groups) // 2
    first, second = groups[:middle], groups[middle:]
    return _guilty(first, fault) + _guilty(second, fault) or [(group, why) for group in second]


def _fault(network: FxNetwork, groups: Sequence[Group], *, example: Inputs) -> str:
    """What goes wrong when these groups alone are halved; empty: nothing."""
    others = {group.name: "" for group in network.channels.groups if group not in groups}
    network = narrowed(network, others)
    limit = SINGLE
    try:
        worst = _apart(network, example, limit)
        if worst >= SINGLE and source_of(network.graph_module) is None:
            wide = dataclasses.replace(network, graph_module=copy.deepcopy(network.graph_module).double())
            limit = DOUBLE
            worst = _apart(wide, in_double(example), limit)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises on a size or type it did not expect
        return f"{type(error).__name__}: {first_line(error)}"
    return "" if worst < limit else f"by {worst:.1e} of the largest output"


@torch.no_grad()
def _apart(network: FxNetwork, example: Inputs, limit: float) -> float:
    plan, small = halved(network)
    wanted = functools.cache(lambda: Masked(network, plan, small).run(example))
    with contextlib.suppress(Exception):  # what a network raises that takes this number of samples is raised below
        apart = difference(fewer(small(one_more(example)), wanted(), len(example)), wanted())
        if apart < limit:  # it is right, and of any number of samples: it need not be run on as many as the example
            return apart
    found = small(example)
    apart = difference(found, wanted())
    return max(apart, _unsteady(network.graph_module, small, example, found, limit))


def fewer(more: Any, some: Any, samples: int) -> list[Any]:
    """The leaves of an output for one sample more, without it where that is all that sets them apart."""

    def alike(a: Any, b: Any) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim):
            return False
        sizes = zip(a.shape, b.shape, strict=True)
        return all(size in (wanted, wanted * (samples + 1) / samples) for size, wanted in sizes)

    pairs = zip(pytree.tree_leaves(more), pytree.tree_leaves(some), strict=True)
    return [_first(a, b) if alike(a, b) else a for a, b in pairs]


def _unsteady(whole: fx.GraphModule, small: fx.GraphModule, example: Inputs, found: Any, limit: float) -> float:
    """How far outputs move when one more sample comes behind them, where those of the whole network do not.

    The masks are those of one number of samples; a size that was taken from them (samples x heads, say) shows here.
    """
    with contextlib.suppress(Exception):  # what a network raises that takes any number of samples is raised below
        moved = _moved(small, example, found)
        if moved < limit:  # the whole network, which takes longer, need not be asked
            return moved
    try:
        steady = _moved(whole, example, whole(example)) < SINGLE
    except Exception:  # noqa: BLE001 - a network that takes no other number of samples says so in any way
        return 0.0
    return _moved(small, example, found) if steady else 0.0


def _moved(module: fx.GraphModule, example: Inputs, found: Any) -> float:
    """How far the outputs `found` for the example are from those for one sample more."""
    some, more = pytree.tree_leaves(found), pytree.tree_leaves(module(one_more(example)))
    return difference([_first(a, b) for a, b in zip(more, some, strict=True)], some)


def _first(value: Any, like: Any) -> Any:
    """As much of an output as another one has."""
    if not (isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim == like.ndim):
        return value
    return value[tuple(slice(size) for size in like.shape)]
