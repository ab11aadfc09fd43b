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

import onnx
import pytest

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
    assert commands("test") == ["pytest"]


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


def test_options_table_is_the_commands(text: str) -> None:
    rows = re.findall(r"^\| (`-.+?) \|", text, re.MULTILINE)
    documented = {option for row in rows for option in re.findall(r"(?<=`)(--?[a-z][a-z-]*)", row)}
    real = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
    defaults = {"--reweight", "--intercept", "--feedback"}  # on unless their --no- form is given
    assert documented == (real | {"-h", "--help"}) - defaults


def test_links_to_files_exist(repository: Path, text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (repository / link).exists()] == []


def test_ci_is_executable_and_parses(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
