"""Dependencies point one way: cli, then the front door, then passes, then the core; and inside the core too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "subprune_fx"

MAY_IMPORT: dict[str, set[str]] = {
    "numerics": set(),
    "graph": set(),
    "selectors": {"numerics"},
    "frontends": {"graph", "numerics"},
    "formats": {"frontends"},
    "passes": {"formats", "frontends", "graph", "numerics", "selectors"},
}
"""By subpackage, the others that it may import; only `cli` and the modules of `subprune_fx` itself import `passes`."""

FOREIGN: dict[str, tuple[str, ...]] = {
    "graph": ("onnx", "onnxruntime", "onnx_graphsurgeon", "torch"),
    "numerics": ("onnx", "onnxruntime", "onnx_graphsurgeon", "torch.fx", "torch.export"),
    "selectors": ("onnx", "onnxruntime", "onnx_graphsurgeon", "torch.fx", "torch.export"),
}
"""By subpackage, libraries that it must not know."""


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_those_below_it(repository: Path, layer: str) -> None:
    layers = {*MAY_IMPORT, "cli"}
    found = [(path, name.split(".")[1]) for path, name in imported(repository, layer) if name.startswith(f"{PACKAGE}.")]
    above = {(path, other) for path, other in found if other in layers - {layer} - MAY_IMPORT[layer]}
    assert above == set()


@pytest.mark.parametrize("layer", FOREIGN)
def test_a_layer_does_not_know_a_framework(repository: Path, layer: str) -> None:
    names = imported(repository, layer)
    known = {(path, name) for path, name in names for other in FOREIGN[layer] if f"{name}.".startswith(f"{other}.")}
    assert known == set()


def imported(repository: Path, layer: str) -> Iterator[tuple[str, str]]:
    """Files of a subpackage and all that they import, also inside functions: `torch.fx` of `from torch import fx`."""
    for path in (repository / PACKAGE / layer).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield from ((path.name, f"{node.module}.{alias.name}") for alias in node.names)
