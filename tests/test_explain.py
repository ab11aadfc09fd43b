"""`--explain` and `subprune_fx.explain`: text and drawings of the dependency graph."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.cli.main import main
from subprune_fx.errors import SubpruneError
from subprune_fx.formats import drawing
from subprune_fx.formats.drawing import DRAWINGS


class Net(nn.Module):
    """A residual stream, and an op that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.back = nn.Conv2d(4, 6, 3, padding=1)
        self.odd = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head(self.odd(x).mean((2, 3)).renorm(2, 0, 5.0))


TEXT = """\
Net: 2 groups of channels can be pruned

stem: 6 channels
  made by     stem, back
  followed by norm
  read by     inner, odd

inner: 4 channels
  made by     inner
  read by     back

7 channels stay
  odd: 5, Tensor.renorm is not in the op table
  head: 2, it is an output of the network"""


def test_text() -> None:
    assert str(subprune_fx.explain(Net(), torch.randn(2, 3, 8, 8))) == TEXT


def test_nothing_to_prune_is_explained_too() -> None:
    found = subprune_fx.explain(nn.Linear(4, 3), torch.randn(2, 4))
    assert found.groups == ()
    assert [row.reason for row in found.frozen] == ["it is an output of the network"]


@pytest.mark.parametrize("suffix", DRAWINGS)
def test_drawings_name_every_layer_and_need_nothing_else(suffix: str, tmp_path: Path) -> None:
    found = subprune_fx.explain(Net(), torch.randn(2, 3, 8, 8))
    found.save(tmp_path / f"graph{suffix}")
    text = (tmp_path / f"graph{suffix}").read_text(encoding="utf-8")
    assert all(name in text for name in ("stem", "norm", "inner", "back", "odd", "head", "not in the op table"))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_svg_is_one() -> None:
    found = subprune_fx.explain(Net(), torch.randn(2, 3, 8, 8))
    odd = subprune_fx.Explanation('<&"', found.groups, found.frozen)
    root = ET.fromstring(DRAWINGS[".svg"](odd))
    assert root.tag.endswith("svg")
    assert sum(1 for box in root.iter() if box.tag.endswith("rect")) == 1 + 3 * len(found.groups) + 1


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubpruneError, match=r"\.png"):
        subprune_fx.explain(Net(), torch.randn(2, 3, 8, 8)).save(tmp_path / "graph.png")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    lenet = repository / "examples" / "lenet"
    arguments = [str(lenet / "lenet_mnist.pt"), "--arch", f"{lenet / 'lenet.py'}:LeNet", "--input-shape", "1,1,28,28"]
    assert main([*arguments, "--explain", "-o", str(tmp_path / "graph.html")]) == 0
    assert "LeNet: 4 groups of channels can be pruned" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "graph.html").read_text(encoding="utf-8")
    assert main(arguments) == 2
    assert "--ratio" in capsys.readouterr().err


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the command for `Net` in a folder that is entered."""
    monkeypatch.chdir(tmp_path)
    network, x = Net().eval(), torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), "net.pt2")
    return ["net.pt2", "--explain"]


def test_the_command_leaves_out_what_it_is_told_to(net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*net, "--skip", "stem"]) == 0
    said = capsys.readouterr().out
    assert "net.pt2: 1 group of channels can be pruned" in said
    assert "stem: 6, you asked to leave it alone" in said
    assert main([*net, "--only", "gone"]) == 2
    assert "no prunable layer is called 'gone'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "says"),
    [("b.png", "'.png' is no drawing"), ("gone/b.svg", "gone does not exist"), ("./a.svg", "named twice")],
)
def test_all_is_drawn_or_nothing(last: str, says: str, net: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*net, "-o", "a.svg", "-o", last]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["net.pt2"]
    assert main([*net, "--calib", "x.svg", "-o", "x.svg"]) == 2
    assert "x.svg: is an input as well as an output" in capsys.readouterr().err
    assert main([*net, "-o", "a.svg", "-o", "b.dot", "-q"]) == 0
    assert {path.name for path in Path().iterdir()} == {"net.pt2", "a.svg", "b.dot"}


def test_a_drawing_that_fails_leaves_the_others_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "DRAWINGS", {**DRAWINGS, ".dot": fail})
    found = subprune_fx.explain(Net(), torch.randn(2, 3, 8, 8))
    with pytest.raises(SubpruneError, match=r"b\.dot: cannot be written \(No space left on device\)"):
        found.save(tmp_path / "a.svg", tmp_path / "b.dot")
    assert not [*tmp_path.iterdir()]


def test_an_archive_has_the_names_of_the_network() -> None:
    """torch.export leaves functions; what they read belongs to layers."""
    x = torch.randn(2, 3, 8, 8)
    archive = torch.export.export(Net().eval(), (x,)).module()
    first, *alike = str(subprune_fx.explain(Net().eval(), x)).splitlines()
    assert first.startswith("Net: ")
    found = str(subprune_fx.explain(archive, x)).replace("aten.renorm", "Tensor.renorm")
    assert found.splitlines()[1:] == alike


class Logarithm(nn.Module):
    """Undefined for what is negative, as some of what is made up is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x.log()).relu())


def test_outputs_that_are_undefined_hide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, x = Logarithm().eval(), torch.rand(2, 4) + 1
    found = str(subprune_fx.explain(net, -x))
    assert "first: 8 channels" in found
    assert found == str(subprune_fx.explain(net, x))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert main([str(tmp_path / "net.pt2"), "--explain"]) == 0
    assert "first: 8 channels" in capsys.readouterr().out
    with pytest.raises(SubpruneError, match="its outputs are NaN"):
        subprune_fx.prune(net, -x, keep=0.5)
