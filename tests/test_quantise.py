"""int8 files are what onnxruntime's quantiser makes of the pruned ones, run, compared, and measured stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from subprune_fx import SubpruneError, ValidationError
from subprune_fx.cli.main import main
from subprune_fx.passes import quantise as module
from subprune_fx.passes.quantise import outputs_of, quantise
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.passes.write import write_all

INPUTS = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU())
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(24 * 36, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


class Pinned(nn.Module):
    """Works on batches of one size only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x.reshape(self.batch, 3, 10, 10))
        return found


def written(path: Path, net: nn.Module, batch: int = 1) -> Path:
    write_all(net, None, INPUTS[:batch], INPUTS, [path])
    return path


@pytest.mark.parametrize("batch", [None, 4])
def test_weights_are_integers_and_outputs_close(batch: int | None, tmp_path: Path) -> None:
    net = network() if batch is None else Pinned(batch)
    source, target = written(tmp_path / "float.onnx", net.eval(), batch or 1), tmp_path / "int8.onnx"
    quantise(source, target, INPUTS, where="int8.onnx")
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    kinds = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    assert kinds.count(onnx.TensorProto.INT8) == 4
    assert onnx.TensorProto.FLOAT not in kinds
    (wanted,), (found,) = (outputs_of(path, INPUTS) for path in (source, target))
    assert found.shape == wanted.shape == (48, 5)
    # Some ten roundings of a relative 1/256 each.
    assert np.square(found - wanted).sum() < 0.01 * np.square(wanted - wanted.mean(0)).sum()
    assert target.stat().st_size < 0.5 * source.stat().st_size


class Several(nn.Module):
    """Scores, the same with samples last, and one number for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.inner(x)
        return found, found.t(), found.mean()


def test_outputs_whose_samples_stand_elsewhere_or_nowhere(tmp_path: Path) -> None:
    source, target = written(tmp_path / "float.onnx", Several().eval()), tmp_path / "int8.onnx"
    inputs = INPUTS.repeat(2, 1, 1, 1)[:67]  # more than a batch
    quantise(source, target, inputs, where="int8.onnx")
    scores, last, one = outputs_of(source, inputs)
    np.testing.assert_allclose(last, scores, atol=1e-5)  # float32 rounding
    assert one.shape == (3,)  # one a batch


def test_a_quantised_file_that_is_off_is_a_validation_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "float.onnx", network())
    monkeypatch.setattr(module, "LOST", 1e-12)
    with pytest.raises(ValidationError, match=r"int8.onnx: its outputs are off by .* of their spread"):
        quantise(source, tmp_path / "int8.onnx", INPUTS, where="int8.onnx")


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(SubpruneError, match=r"int8.onnx: onnxruntime cannot quantise it \(.*\); leave --quantize out"):
        quantise(tmp_path / "no.onnx", tmp_path / "int8.onnx", INPUTS, where="int8.onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(network(), "net.pt")
    written(tmp_path / "net.onnx", network())
    with torch.no_grad():
        np.savez("xy.npz", x=INPUTS.numpy(), y=network()(INPUTS).argmax(1).numpy())
    return tmp_path


@pytest.mark.parametrize("model", ["net.pt", "net.onnx"])
def test_every_stage_is_reported(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--calib", "xy.npz", "--eval", "xy.npz")
    code = main([model, "--ratio", "2", *data, "--quantize", "int8", "-o", "a.onnx", "--json", "r.json"])
    assert code == 0, capsys.readouterr().err
    stages = json.loads((folder / "r.json").read_text())["stages"]
    assert [(row["name"], row["path"]) for row in stages] == [
        ("original", None),
        ("pruned", "a.onnx"),
        ("int8", "a-int8.onnx"),
    ]
    assert [row["bytes"] for row in stages[1:]] == [(folder / row["path"]).stat().st_size for row in stages[1:]]
    assert stages[0]["bytes"] > stages[1]["bytes"] > stages[2]["bytes"]
    assert all(row["latency_ms"] > 0 for row in stages)
    for row in stages:
        assert row["agreement"] == row["accuracy"]  # the labels are the original's word
        if row["path"]:
            (found,) = outputs_of(folder / row["path"], INPUTS)
            same = (found.argmax(1) == np.load("xy.npz")["y"]).mean()
            assert row["agreement"] == pytest.approx(same)
    assert "wrote a-int8.onnx" in capsys.readouterr().out
    assert latencies_ms(["a-int8.onnx"], INPUTS[:1], seconds=0.01)[0] > 0


def test_a_failure_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LOST", 0.0)
    before = sorted(folder.iterdir())
    assert main(["net.pt", "--ratio", "2", "--calib", "xy.npz", "--quantize", "int8", "-o", "a.onnx"]) == 1
    assert "a-int8.onnx: its outputs are off" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--quantize", "int8", "-o", "a.pt"), "--quantize needs an output that ends in .onnx"),
        (("--quantize", "int4", "-o", "a.onnx"), "'int4' is not"),
        (("--quantize", "int8", "-o", "a.onnx", "-o", "a-int8.onnx"), "a-int8.onnx: is named twice"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_options_that_make_no_sense(options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["net.pt", "--ratio", "2", "--calib", "xy.npz", *options]) == 2
    assert says in capsys.readouterr().err
