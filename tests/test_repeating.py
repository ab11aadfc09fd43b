"""Plans do again what they did: to the same network, to a fresh one, to the user's own class, from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import subprune_fx
from subprune_fx import Plan, SubpruneError
from subprune_fx.cli.main import main
from subprune_fx.passes.quantise import outputs_of

INPUTS = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A residual addition, a convolution without bias that gets one, and a size written in the code of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.back = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.head, self.out = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.back(torch.relu(self.inner(x))))
        found: Tensor = self.out(torch.relu(self.head(x.mean((2, 3)))))
        return found


class Written(Net):
    """The number of channels in the code."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.back(torch.relu(self.inner(x))))
        found: Tensor = self.out(torch.relu(self.head(x.view(-1, 12, 64).mean(2))))
        return found


def network(kind: type[Net] = Net, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return kind().eval()


def equal(left: nn.Module, right: nn.Module) -> None:
    with torch.no_grad():
        np.testing.assert_array_equal(left(INPUTS), right(INPUTS))


@pytest.mark.parametrize("kind", [Net, Written])
def test_a_plan_gives_the_same_network_and_figures_again(kind: type[Net], tmp_path: Path) -> None:
    y = torch.arange(40) % 4
    first = subprune_fx.prune(network(kind), INPUTS, ratio=2.5, evaluation=(INPUTS, y))
    first.plan.save(tmp_path / "net.plan")
    again = subprune_fx.repeat(network(kind), Plan.load(tmp_path / "net.plan"), INPUTS, evaluation=(INPUTS, y))
    equal(first.module, again.module)
    for name in ("before", "after", "frozen", "agreement", "accuracy_before", "accuracy_after"):
        assert getattr(first.report, name) == getattr(again.report, name), name
    rows = [[(row.name, row.channels, row.kept, row.consumers) for row in r.report.groups] for r in (first, again)]
    assert rows[0] == rows[1]
    assert again.report.ratio == again.report.achieved >= 2.5


def test_on_other_weights_it_cuts_those(tmp_path: Path) -> None:
    first = subprune_fx.prune(network(), INPUTS, ratio=2.5)
    other = subprune_fx.repeat(network(seed=1), first.plan, INPUTS)
    shapes = [{name: value.shape for name, value in p.module.state_dict().items()} for p in (first, other)]
    assert shapes[0] == shapes[1]
    cut = next(item for item in first.plan.slices if item.parameter not in first.plan.values)
    own = network(seed=1).state_dict()[cut.parameter].index_select(cut.axis, torch.tensor(cut.index))
    np.testing.assert_array_equal(other.module.state_dict()[cut.parameter], own)


def test_layers_that_were_left_alone_are_no_rows() -> None:
    first = subprune_fx.prune(network(), INPUTS, ratio=1.2, only=["inner"])
    again = subprune_fx.repeat(network(), first.plan, INPUTS)
    assert [row.name for row in again.report.groups] == ["inner"]
    equal(first.module, again.module)


def test_another_network_is_refused() -> None:
    plan = subprune_fx.prune(network(), INPUTS, ratio=2).plan
    wide = network()
    wide.head, wide.out = nn.Linear(12, 30), nn.Linear(30, 4)
    with pytest.raises(SubpruneError, match=r"head.weight has shape \(30, 12\), the plan was made for \(20, 12\)"):
        subprune_fx.repeat(wide, plan, INPUTS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        np.savez("xy.npz", x=INPUTS.numpy(), y=network()(INPUTS).argmax(1).numpy())
    program = torch.export.export(network(), (INPUTS[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, "net.pt2")
    torch.onnx.export(program, dynamo=True, verbose=False).save("net.onnx")  # type: ignore[union-attr]
    return tmp_path


@pytest.mark.parametrize("model", ["net.pt2", "net.onnx"])
def test_files_from_the_command_line_go_back_in(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--calib", "xy.npz")
    assert main([model, "--ratio", "2.5", *data, "-o", "a.onnx", "-o", "a.plan"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    code = main([model, "--plan", "a.plan", *data, "--eval", "xy.npz", "-o", "b.onnx", "--json", "r.json"])
    assert code == 0, capsys.readouterr().err
    (first,), (again,) = (outputs_of(folder / name, INPUTS) for name in ("a.onnx", "b.onnx"))
    np.testing.assert_array_equal(first, again)
    report = json.loads((folder / "r.json").read_text())
    assert report["agreement"] == report["accuracy_after"]
    assert report["achieved"] >= 2.5
    assert capsys.readouterr().err == ""


def test_plan_and_weights_go_into_the_users_own_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del folder
    torch.save(network().state_dict(), "net.pt")
    here = str(Path(__file__).parent)
    Path("net.py").write_text(f"import sys\nsys.path.append({here!r})\nfrom test_repeating import Net\n")
    outputs = ("-o", "a.plan", "-o", "a.safetensors", "-o", "a.onnx")
    code = main(["net.pt", "--arch", "net.py:Net", "--ratio", "2.5", "--calib", "xy.npz", *outputs])
    assert code == 0, capsys.readouterr().err
    own = subprune_fx.apply(Plan.load("a.plan"), network(seed=3))
    own.load_state_dict(load_file("a.safetensors"))
    assert type(own) is Net
    (wanted,) = outputs_of(Path("a.onnx"), INPUTS)
    with torch.no_grad():
        np.testing.assert_allclose(own.eval()(INPUTS), wanted, atol=1e-4 * np.abs(wanted).max())  # two runtimes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plan", "gone.plan"), "gone.plan: no such file"),
        (("--plan", "xy.npz"), "xy.npz: not a plan file"),
        (("--plan", "a.plan", "--ratio", "2"), "--ratio and --plan exclude each other"),
        (("--plan", "a.plan", "--layers", "a.toml"), "--plan and --layers exclude each other"),
        (
            ("--plan", "a.plan", "--align", "8", "--no-reweight"),
            "decided already; leave --align and --reweight",
        ),
        (("--plan", "a.plan", "-o", "a.plan"), "is an input as well as an output"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_plans_that_make_no_sense(options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["net.pt2", "--calib", "xy.npz", "-o", "b.onnx", *options]) == 2
    assert says in capsys.readouterr().err
