"""A trained network from a file, without running anything that the file brings.

What a file is, is told from its content. Each format is a row of `FORMATS`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.formats import arch as architectures
from subprune_fx.formats import archive, pickles
from subprune_fx.formats.input_spec import InputSpec, arguments_of
from subprune_fx.formats.onnx_file import load_onnx
from subprune_fx.formats.vetting import RESAVE
from subprune_fx.formats.weights import check_weights, load_weights
from subprune_fx.frontends.onnx_source import source_of

SUPPORTED = "give a .pt/.pth (network or state dict), a .safetensors, a .pt2 (torch.export) or an .onnx file"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A network that came out of a file.

    Attributes:
        module: In eval mode, float32, on the CPU.
        takes: Its inputs, and what the file says of them; empty where nothing is known.
        kind: The format, e.g. `state dict`.
    """

    module: nn.Module
    takes: tuple[InputSpec, ...]
    kind: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that has been read and looked at, and what the user said about it."""

    path: str
    data: bytes
    members: tuple[str, ...]
    arch: str | None
    trust: bool


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of file: how to recognise it, and how to load (or refuse) it."""

    name: str
    recognise: Callable[[Source], bool]
    load: Callable[[Source], Loaded]


def load_model(path: str | os.PathLike[str], *, arch: str | None = None, trust: bool = False) -> Loaded:
    """Load a network for compilation.

    Args:
        path: `.pt`/`.pth` with an `nn.Module`, an `fx.GraphModule` (needs `trust`) or a state dict (needs
            `arch`); `.safetensors` with a state dict; `.pt2` from `torch.export.save`; `.onnx`.
        arch: `FILE.py:NAME` or `package.module:NAME`: the class, function or instance that gives the network.
            It is imported, that is, run.
        trust: Unpickle without restrictions: the file may run any code.

    Returns:
        The network and what the file says about its input.

    Raises:
        SubpruneError: The file is missing, empty, foreign, damaged or not safe to load, a state dict comes
            without `arch` or does not fit it.
    """
    source = _read(Path(path), arch, trust)
    loaded = next(row for row in FORMATS if row.recognise(source)).load(source)
    return dataclasses.replace(loaded, module=_settle(loaded.module, source.path))


def _read(path: Path, arch: str | None, trust: bool) -> Source:
    where = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SubpruneError("no such file", where=where) from error
    except IsADirectoryError as error:
        raise SubpruneError("is a folder, not a network", where=where, remedy=SUPPORTED) from error
    except OSError as error:
        raise SubpruneError(f"cannot be read ({error.strerror})", where=where) from error
    if not data:
        raise SubpruneError("is empty", where=where, remedy=SUPPORTED)
    return Source(where, data, _members(data), arch, trust)


def _members(data: bytes) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive_:
            return tuple(archive_.namelist())
    except Exception:  # noqa: BLE001 - zipfile raises many things on damaged bytes; an unreadable zip has no members
        return ()


def _load_archive(source: Source) -> Loaded:
    if source.arch is not None:
        what = "carries its own network, --arch does not apply"
        raise SubpruneError(what, where=source.path, remedy="leave --arch out")
    program = archive.load_archive(source.data, source.path, trust=source.trust)
    return Loaded(*archive.as_module(program, source.path), "torch.export archive")


def _load_checkpoint(source: Source) -> Loaded:
    named = architectures.definitions(source.arch) if source.arch is not None else None
    own = named[0] if named else None
    content = architectures.unwrap(pickles.load_pickle(source.data, source.path, trust=source.trust, definitions=own))
    row = next(row for row in CONTENTS if row.recognise(content))
    return row.load(content, source, named)


def _load_weights(source: Source) -> Loaded:
    named = architectures.definitions(source.arch) if source.arch is not None else None
    return _from_state(load_weights(source.data, source.path), source, named)


def _load_onnx(source: Source) -> Loaded:
    if source.arch is not None:
        what = "carries its own network, --arch does not apply"
        raise SubpruneError(what, where=source.path, remedy="leave --arch out")
    network = load_onnx(source.data, source.path)
    return Loaded(network.module, network.takes, "ONNX model")


def _from_module(content: Any, source: Source, named: tuple[ModuleType, str] | None) -> Loaded:
    del source, named
    kind = "fx.GraphModule" if isinstance(content, fx.GraphModule) else "nn.Module"
    return Loaded(content, arguments_of(content), kind)


def _from_state(content: Any, source: Source, named: tuple[ModuleType, str] | None) -> Loaded:
    if named is None or source.arch is None:
        what = f"is a state dict ({len(content)} tensors): it has weights but no network"
        raise SubpruneError(what, where=source.path, remedy="add --arch FILE.py:NAME or --arch package.module:NAME")
    network = architectures.build(*named, where=f"--arch {source.arch}")
    filled = architectures.fill(network, content, source.path, source.arch)
    return Loaded(filled, arguments_of(filled), "state dict")


def _from_other(content: Any, source: Source, named: tuple[ModuleType, str] | None) -> Loaded:
    del named
    keys = f" with the keys {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) and content else ""
    what = f"holds a {type(content).__name__}{keys}, neither a network nor a state dict"
    raise SubpruneError(what, where=source.path, remedy="save it with torch.save(model.state_dict(), path)")


@dataclasses.dataclass(frozen=True)
class Content:
    """One kind of object in a checkpoint."""

    recognise: Callable[[Any], bool]
    load: Callable[[Any, Source, tuple[ModuleType, str] | None], Loaded]


CONTENTS = (
    Content(lambda content: isinstance(content, nn.Module), _from_module),
    Content(architectures.is_state_dict, _from_state),
    Content(lambda _: True, _from_other),
)


def _refuse(what: str, remedy: str) -> Callable[[Source], Loaded]:
    def refuse(source: Source) -> Loaded:
        raise SubpruneError(what, where=source.path, remedy=remedy)

    return refuse


def _has(*endings: str) -> Callable[[Source], bool]:
    return lambda source: any(member.endswith(endings) or f"/{member}".endswith(endings) for member in source.members)


def _starts(*magics: bytes) -> Callable[[Source], bool]:
    return lambda source: source.data.startswith(magics)


def _suffix(*suffixes: str) -> Callable[[Source], bool]:
    return lambda source: source.path.lower().endswith(suffixes)


_OLD_ARCHIVE = "is a torch.export archive in the format from before torch 2.8"
_SCRIPT = "is a TorchScript archive, whose layers cannot be changed"
_SCRIPT_REMEDY = "save the original network: torch.save(model.state_dict(), path) with --arch, or torch.export.save"

# In order: the first row that recognises the file has it.
FORMATS = (
    Format("torch.export archive", _has("/archive_format"), _load_archive),
    Format(
        "old torch.export archive",
        _has("/serialized_exported_program.json"),
        _refuse(_OLD_ARCHIVE, RESAVE),
    ),
    Format("TorchScript", _has("/constants.pkl"), _refuse(_SCRIPT, _SCRIPT_REMEDY)),
    Format("checkpoint", _has("/data.pkl"), _load_checkpoint),
    Format("legacy checkpoint", lambda source: pickles.LEGACY_MAGIC in source.data[:16], _load_checkpoint),
    Format("npz", _has(".npy"), _refuse("holds numpy arrays, not a network", SUPPORTED)),
    Format("ONNX model", _suffix(".onnx"), _load_onnx),
    Format("safetensors", lambda source: source.data[8:9] == b"{", _load_weights),
    Format(
        "truncated zip",
        _starts(b"PK\x03\x04"),
        _refuse("is a truncated or foreign zip file", "copy or save it again"),
    ),
    Format("pickle", _starts(b"\x80"), _refuse("is a pickle that torch.save did not write", SUPPORTED)),
    Format("foreign", lambda _: True, _refuse("is not a PyTorch file", SUPPORTED)),
)


def _settle(module: nn.Module, where: str) -> nn.Module:
    """Float32, on the CPU, in evaluation mode; `requires_grad` stays as it is."""
    try:
        check_weights([*module.parameters(), *module.buffers()], where)
        module = module.to(device="cpu").float()
        for part in module.modules():
            part.training = False  # not .eval(): exported modules and some users' own override it
        if not isinstance(module, fx.GraphModule):
            module.eval()
        tensors: list[tuple[str, object]] = [*module.named_parameters(), *module.named_buffers()]
    except SubpruneError:
        raise
    except NotImplementedError as error:  # meta tensors
        raise SubpruneError(
            "its weights are not materialised", where=where, remedy="save it with its weights"
        ) from error
    except Exception as error:
        what = f"holds a damaged network ({type(error).__name__}: {error})"
        raise SubpruneError(what, where=where, remedy="save it again") from error
    infinite = source_of(module) is not None  # attention masks are constants there, not code
    bad = [
        name for name, tensor in tensors if isinstance(tensor, torch.Tensor) and not _finite(tensor, infinite=infinite)
    ]
    if bad:
        what = f"holds NaN or infinite weights ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''})"
        raise SubpruneError(what, where=where, remedy="train or save it again")
    return module


def _finite(tensor: torch.Tensor, *, infinite: bool) -> bool:
    bad = torch.isnan(tensor) if infinite else ~torch.isfinite(tensor)
    return not tensor.is_floating_point() or not bool(bad.any())
