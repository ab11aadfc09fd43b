"""Nothing in a network's file is run: attacks on every way in, each of which would leave a file behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.formats import pickles, vetting
from subprune_fx.formats.load import load_model


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def inputs() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def save_archive(path: Path) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(), (inputs(),), dynamic_shapes=dynamic), path)


class Evil:
    """Pickles as a call of `os.system`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def _edit_archive(path: Path, edit: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> None:
    """Rewrite the records of a `.pt2`."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, edit(name, content))
        for name, content in (extra or {}).items():
            archive.writestr(f"{root}/{name}", content)


def _edit_program(path: Path, old: str, new: str) -> None:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        text = content.decode()
        assert old in text
        return text.replace(old, new).encode()

    _edit_archive(path, edit)


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _sample_inputs(path: Path, canary: Path) -> None:
    evil = _pickled(((Evil(canary),), {}))
    _edit_archive(path, lambda name, content: evil if "sample_inputs" in name else content)


def _pickled_weight(path: Path, canary: Path) -> None:
    evil = _pickled(Evil(canary))

    def edit(name: str, content: bytes) -> bytes:
        if name.endswith("data/weights/weight_0"):
            return evil
        if not name.endswith("weights_config.json"):
            return content
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    _edit_archive(path, edit)


def _custom_object(path: Path, canary: Path) -> None:
    extra = {"data/constants/opaque_obj_0": pickle.dumps(Evil(canary))}
    _edit_archive(path, lambda name, content: content, extra)


def _expression(path: Path, canary: Path) -> None:
    call = f"__import__('os').system('touch {canary}')"
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json")))
    old = next(text for text in _strings(json.loads(program)) if text.startswith("Symbol("))
    _edit_program(path, json.dumps(old), json.dumps(call))


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _operator(path: Path, canary: Path) -> None:
    del canary
    _edit_program(path, '"torch.ops.aten.relu.default"', '"torch.os.system"')


def _file_operator(path: Path, canary: Path) -> None:
    del canary
    _edit_program(path, '"torch.ops.aten.relu.default"', '"torch.ops.aten.from_file.default"')


def _node_name(path: Path, canary: Path) -> None:
    _edit_program(path, '"relu"', json.dumps(f"relu = 1\n    __import__('os').system('touch {canary}')\n    y"))


def _native_code(path: Path, canary: Path) -> None:
    del canary
    _edit_archive(path, lambda name, content: content, {"data/aotinductor/model/model.so": b"\x7fELF"})


ATTACKS = {
    "sample inputs": _sample_inputs,
    "pickled weight": _pickled_weight,
    "custom object": _custom_object,
    "expression": _expression,
    "operator": _operator,
    "file operator": _file_operator,
    "node name": _node_name,
    "native code": _native_code,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_archive_runs_nothing(name: str, tmp_path: Path) -> None:
    path, canary = tmp_path / "net.pt2", tmp_path / "canary"
    save_archive(path)
    ATTACKS[name](path, canary)
    with pytest.raises(SubpruneError, match="--trust"):
        load_model(path)
    assert not canary.exists()


def _guard(program: Any, code: str) -> None:
    program["guards_code"] = [code]


def _stack_trace(program: Any, code: str) -> None:
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"]["stack_trace"] = f'File "a.py", line 1, in forward\n    x\n{code}\n    {code}'


@pytest.mark.parametrize("place", [_guard, _stack_trace])
def test_text_of_an_archive_is_not_run(place: Callable[[Any, str], None], tmp_path: Path) -> None:
    path, canary = tmp_path / "net.pt2", tmp_path / "canary"
    save_archive(path)

    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        place(program, f"__import__('os').system('touch {canary}') == 0")
        return json.dumps(program).encode()

    _edit_archive(path, edit)
    loaded = load_model(path)
    loaded.module(inputs())
    fx.GraphModule(loaded.module, loaded.module.graph)(inputs())  # type: ignore[arg-type]
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["root", "in a state dict", "in a network"])
def test_checkpoint_runs_nothing(zipped: bool, place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    net = network()
    net.extra = Evil(canary)  # type: ignore[assignment]
    content = {
        "root": Evil(canary),
        "in a state dict": {"w": torch.zeros(2), "e": Evil(canary)},
        "in a network": net,
    }
    torch.save(content[place], tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    definition = tmp_path / "net_definition.py"
    definition.write_text("import torch\nNet = torch.nn.Identity\n")
    for option in (None, f"{definition}:Net"):
        with pytest.raises(SubpruneError, match="--trust") as caught:
            load_model(tmp_path / "net.pt", arch=option)
        # Old pickles of whole networks are refused as such, before any class in them is looked at.
        assert "system" in str(caught.value) or "before torch 1.6" in str(caught.value)
    assert not canary.exists()


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for a module of torchvision, which need not be installed."""
    module = ModuleType("torchvision.models.stand_in")

    class Layer(nn.Identity):
        pass

    class Graph(fx.GraphModule):
        pass

    def function() -> None:
        pass

    for item in (Layer, Graph, function):
        item.__module__ = module.__name__
        item.__qualname__ = item.__name__
        setattr(module, item.__name__, item)
    module.__dict__["system"] = os.system
    module.__dict__["Alias"] = nn.Linear
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("torchvision.models.stand_in.Layer", True),
        ("torchvision.models.stand_in.Graph", False),  # an fx.GraphModule unpickles by running source
        ("torchvision.models.stand_in.function", False),
        ("torchvision.models.stand_in.system", False),
        ("torchvision.models.stand_in.Alias", False),
        ("torchvision.models.no_such_module.Layer", False),
        ("torch.nn.modules.linear.Linear", True),
        ("torch.nn.modules.linear.init", False),
        ("torch.nn.modules.module.torch", False),
        ("torch.fx.graph_module.GraphModule", False),
        ("builtins.eval", False),
        ("torch.load", False),
        ("torch.hub.load", False),
    ],
)
def test_only_layers_are_on_the_allow_list(name: str, allowed: bool, vision: ModuleType) -> None:
    del vision
    assert (pickles._harmless(name, None) is not None) == allowed


def test_network_of_torchvision_classes_loads(vision: ModuleType, tmp_path: Path) -> None:
    torch.save(nn.Sequential(vision.Layer(), nn.Linear(3, 2)), tmp_path / "net.pt")
    assert load_model(tmp_path / "net.pt").module(torch.zeros(1, 3)).shape == (1, 2)


def test_functions_of_the_allow_list_have_no_side_effects() -> None:
    """A new row must be argued for here."""
    assert set(pickles.PURE_FUNCTIONS) == {
        "torch.nn.functional.relu",
        "torch.nn.functional.silu",
        "torch._C._nn.gelu",
        "functools.partial",
    }


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s77", True),
        ("Symbol('s77', positive=True, integer=True)", True),
        ("2*s0 + 1", True),
        ("Mul(Integer(2), Symbol('u0'))", True),
        ("Max(1, FloorDiv(s0 - 1, 2))", True),
        ("", False),
        ("__import__('os')", False),
        ("Symbol('__import__(\"os\")')", False),
        ("Integer('__import__(\"os\")')", False),
        ("s0.__class__", False),
        ("(lambda: 0)()", False),
        ("[s0 for s0 in ()]", False),
        ("exec(s0)", False),
        ("S", False),
        ("f's{s0}'", False),
        ("Lambda(s0, s0)", False),
        ("(" * 5000, False),
    ],
)
def test_shape_expressions(text: str, safe: bool) -> None:
    assert vetting._is_expression(text) == safe
