"""What the paper's theory says about a network: tables 1 and 2, the submodularity ratio, Proposition 6.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.numerics.grams import ELEMENTS_AT_ONCE
from subprune_fx.numerics.greedy import greedy
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.readers import Reader
from subprune_fx.numerics.submodularity import error_bound, path_ratio, sampled_ratio
from subprune_fx.passes.dependencies import analyse, restrict
from subprune_fx.passes.outputs import batches_of
from subprune_fx.passes.problems import Settings, blocks, column_units, pose
from subprune_fx.passes.segment import operand
from subprune_fx.samples import Given, inputs_of
from subprune_fx.unwrap import network_of


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """One group, by the original network (A of the paper).

    Attributes:
        group: Its name.
        units: n.
        columns: Columns of A per unit.
        rows: Of A.
        rank: Of A, numerically, as `numpy.linalg.matrix_rank` has it for float32.
        bounded: Largest k / n for which the lower bound on the submodularity ratio (Propositions 3.1 and 4.1) can be
            non-zero: 1 at full rank, else rank / (2 n columns); tables 1 and 2.
        spectral: Smallest over largest eigenvalue of A'A: a lower bound on the ratio for all k (App. E).
        sampled: Upper estimate of the ratio gamma_{S, n/2} from random sets.
        ratio: By k, upper estimate of gamma along the greedy path, (n + 1,).
        error: By k, greedy's relative error, (n + 1,).
        bound: By k, Proposition 6.1's bound on it, (n + 1,).
    """

    group: str
    units: int
    columns: int
    rows: int
    rank: int
    bounded: float
    spectral: float
    sampled: float
    ratio: NDArray[np.float64]
    error: NDArray[np.float64]
    bound: NDArray[np.float64]


def diagnose(
    model: nn.Module,
    calibration: Given,
    *,
    patches: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    samples: int = 4,
    seed: int = 0,
) -> list[Diagnosis]:
    """Diagnose every prunable group. In float64, without intercept and ridge, as the paper states its theory.

    Args:
        model: The network; unchanged.
        calibration: Inputs, (samples, ...), as for `prune`.
        patches: Use only as many random patches of each input as a patch has elements (App. E, table 2).
        only: Patterns of groups, as for `prune`.
        skip: Patterns of groups, as for `prune`.
        samples: Pairs of random sets per group; 0 leaves `sampled` at 1.
        seed: Of the patches and the sets.

    Raises:
        SubpruneError: As `prune`.
    """
    inputs = inputs_of(calibration, "calibration inputs")
    network = restrict(analyse(network_of(model), inputs[:2]), only, skip)
    generator = torch.Generator().manual_seed(seed)
    recorder = _Recorder(network, generator if patches else None)
    with torch.no_grad():
        for batch in batches_of(inputs, 128):
            recorder.run(batch)
    return [_diagnosis(network, group, recorder.moments, samples, generator) for group in network.channels.groups]


def _diagnosis(
    network: FxNetwork, group: Group, moments: dict[str, Moments], samples: int, generator: torch.Generator
) -> Diagnosis:
    local = network.channels.positions(group)
    everything = np.ones(network.channels.prunable.size, dtype=bool)
    parts, found = [], []
    for name in group.consumers:
        consumer, reader = network.channels.contractions[name], network.readers[name]
        units = column_units(consumer, reader.taps, network.channels.unit)
        weight = reader.matrix(parameter(network.graph_module, consumer.weight))
        problem = pose(moments[name].towards(weight), weight, units, Settings(intercept=False, ridge=0.0))
        parts += blocks(group, problem, network.channels, ~network.channels.prunable, everything)
        for gram, unit in zip(moments[name].gram, units, strict=True):
            own = torch.from_numpy(np.flatnonzero(local[unit] >= 0))
            if len(own):
                found.append(_spectrum(gram[own][:, own], moments[name].rows, len(np.unique(unit[own.numpy()]))))
    worst = min(found, key=lambda item: item.bounded)
    run = greedy(parts, len(group.units))
    ratio = path_ratio(run)
    half = max(1, len(group.units) // 2)
    sampled = sampled_ratio(parts, run.order, half, samples=samples, generator=generator)
    return Diagnosis(
        group.name,
        len(group.units),
        worst.columns,
        worst.rows,
        worst.rank,
        worst.bounded,
        min(item.spectral for item in found),
        sampled,
        ratio.numpy(),
        run.error.numpy(),
        error_bound(run.error, ratio).numpy(),
    )


@dataclasses.dataclass(frozen=True)
class _Spectrum:
    """Of one consumer's A; the fields are `Diagnosis`'s."""

    columns: int
    rows: int
    rank: int
    bounded: float
    spectral: float


def _spectrum(gram: Tensor, rows: int, units: int) -> _Spectrum:
    """From A'A: singular values of A below the largest x max(rows, columns) x float32's epsilon are zero."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    d, largest = len(values), float(values[-1])
    tolerance = max(rows, d) * float(np.finfo(np.float32).eps)
    rank = int((values > largest * max(tolerance**2, d * float(np.finfo(np.float64).eps))).sum())
    bounded = 1.0 if rank == d else rank / (2 * d)
    return _Spectrum(d // units, rows, rank, bounded, float(values[0]) / largest if largest > 0 else 0.0)


class _Recorder(fx.Interpreter):
    """Moments in float64, of all patches or of a random few."""

    def __init__(self, network: FxNetwork, generator: torch.Generator | None) -> None:
        super().__init__(network.graph_module)
        self.network = network
        self.generator = generator
        self.moments: dict[str, Moments] = {}
        for name in network.channels.consumers:
            consumer = network.channels.contractions[name]
            weight = network.readers[name].matrix(parameter(network.graph_module, consumer.weight))
            self.moments[name] = Moments.zeros(*weight.shape)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.moments:
            source = operand(n, self.network.channels.contractions[n.name].source)
            self._add(self.moments[n.name], self.network.readers[n.name], self.env[source])
        return super().run_node(n)

    def _add(self, moments: Moments, reader: Reader, x: Tensor) -> None:
        step = max(1, ELEMENTS_AT_ONCE // max(1, reader.taps * x[0].numel()))
        for part in torch.split(x.double(), step):
            columns = reader.columns(part)
            if self.generator is not None:
                positions = columns.shape[2] // len(part)
                chosen = torch.rand(len(part), positions, generator=self.generator).argsort(1)[:, : reader.taps]
                rows = (chosen + positions * torch.arange(len(part))[:, None]).reshape(-1)
                columns = columns[:, :, rows]
            moments.add(columns)
