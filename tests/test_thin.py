"""Convolutions are looked at in some positions only, where there are far more than a fit needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.numerics.thinned_reader import ThinnedReader, positions
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.thin import LEAST, WORTHWHILE, thinned

ENOUGH = 64


def network(*, upsampled: bool = False) -> nn.Module:
    """Three convolutions, the last perhaps behind a map in which every pixel is there four times."""
    torch.manual_seed(0)
    between = [nn.Upsample(scale_factor=2)] if upsampled else []
    layers = nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), *between, nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(12, 4, 1))


def images(samples: int, size: int = 24) -> Tensor:
    """Smooth ones: neighbouring pixels are alike."""
    coarse = torch.randn(samples, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def shares(found: FxNetwork) -> dict[str, float]:
    """Fraction of the positions looked at by layer, of those that are not looked at whole."""
    return {name: reader.share for name, reader in found.readers.items() if isinstance(reader, ThinnedReader)}


def test_as_many_positions_are_left_as_are_asked_for() -> None:
    found = analyse(network(), images(2))
    assert shares(thinned(found, 64, 0)) == {}
    assert shares(thinned(found, 2, ENOUGH)) == {}
    for samples, rows in ((64, 16), (512, ENOUGH), (4096, ENOUGH)):
        share = shares(thinned(found, samples, rows))["_2"]
        left = len(positions((24, 24), share))
        assert LEAST <= left <= WORTHWHILE * 24 * 24
        assert 12 * 9 * rows <= left * samples
        assert left == LEAST or 12 * 9 * rows > (left - 2) * samples


@pytest.mark.parametrize("share", [0.01, 0.1, 0.37, 1])
def test_positions_are_distinct_and_spread_over_the_map(share: float) -> None:
    found = positions((24, 25), share)
    assert len(set(found.tolist())) == len(found) == math.ceil(600 * share)
    assert int(found.diff().max()) <= 2 / share
    assert len(set((found % 2).tolist())) == 2  # both phases of an upsampled map


@pytest.mark.parametrize("upsampled", [False, True])
def test_some_positions_do_nearly_as_well_as_all(upsampled: bool) -> None:
    model, seen, new = network(upsampled=upsampled), images(128), images(160)[128:]
    with torch.no_grad():
        wanted = model(new)
    errors = []
    for rows in (0, ENOUGH):
        small, *_ = subprune_fx.prune(model, seen, ratio=1.6, rows=rows)
        with torch.no_grad():
            errors.append(float((small(new) - wanted).square().mean() / wanted.var()))
    assert shares(thinned(analyse(model, seen[:2]), 128, ENOUGH))
    assert errors[1] <= 1.1 * errors[0]  # 1 / ENOUGH if rows were independent: it is 2 to 5 % here
    assert errors[0] > 1e-4  # or there is nothing to compare


def test_layers_in_which_positions_are_few_are_looked_at_whole() -> None:
    found = analyse(network(), images(2, 4))
    assert shares(thinned(found, 4096, 1)) == {}
