"""Exported graphs come out as onnxscript's own optimiser leaves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from onnxscript.rewriter import _DEFAULT_REWRITE_RULES
from torch import Tensor, nn

from subprune_fx.passes.export import export
from subprune_fx.passes.onnx_optimise import RULES, optimise
from subprune_fx.silence import silence


class Superfluous(nn.Module):
    """Operators that need not be there, in both orders where there are two."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.padded(nn.functional.pad(x, (1, 1, 1, 1))))
        x = 1.0 * (0.0 + x) + 0.0
        x = torch.relu(x.clamp(min=0)).float().mean((2, 3))
        x = x.reshape(-1, 2, 3).flatten(1).transpose(0, 1).transpose(0, 1)
        found: Tensor = self.linear(x) * 1.0
        return found


def attention() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


class Normalised(nn.Module):
    """What opset 23 has one operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.linear = nn.Parameter(torch.rand(8) + 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        found: Tensor = self.linear(x)
        return found


@pytest.mark.parametrize(
    ("make", "shape", "opset"),
    [(Superfluous, (1, 3, 8, 8), None), (attention, (1, 5, 8), None), (Normalised, (1, 5, 8), 23)],
    ids=["superfluous", "attention", "normalised"],
)
def test_what_is_left_is_what_onnxscript_leaves(
    make: Callable[[], nn.Module], shape: tuple[int, ...], opset: int | None
) -> None:
    torch.manual_seed(0)
    program, _ = export(make().eval(), torch.randn(shape))
    with silence():
        ours, theirs = (
            torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=opset)
            for _ in range(2)
        )
        assert ours is not None
        assert theirs is not None
        before = sum(1 for _ in ours.model.graph)
        optimise(ours.model)
        theirs.optimize()
    found, wanted = (Counter(node.op_type for node in one.model.graph) for one in (ours, theirs))
    assert found == wanted
    assert found.total() < before
    assert len(ours.model.graph.initializers) == len(theirs.model.graph.initializers)


def test_the_rules_are_onnxscripts() -> None:
    """All but those named, in the same order; a new one of theirs is to be looked at."""
    left_out = ("SlicesSplit", "Integer", "QLinear")
    wanted = [rule for rule in _DEFAULT_REWRITE_RULES if not any(part in str(rule.name) for part in left_out)]
    assert [str(rule) for rule in RULES] == [str(rule) for rule in wanted]
