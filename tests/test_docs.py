"""What the documentation tells people to do works: every command and every line of Python, page by page."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from subprune_fx.cli.main import main

PAGES = Path(__file__).resolve().parents[1] / "docs"
NAMES = [str(path.relative_to(PAGES)) for path in sorted(PAGES.rglob("*.md"))]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fence that is to be run, in order; `console` ones are only shown."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


RUNNABLE = [name for name in NAMES if blocks((PAGES / name).read_text(encoding="utf-8"))]


@pytest.fixture
def workplace(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder but for the examples, entered."""
    (tmp_path / "examples").symlink_to(repository / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in {"examples", "my_data", "lenet"}]:
        del sys.modules[name]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_a_page_says_works(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    for language, content in blocks((PAGES / name).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(content, name, "exec"), namespace)
            continue
        for command in content.replace("\\\n", " ").strip().splitlines():
            program, *arguments = shlex.split(command, comments=True)
            assert program == "subprune-compile"  # as a process of its own it is tested with README's
            assert main(arguments) == 0, capsys.readouterr().err


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^((?:how-to|reference)/\S+)$", (PAGES / "index.md").read_text("utf-8"), re.MULTILINE)
    assert {f"{name}.md" for name in listed} | {"index.md"} == set(NAMES)


def test_links_lead_somewhere() -> None:
    for name in NAMES:
        links = re.findall(r"\]\(([^)#]+?)(?:#.*?)?\)", (PAGES / name).read_text(encoding="utf-8"))
        for link in links:
            assert link.startswith("https://") or (PAGES / name).parent.joinpath(link).exists(), (name, link)


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="pip install -e '.[docs]'")
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    folders = [str(PAGES), str(tmp_path / "site")]
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(tmp_path / "trees"), *folders]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    command_page = (tmp_path / "site" / "reference" / "command.html").read_text("utf-8")
    assert "--pareto" in command_page
    assert not re.search("[\u2013\u2014][a-z]", command_page)  # dashes that were two hyphens
    assert "synthetic_inputs" in (tmp_path / "site" / "reference" / "python.html").read_text("utf-8")
