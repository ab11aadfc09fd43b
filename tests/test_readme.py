"""What README tells people to do works: its commands, its Python, its options, its links."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from subprune_fx.cli.main import main
from subprune_fx.cli.options import command


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def extractor(repository: Path) -> dict[str, Any]:
    """What `.ci/run` reads the README with."""
    return runpy.run_path(str(repository / ".ci" / "readme_commands.py"))


@pytest.fixture(scope="module")
def commands(extractor: dict[str, Any]) -> Callable[[str], list[str]]:
    found: Callable[[str], list[str]] = extractor["commands"]
    return found


@pytest.fixture
def workplace(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository's root to a reader of the README and takes what is written."""
    (tmp_path / "examples").symlink_to(repository / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_two_commands_set_up_one_runs_one_tests(commands: Callable[[str], list[str]]) -> None:
    assert [len(commands(kind)) for kind in ("setup", "run", "test")] == [2, 1, 1]
    assert commands("test") == ["pytest -n auto"]


def test_main_command_writes_a_model(commands: Callable[[str], list[str]], workplace: Path) -> None:
    program, *arguments = shlex.split(commands("run")[0])
    path = shutil.which(program, path=Path(sys.executable).parent)
    assert path is not None
    found = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "accuracy" in found.stdout
    model = onnx.load(workplace / arguments[arguments.index("-o") + 1])
    weights = sum(int(onnx.numpy_helper.to_array(tensor).size) for tensor in model.graph.initializer)
    assert weights * 8 <= 60_074 * 1.01  # 1 %: shape constants are initialisers too


@pytest.mark.usefixtures("workplace")
def test_python_runs_from_top_to_bottom(extractor: dict[str, Any], text: str) -> None:
    namespace: dict[str, Any] = {}
    blocks = extractor["fences"]("python", text)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    small = sum(parameter.numel() for parameter in namespace["small"].parameters())
    passed = sum(parameter.numel() for parameter in namespace["result"].graph_module.parameters())
    assert small * 8 <= 60_074
    assert passed == small


SHOWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Sequential):
    def __init__(self):
        first = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

train_loader = DataLoader(TensorDataset(torch.rand(40, 3, 16, 16), torch.arange(40) % 3), batch_size=8)
"""
ELSEWHERE = {
    "pip": ".ci/run",
    "sphinx-build": "tests/test_docs.py",
    "python": "examples/benchmarks",  # minutes to days; tests/test_benchmarks.py has their parts
}
"""What is run where, of the commands that are shown and not run here."""


def test_shown_commands_run(
    extractor: dict[str, Any], text: str, repository: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a network and images of the names that they use."""
    (workplace / "net.py").write_text(SHOWN, encoding="utf-8")
    net = runpy.run_path("net.py")["Net"]().eval()
    x, photo = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 224, 224)
    torch.save(net.state_dict(), "weights.pt")
    torch.export.save(torch.export.export(net, (x,)), "model.pt2")
    torch.export.save(torch.export.export(net, (photo,)), "resnet50.pt2")
    torch.onnx.export(net, (x,), "model.onnx", dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False)
    np.savez("inputs.npz", x=torch.rand(40, 3, 16, 16).numpy())
    for number in range(12):
        for folder in ("photos", f"val/{number % 3}"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (240, 260, 3), np.uint8)).save(
                f"{folder}/{number}.png"
            )
    ran = 0
    for block in extractor["fences"]("console", text):
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            if program == "subprune-compile":
                assert main(arguments) == 0, capsys.readouterr().err
                ran += 1
            else:
                assert (repository / ELSEWHERE[program]).exists()
                scripts = [word for word in arguments if word.endswith(".py")]
                assert all((repository / script).exists() for script in scripts)
    assert ran == 5


def test_options_in_the_table_exist_and_all_are_in_the_reference(repository: Path, text: str) -> None:
    reference = (repository / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    real = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
    defaults = {"--reweight", "--intercept", "--feedback"}  # on unless their --no- form is given
    assert options(reference) == (real | {"-h", "--help"}) - defaults
    assert options(text)
    assert options(text) < options(reference)


def options(text: str) -> set[str]:
    """Those in the first column of a table."""
    rows = re.findall(r"^\| (`-.+?) \|", text, re.MULTILINE)
    return {option for row in rows for option in re.findall(r"(?<=`)(--?[a-z][a-z-]*)", row)}


def test_links_to_files_exist(repository: Path, text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (repository / link).exists()] == []


def test_ci_is_executable_and_parses(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
