"""Networks with several inputs and outputs: tensors by position, by name, dicts and tuples out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support import against_masked, parameters
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import subprune_fx
from subprune_fx.bundle import Bundle, call
from subprune_fx.errors import SubpruneError
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import difference, halved
from subprune_fx.passes.write import write_all
from subprune_fx.samples import inputs_of


class Heads(NamedTuple):
    """Two outputs by name."""

    score: Tensor
    map: Tensor


class Two(nn.Module):
    """An image and a vector that meet; the third argument has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8))
        self.mix = nn.Conv2d(8, 10, 3, padding=1)
        self.map = nn.Conv2d(10, 2, 1)
        self.score = nn.Linear(10, 4)

    def forward(self, image: Tensor, vector: Tensor, scale: Tensor | None = None) -> Any:
        gate = self.vector(vector).sigmoid()[:, :, None, None]
        if scale is not None:
            gate = gate * scale[:, None, None, None]
        x = self.mix(self.image(image) * gate).relu()
        return self.outputs(self.score(x.mean((2, 3))), self.map(x))

    def outputs(self, score: Tensor, map_: Tensor) -> Any:
        return {"score": score, "maps": [map_, score.softmax(-1)]}


class Named(Two):
    """The same with a named tuple."""

    def outputs(self, score: Tensor, map_: Tensor) -> Any:
        return Heads(score, map_)


class Untraceable(Two):
    """The same where only torch.export gets through."""

    def outputs(self, score: Tensor, map_: Tensor) -> Any:
        if score.shape[1] != len(list(score[0].shape)) + 3:
            raise AssertionError
        return {"score": score, "maps": (map_, *[score * i for i in range(int(score.shape[1] > 2))])}


def given(count: int = 24) -> dict[str, Tensor]:
    return {"image": torch.randn(count, 3, 6, 6), "vector": torch.randn(count, 5)}


SIGNATURES = {
    "positions": lambda x: (x["image"], x["vector"]),
    "names": lambda x: x,
    "other order": lambda x: {"vector": x["vector"], "image": x["image"]},
    "optional": lambda x: {**x, "scale": x["vector"][:, 0]},
    "optional by position": lambda x: (x["image"], x["vector"], x["vector"][:, 0]),
}


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("network", [Two, Named, Untraceable])
def test_pruned_is_masked_and_takes_the_same(network: type[Two], signature: str) -> None:
    model = network().eval()
    x = SIGNATURES[signature](given())  # type: ignore[no-untyped-call]
    inputs = inputs_of(x, "x")
    assert isinstance(inputs, Bundle)
    small, plan, report = subprune_fx.prune(model, x, keep=0.5)
    assert report.achieved > 1.8
    with torch.no_grad():
        small_out, out = call(small, inputs), call(model, inputs)
        found = analyse(model, inputs[:2])
        assert type(small_out) is type(out)
        assert difference(small_out, out) < 2
    again = subprune_fx.apply(plan, model)
    with torch.no_grad():
        assert difference(call(again, inputs), small_out) < 1e-5
    assert against_masked(found, *halved(found), inputs) < 1e-5
    assert parameters(small) < parameters(model)


@pytest.mark.parametrize("signature", ["positions", "other order"])
def test_written_as_onnx(signature: str, tmp_path: Path) -> None:
    x = SIGNATURES[signature](given())  # type: ignore[no-untyped-call]
    inputs = inputs_of(x, "x")
    small = subprune_fx.prune(Two(), x, keep=0.5).module
    (row,) = write_all(small, None, inputs[:1], inputs, [tmp_path / "small.onnx"])
    assert row.max_difference is not None
    assert row.max_difference < 1e-4


def test_distilled_with_several_inputs() -> None:
    x = given(40)
    pruned = subprune_fx.prune(Two(), x, keep=0.5, distil=5)
    assert set(pruned.module(**x)) == {"score", "maps"}


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((torch.randn(3, 3, 6, 6), torch.randn(4, 5)), "different numbers of samples"),
        ((), "different numbers of samples"),
        ({"image": torch.randn(3, 3, 6, 6)}, "does not run"),
        ({"image": torch.randn(3, 3, 6, 6), "vector": torch.full((3, 5), torch.nan)}, "vector"),
        (DataLoader(TensorDataset(torch.randn(3, 3, 6, 6))), "calibration: is a DataLoader, not a tensor or an array"),
        ({"image": torch.randn(3, 3, 6, 6), "vector": "five"}, "calibration vector: is a str, not a tensor"),
        (None, "calibration: is a NoneType, not a tensor"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Any, says: str) -> None:
    with pytest.raises(SubpruneError, match=says):
        subprune_fx.prune(Two(), x, keep=0.5)


class Written(nn.Module):
    """Adds what it computes of some channels to them, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(4, 16, 1), nn.ReLU(), nn.Conv1d(16, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] += self.inner(x[:, :4])
        return x


@pytest.mark.parametrize("given", [lambda x: x, lambda x: {"x": x}, lambda x: (x,), lambda x: x.numpy()])
def test_views_with_gaps_are_taken(given: Callable[[Tensor], Any]) -> None:
    x = torch.randn(32, 6, 10, generator=torch.Generator().manual_seed(0))[:, :, :8]
    _, _, report = subprune_fx.prune(Written().eval(), given(x), keep=0.5)
    assert [(row.channels, row.kept) for row in report.groups] == [(16, 8)]
