"""Refit what a recurrent layer hands from step to step, once units of its state are gone.

With h the states of the original layer, S the units that are left and U' the columns of its matrix that make their
gates, the new matrix V' is fitted to what those gates took from the whole state (paper eq. 4; the layer is its own
consumer):

    min_V ||h(t - 1) U' - g(t - 1) V'||^2.

With g = h_S each step for itself comes out best. But a step's errors are the next one's inputs, and may grow without
end in a sequence of a hundred. So the layer is run with V, and V fitted again to the states that it came to as further
rows, at each of which it is to take what the original took at that step (Ross, Gordon, Bagnell 2011: "A Reduction of
Imitation Learning and Structured Prediction to No-Regret Online Learning"). The matrix with the nearest states stays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_recurrent import own_matrices, previous, recurrent
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.labels import vector
from subprune_fx.graph.step import leaves
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.row_moments import picked
from subprune_fx.passes.lockstep import Lockstep
from subprune_fx.passes.problems import Settings, pose
from subprune_fx.passes.scratch import Scratch

RUNS = 3
"""How often the layer is run with a new matrix.

Of the three layers of a speaker encoder (160 steps, half of the parameters) the squared error of the states is 2.7,
0.24, 0.14 of their variance with the first matrix, 0.12, 0.09, 0.06 with the second, 0.10, 0.09, 0.06 with the third.
"""


FAR = 10.0
"""States that are so many times as large as the original's have run away: what to do there teaches nothing."""


@dataclasses.dataclass
class _Direction:
    """One direction of the layer.

    Attributes:
        matrix: Name of U.
        bias: Name of what is added to its product, if anything is.
        whole: U' of the gates that are left, (units, gates).
        start: Its rows of the units that are left, (kept, gates).
        level: The bias of these gates.
        moments: Of states before a step, and of what the original took from its own.
        rows: How many of them came by.
    """

    matrix: str
    bias: str | None
    whole: Tensor
    start: Tensor
    level: Tensor | float
    moments: Moments
    rows: int = 0

    def add(self, states: Tensor, original: Tensor, share: float) -> None:
        """Add rows: the units that are left, (samples, steps, kept), and the original's, (samples, steps, units)."""
        some = picked(self.rows, states.shape[0] * states.shape[1], share)
        self.rows += states.shape[0] * states.shape[1]
        inputs, targets = states.flatten(0, 1)[some].float(), original.flatten(0, 1)[some].float() @ self.whole
        self.moments.add(inputs.mT[None], targets.mT[None])


def refit(walk: Lockstep, node: fx.Node, network: FxNetwork, scratch: Scratch, settings: Settings) -> None:
    """Give a recurrent layer that has lost units a new matrix of its state, in `scratch`.

    Args:
        walk: Both networks; the original one has run `node`, the pruned one has not.
        node: A call of `fx_recurrent.recurrent`.
        network: The analysed network.
        scratch: The pruned-so-far network.
        settings: How least squares are posed.
    """
    names = own_matrices(node)
    if not names:
        return
    made = vector(leaves(network.channels.values[node.name])[0], -1)
    alive = scratch.alive[network.channels.unit[made[: len(made) // len(names)]]]
    if alive.all():
        return
    kept = torch.from_numpy(np.flatnonzero(alive))
    layer = [_direction(matrix, bias, kept, network, scratch) for matrix, bias in names]
    own = [name for pair in names for name in pair if name is not None]
    share = _share(walk, node, settings.rows * len(kept))
    best, least = {name: scratch.get(name) for name in own}, _run(walk, node, kept)
    for before, given, _ in walk.given(node):
        for one, states in zip(layer, previous(before[0], given[1], node.kwargs), strict=True):
            one.add(states[..., kept.to(states.device)], states, share)
    for _ in range(RUNS):
        for one in layer:
            _solve(one, walk, scratch, settings)
        error = _run(walk, node, kept, layer, share)
        if error < least:
            best, least = {name: scratch.get(name) for name in own}, error
    for name, value in best.items():
        scratch.set(name, value)


def _direction(matrix: str, bias: str | None, kept: Tensor, network: FxNetwork, scratch: Scratch) -> _Direction:
    """Without rows."""
    whole = parameter(network.graph_module, matrix)
    gates, units = whole.shape
    rows = (torch.arange(0, gates, units)[:, None] + kept).reshape(-1).to(whole.device)
    level = 0.0 if bias is None else scratch.get(bias).cpu().double()
    start = scratch.get(matrix).mT.cpu()
    return _Direction(matrix, bias, whole[rows].float().mT, start, level, Moments.zeros(1, len(kept), len(rows)))


def _share(walk: Lockstep, node: fx.Node, enough: int) -> float:
    """Which fraction of all rows is `enough` of them; all if that is 0."""
    first = next(walk.originals(node))[0]
    rows = math.prod(first.shape[:-1]) * walk.share
    return min(1.0, enough / rows) if enough else 1.0


def _solve(one: _Direction, walk: Lockstep, scratch: Scratch, settings: Settings) -> None:
    """The best matrix for the rows so far."""
    old = scratch.get(one.matrix)
    moments = walk.team.targets(walk.team.inputs(one.moments))
    settings = settings.of(one.bias is not None)
    unit = np.zeros((1, old.shape[1]), dtype=np.int64)
    found = pose(moments, one.start[None], unit, settings).solution()
    scratch.set(one.matrix, found[0].mT.to(old))
    if one.bias is not None and settings.intercept:
        scratch.set(one.bias, (one.level + moments.intercept(found).reshape(-1)).to(old))


def _run(
    walk: Lockstep, node: fx.Node, kept: Tensor, layer: list[_Direction] | None = None, share: float = 1.0
) -> float:
    """The squared error of the pruned layer's states, which become rows of `layer`."""
    error, told = 0.0, dict[str, Any](node.kwargs)
    for before, given, after in walk.given(node):
        made = recurrent(*after, **told)
        states, originals = (previous(y[0], at[1], told) for y, at in ((made, after), (before, given)))
        for place, (state, original) in enumerate(zip(states, originals, strict=True)):
            error += float((state - original[..., kept.to(state.device)]).double().square().sum())
            if layer is not None and float(state.abs().max()) <= FAR * float(original.abs().max()):
                layer[place].add(state, original, share)
    return walk.team.numbers(error)[0]
