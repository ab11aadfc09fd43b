"""`subprune_fx.save`: what Python writes is what the command writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import subprune_fx
from subprune_fx.errors import SubpruneError


class Two(nn.Module):
    """Two inputs, and a BatchNorm whose statistics training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.a(x)).relu()
        out: torch.Tensor = self.b(hidden) * scale
        return out


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_written_as_in_eval_mode_and_left_as_it_was(tmp_path: Path, training: bool) -> None:
    torch.manual_seed(0)
    x = {
        "x": np.random.default_rng(0).standard_normal((32, 6), dtype=np.float32),
        "scale": np.ones((32, 1), np.float32),
    }
    model = Two()
    small, *_ = subprune_fx.prune(model.eval(), x, keep=0.5)
    wanted = small(**{name: torch.from_numpy(value) for name, value in x.items()})
    small.train(training)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    onnx, state = subprune_fx.save(small, tmp_path / "a.onnx", tmp_path / "a.safetensors", inputs=x, original=model)
    assert small.training is training
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert onnx.max_difference is not None
    assert onnx.max_difference < 1e-5  # float32 rounding
    assert onnx.bytes_before is not None
    assert onnx.bytes < onnx.bytes_before
    assert state.max_difference is None
    (got,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, x)
    np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"), [("a.bin", "a.bin"), ("a.plan", "use Plan.save"), ("missing/a.onnx", "missing")]
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, name: str, said: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with pytest.raises(SubpruneError, match=said):
        subprune_fx.save(model, tmp_path / "b.onnx", tmp_path / name, inputs=torch.randn(4, 4))
    assert not list(tmp_path.iterdir())


class Asking(nn.Module):
    """Symbolic tracing cannot follow it: of what torch.export gives, nodes have a mode as modules have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 6:
            x = x[:, :6]
        out: torch.Tensor = self.b(self.norm(self.a(x)).relu())
        return out


def test_a_graph_of_torch_export_goes_on_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    small, *_ = subprune_fx.prune(Asking().eval(), x, keep=0.5)
    evaluating = small.code
    training = small.train().code
    assert training != evaluating
    subprune_fx.save(small, tmp_path / "a.onnx", inputs=x)
    assert small.training
    assert small.code == training
