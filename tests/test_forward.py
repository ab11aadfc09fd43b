"""Forward passes in bfloat16 give nearly the same network; only they are rounded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.numerics.moments import Moments
from subprune_fx.passes.calibrate import calibrate
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.forward import Forward


@pytest.fixture
def network() -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 5)).eval()


def test_products_are_rounded_and_handed_on_in_float32(network: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8)
    plain = analyse(network, x)
    with torch.no_grad():
        exact, again = network(x), Forward(plain).run(x)
        rounded = Forward(dataclasses.replace(plain, precision="bf16")).run(x)
    assert torch.equal(again, exact)
    assert rounded.dtype == torch.float32
    off = float((rounded - exact).abs().max() / exact.abs().max())
    assert 1e-5 < off < 0.05  # bfloat16 has 8 bits, and three layers add up


def test_moments_of_what_is_computed_in_bfloat16_are_not_rounded(network: nn.Module) -> None:
    x = torch.randn(64, 3, 8, 8)
    rounded = dataclasses.replace(analyse(network, x), precision="bf16")
    found, _ = calibrate(rounded, [x])
    read: dict[str, Tensor] = {}

    class Spy(Forward):
        def run_node(self, n: fx.Node) -> Any:
            read[n.name] = super().run_node(n)
            return read[n.name]

    with torch.no_grad():
        Spy(rounded).run(x)
    for name, moments in found.items():
        consumer, reader = rounded.channels.contractions[name], rounded.readers[name]
        columns = reader.columns(read[consumer.source]).double()
        assert isinstance(moments, Moments)
        torch.testing.assert_close(moments.gram, columns @ columns.mT, rtol=1e-5, atol=1e-3)  # float32 products


def pruned(network: nn.Module, x: Tensor, **choices: Any) -> subprune_fx.Pruned:
    return subprune_fx.prune(network, x, ratio=2, **choices)


def test_the_result_is_nearly_that_of_float32(network: nn.Module) -> None:
    x = torch.randn(128, 3, 8, 8)
    exact, rounded = pruned(network, x), pruned(network, x, precision="bf16")
    assert rounded.report.after.parameters <= rounded.report.before.parameters / 2
    assert all(value.dtype == torch.float32 for value in rounded.plan.values.values())
    with torch.no_grad():
        wanted = network(x)
        errors = [float((found.module(x) - wanted).square().sum()) for found in (exact, rounded)]
    assert errors[1] < 1.2 * errors[0]  # a few choices that were close may fall the other way


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_tf32_needs_a_gpu(network: nn.Module) -> None:
    with pytest.raises(SubpruneError, match="TF32 is a precision of NVIDIA GPUs"):
        pruned(network, torch.randn(8, 3, 8, 8), precision="tf32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tf32_ends_with_the_forward_pass(network: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8, device="cuda")
    plain = analyse(network.cuda(), x)
    before = torch.backends.cudnn.allow_tf32
    Forward(dataclasses.replace(plain, precision="tf32")).run(x)
    assert torch.backends.cudnn.allow_tf32 == before


def test_an_unknown_one_is_refused(network: nn.Module) -> None:
    with pytest.raises(SubpruneError, match="no precision 'int4'"):
        pruned(network, torch.randn(8, 3, 8, 8), precision="int4")
