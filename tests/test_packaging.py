"""The unusual layout holds: top-level passes/ and cli/ are installed as subpackages, and only as those."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BESIDE = (".ci", "docs", "examples", "tests")
"""Folders of the source archive that are not installed."""
MAPPED = ("cli", "passes")

OTHER = {"subprune_fx/py.typed", "subprune_fx/formats/report.html.jinja"}
OPTIONAL = {"PIL", "timm", "torchvision"}  # extras: images, presets, classes that are allowed in pickles


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def modules(repository: Path) -> set[str]:
    """Paths of all modules as they are imported, `subprune_fx/passes/export.py`; symlinks followed."""
    root = repository / "subprune_fx"
    return {path.relative_to(repository).as_posix() for path in walk(root) if path.suffix == ".py"}


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


@pytest.mark.parametrize("name", MAPPED)
def test_symlinks_resolve_to_the_top_level_folder(repository: Path, name: str) -> None:
    link = repository / "subprune_fx" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)  # relative, so that it holds in every clone
    assert link.resolve() == repository / name


def test_every_package_is_listed(project: dict[str, Any], modules: set[str]) -> None:
    # an unlisted one is silently absent from the wheel
    folders = {Path(module).parent.as_posix().replace("/", ".") for module in modules}
    assert set(project["tool"]["setuptools"]["packages"]) == folders
    assert all(f"{folder.replace('.', '/')}/__init__.py" in modules for folder in folders)


@pytest.mark.parametrize("name", MAPPED)
def test_top_level_import_is_refused(repository: Path, name: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert f"ImportError: import subprune_fx.{name}, not {name}" in found.stderr


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `python -m build` does: a source archive of the tree, and the wheel of that archive."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(repository / name, tree)
    for name in ("subprune_fx", *MAPPED, *BESIDE):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, tree / name, symlinks=True, ignore=ignore)
    _build("sdist", tree, out)
    (source,) = out.iterdir()
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
        assert {"CHANGELOG.md", "tests/support.py", "docs/conf.py", "examples/lenet/lenet_mnist.pt"} <= inside
        archive.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    _build("wheel", unpacked, out)
    (found,) = out.glob("*.whl")
    return found


def _build(kind: str, tree: Path, out: Path) -> None:
    code = f"from setuptools.build_meta import build_{kind} as build; build({str(out)!r})"
    found = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_wheel_holds_every_module_and_nothing_else(wheel: Path, modules: set[str]) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == modules | OTHER
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_installed_elsewhere_the_command_runs_from_any_folder(
    wheel: Path, project: dict[str, Any], tmp_path: Path
) -> None:
    site, folder = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    torch.save(torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)), folder / "net.pt")

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-P", *arguments]
        found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout

    where = run("-c", "import subprune_fx, subprune_fx.passes as p; print(subprune_fx.__file__, p.__file__)")
    assert where.split() == [str(site / "subprune_fx" / part) for part in ("__init__.py", "passes/__init__.py")]
    command = str(site / "bin" / "subprune-compile")
    assert run(command, "--version").startswith(f"subprune-compile {project['project']['version']}")
    run(command, "net.pt", "--ratio", "1.5", "-o", "small.onnx")
    assert (folder / "small.onnx").exists()


def test_command_is_installed_and_says_the_version(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    assert importlib.metadata.version("subprune_fx") == version
    command = shutil.which("subprune-compile", path=Path(sys.executable).parent)
    assert command is not None
    found = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"subprune-compile {version}\n"


def test_changelog_names_the_version_or_is_unreleased(repository: Path, project: dict[str, Any]) -> None:
    newest = re.search(r"^## \[(.+?)\]", (repository / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] in {"Unreleased", project["project"]["version"]}


def test_dependencies_are_what_is_imported(repository: Path, project: dict[str, Any], modules: set[str]) -> None:
    declared = {re.split(r"[<>=!~ \[;]", line)[0].replace("-", "_") for line in project["project"]["dependencies"]}
    imported = set[str]()
    for module in modules:
        imported |= imports((repository / module).read_text(encoding="utf-8"))
    imported -= {"subprune_fx", *sys.stdlib_module_names}
    assert imported - OPTIONAL == declared


def imports(source: str) -> set[str]:
    """Top-level names of everything a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", ["sympy", "onnxscript", "torch._dynamo", "matplotlib"])
def test_slow_imports_wait_until_they_are_needed(name: str) -> None:
    code = f"import sys, subprune_fx; subprune_fx.prune; sys.exit({name!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
