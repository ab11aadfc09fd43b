"""The user's own network class, named by `--arch`, and filling it from a state dict."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.weights import check_weights

HOW_TO_NAME = "write FILE.py:NAME or package.module:NAME"
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module")
PREFIXES = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile


def definitions(arch: str, option: str = "--arch") -> tuple[ModuleType, str]:
    """Import what `--arch` or another option names. This runs the user's own file: naming it is the consent.

    Args:
        arch: `FILE.py:NAME` or `package.module:NAME`.
        option: Which option, for errors.

    Returns:
        The module and the name in it.

    Raises:
        SubpruneError: The text has no such form, the file is missing, it fails to import, or it lacks the
            name.
    """
    source, colon, name = arch.rpartition(":")
    where = f"{option} {arch}"
    if not colon or not source or not name.isidentifier():
        raise SubpruneError("names nothing", where=where, remedy=HOW_TO_NAME)
    read = _import_file if source.endswith(".py") else _import_module
    try:
        module = read(source, where)
    except SubpruneError:
        raise
    except ModuleNotFoundError as error:
        raise SubpruneError(f"cannot be imported: {error}", where=where, remedy=HOW_TO_NAME) from error
    except (Exception, SystemExit) as error:
        what = f"fails to import: {type(error).__name__}: {error}"
        raise SubpruneError(what, where=where, remedy="check that the file runs by itself") from error
    if not hasattr(module, name):
        known = _networks(module) if option == "--arch" else _few([key for key in vars(module) if key[0] != "_"])
        raise SubpruneError(f"has no {name!r} (it has: {known})", where=where, remedy=HOW_TO_NAME)
    return module, name


def build(module: ModuleType, name: str, where: str) -> nn.Module:
    """The network that `--arch` names, with its initial weights.

    Args:
        module: The user's module.
        name: A class or function without required arguments, or an instance.
        where: For errors.

    Returns:
        The network.

    Raises:
        SubpruneError: Calling it fails, or gives something that is no `nn.Module`.
    """
    value = getattr(module, name)
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        what = f"{name!r} is {type(value).__name__}, not a network"
        raise SubpruneError(what, where=where, remedy="name a class or function that returns the network")
    try:
        network = value()
    except Exception as error:
        what = f"{name}() fails: {type(error).__name__}: {error}"
        raise SubpruneError(what, where=where, remedy="name a function that takes no arguments") from error
    if not isinstance(network, nn.Module):
        what = f"{name}() returned {type(network).__name__}, not a network"
        raise SubpruneError(what, where=where, remedy="name a class or function that returns the network")
    return network


def unwrap(content: Any) -> Any:
    """The network or state dict inside a checkpoint: `{'epoch': ..., 'state_dict': {...}}` and the like.

    Args:
        content: What the file held.

    Returns:
        The innermost value under one of `CONTAINERS`, or `content` itself.
    """
    for _ in range(4):
        if not isinstance(content, Mapping) or is_state_dict(content):
            return content
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping | nn.Module)]
        if not inner:
            return content
        content = inner[0]
    return content


def is_state_dict(content: Any) -> bool:
    """Whether this maps names to tensors, and to nothing else."""
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def fill(network: nn.Module, state: Mapping[str, Tensor], where: str, arch: str) -> nn.Module:
    """Load a state dict, all of it.

    Half precision is widened to float32; the prefixes of `nn.DataParallel` and `torch.compile` are dropped.

    Args:
        network: Built by `build`.
        state: Name -> tensor.
        where: The state dict's file.
        arch: What `--arch` said.

    Returns:
        The network.

    Raises:
        SubpruneError: Keys are missing or unexpected, or shapes differ.
    """
    check_weights(state.values(), where)
    expected = network.state_dict()
    state = {key: _single(value) for key, value in _unwrapped(state, expected).items()}
    faults = {
        "missing": [key for key in expected if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in expected],
        "other shape": [key for key in expected if key in state and _shape(expected[key]) != _shape(state[key])],
    }
    said = "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in faults.items() if keys)
    if said:
        raise SubpruneError(f"does not fit --arch {arch}: {said}", where=where, remedy="name the network it came from")
    try:
        with torch.no_grad():
            network.load_state_dict(state, strict=True)
    except Exception as error:
        what = f"does not fit --arch {arch}: {str(error)[:200]}"
        raise SubpruneError(what, where=where, remedy="name the network it came from") from error
    return network


def _unwrapped(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """A state dict without prefixes that all of its keys have, in any order, as long as that makes more of them fit."""
    forms = [state]
    while prefix := next(
        (prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in forms[-1])), ""
    ):
        forms.append({key.removeprefix(prefix): value for key, value in forms[-1].items()})
    return max(reversed(forms), key=lambda form: len(form.keys() & expected.keys()))


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _import_file(source: str, where: str) -> ModuleType:
    path = Path(source).expanduser()
    if not path.is_file():
        raise SubpruneError("no such file", where=where, remedy=HOW_TO_NAME)
    name = (
        path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_subprune_arch_{abs(hash(path))}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SubpruneError("cannot be imported", where=where, remedy=HOW_TO_NAME)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their classes up there
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE.py` does: its siblings can be imported
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        sys.path.pop(0)
    return module


def _import_module(source: str, where: str) -> ModuleType:
    del where
    # As `python -m` does. A console script's own path has its folder there instead.
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(source)
    finally:
        sys.path.pop(0)


def _networks(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    return _few(own) if own else "no network classes"


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "shape", ()))


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
