"""Attention in any number of dimensions is written to ONNX, for any number of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from subprune_fx.passes.export import export, to_onnx
from subprune_fx.passes.export_attention import laid_out

SHAPES: dict[str, tuple[int, ...]] = {
    "no heads": (6, 8),
    "heads": (2, 6, 4),
    "windows": (3, 2, 6, 4),
    "windows of windows": (2, 3, 2, 6, 4),
}
MASKS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda _: None,
    "of keys": lambda x: x.mean(-1)[..., None, :],
    "of all samples": lambda x: x[0] @ x[0].mT,
    "one of all samples": lambda x: x[:1] @ x[:1].mT,
    "of each sample": lambda x: x @ x.mT,
}


class Attending(nn.Module):
    """Attention with what it reads laid out in some shape."""

    def __init__(self, shape: tuple[int, ...], mask: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.shape, self.mask = shape, mask
        self.query, self.value = nn.Linear(shape[-1], shape[-1]), nn.Linear(shape[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, *self.shape)
        return scaled_dot_product_attention(self.query(x), x, self.value(x), attn_mask=self.mask(x))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "heads"])
def test_same_as_in_torch(shape: str, mask: str, tmp_path: Path) -> None:
    model = Attending(SHAPES[shape], MASKS[mask]).eval()
    width = int(torch.tensor(SHAPES[shape]).prod())
    to_onnx(model, torch.randn(1, width), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for samples in (1, 2, 5):
        x = torch.randn(samples, width)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_stays_as_it_was(shape: str) -> None:
    model = Attending(SHAPES[shape], MASKS["none"]).eval()
    program, _ = export(model, torch.randn(1, int(torch.tensor(SHAPES[shape]).prod())))
    before = str(program.graph)
    found = laid_out(program)
    assert (found is program) == (shape == "heads")
    assert str(program.graph) == before
