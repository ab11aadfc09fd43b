"""What torch and the files of both its exporters spell differently has the same groups, and prunes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import subprune_fx
from subprune_fx.formats.load import load_model


class Scan(nn.Module):
    """A state that starts with zeros of a step's size and goes from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        new, gate = self.first(x), self.gate(x).sigmoid()
        state = torch.zeros_like(new[:, 0])
        for step in range(x.shape[1]):
            state = gate[:, step] * state + new[:, step]
        found: Tensor = self.last(state)
        return found


class Kernelised(nn.Module):
    """Attention without softmax: a product of three tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 12) for _ in range(3))
        self.last = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.query(x).exp(), self.key(x).exp()
        both = torch.einsum("bnm,bnd->bmd", k, self.value(x))
        found: Tensor = self.last(torch.einsum("bnm,bmd,bn->bnd", q, both, 1 / q.sum(-1)))
        return found


class Cosine(nn.Module):
    """Vectors divided by their length, which exporters expand; the smaller network takes it over what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(functional.normalize(self.first(x), dim=-1))
        return found


class Picks(nn.Module):
    """Channels in an order of their own, then by turns in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[..., [0, 4, 1, 5, 2, 6, 3, -1]]
        for layer in self.inner:
            x = torch.cat([x[..., ::2], layer(x[..., 1::2]).relu()], -1)
        found: Tensor = self.last(x)
        return found


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    ("make", "widths"), [(Scan, [12]), (Kernelised, [12]), (Cosine, [12]), (Picks, [2, 2, 4, 2, 2, 4])]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_files_have_the_groups_of_the_network(tmp_path: Path, make: type, widths: list[int], dynamo: bool) -> None:
    torch.manual_seed(0)
    model, x, path = make().eval(), torch.randn(24, 5, 4), tmp_path / "a.onnx"
    assert [group.channels for group in subprune_fx.explain(model, x).groups] == widths
    axes = {0: torch.export.Dim("n")} if dynamo else {0: "n"}
    given = {"dynamic_shapes": (axes,)} if dynamo else {"dynamic_axes": {"x": axes}, "input_names": ["x"]}
    torch.onnx.export(model, (x[:2],), path, dynamo=dynamo, verbose=False, opset_version=18, **given)
    module = load_model(path).module
    small, _, report = subprune_fx.prune(module, x, keep=0.5)
    assert [row.channels for row in report.groups] == widths
    for count in (1, 3):  # the state of as many samples as there are
        torch.testing.assert_close(small(x[:count]), small(x)[:count], rtol=1e-4, atol=1e-5)
    (row,) = subprune_fx.save(small, tmp_path / "b.onnx", inputs=x)
    assert row.max_difference is not None
    assert row.max_difference < 1e-4  # float32 rounding
