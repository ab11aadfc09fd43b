"""PyTorch checkpoints (`torch.save`), unpickled without running anything that the file brings.

A pickle is a program: it names classes and functions, and calls them. `torch.load(weights_only=True)`
interprets it with an allow-list. Here the list is lengthened, for one load, by those classes *this* file
names that are plain layers: `nn.Module` subclasses defined by torch.nn or torchvision, and a few pure
activation functions. Their constructors and `__setstate__` only build layers. `fx.GraphModule` is never among
them: it unpickles by executing Python source that lies in the file.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeGuard

import torch
from torch import fx, nn

from subprune_fx.errors import SubpruneError

LAYER_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")
PURE_FUNCTIONS = {
    "torch.nn.functional.relu": torch.nn.functional.relu,  # nn.TransformerEncoderLayer keeps its activation
    "torch._C._nn.gelu": torch.nn.functional.gelu,
    "torch.nn.functional.silu": torch.nn.functional.silu,
    # torchvision's ViT keeps its norm layer so. What it wraps comes from this list too.
    "functools.partial": functools.partial,
}
GRAPH_MODULE = "torch.fx.graph_module."
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of a checkpoint from before torch 1.6

_REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
_HIDDEN = re.compile(r"(?:blocked|unsupported GLOBAL|recognized function|allowlisted|Unsupported class)", re.IGNORECASE)


def load_pickle(data: bytes, where: str, *, trust: bool, definitions: ModuleType | None = None) -> Any:
    """The object in a `torch.save` file, tensors on the CPU.

    Args:
        data: The whole file.
        where: Its name, for errors.
        trust: Unpickle without restrictions; the file may run any code.
        definitions: The user's own module (`--arch`). Layer classes it defines are allowed, and found even
            where the checkpoint was written by a script in which they were called `__main__.Net`.

    Returns:
        The object.

    Raises:
        SubpruneError: Damaged, or it names classes or functions that are not on the allow-list.
    """
    reader = _load_trusted if trust else _load_safely
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on pickle protocols and old storages
        return reader(data, where, definitions)


def _load_safely(data: bytes, where: str, definitions: ModuleType | None) -> Any:
    allowed: dict[str, Any] = {}
    names = _unsafe_globals(data, where)
    while True:
        found = {name: _harmless(name, definitions) for name in names}
        refused = sorted(name for name, value in found.items() if value is None)
        if refused:
            raise _refusal(refused, where)
        allowed.update(found)
        try:
            with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            # Checkpoints from before torch 1.6 cannot be listed beforehand: they name one global per attempt.
            names = [name for name in _REFUSED.findall(str(error)) if name not in allowed]
            if not names:
                raise _unreadable(error, where) from error


def _load_trusted(data: bytes, where: str, definitions: ModuleType | None) -> Any:
    try:
        return torch.load(
            io.BytesIO(data),
            map_location="cpu",
            weights_only=False,
            pickle_module=_pickle_module(definitions),
        )
    except (AttributeError, ModuleNotFoundError) as error:
        what = f"its classes cannot be imported here ({_brief(error)})"
        raise SubpruneError(what, where=where, remedy="add --arch FILE.py:NAME, the file that defines them") from error
    except Exception as error:
        raise _unreadable(error, where) from error


def _unsafe_globals(data: bytes, where: str) -> list[str]:
    """What the pickle names beyond torch's own allow-list; empty for the legacy format, unlistable."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return []
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception as error:
        raise _unreadable(error, where) from error


def _harmless(name: str, definitions: ModuleType | None) -> Any | None:
    """The allowed object of this name; None where there is none."""
    if name in PURE_FUNCTIONS:
        return PURE_FUNCTIONS[name]
    module, _, attribute = name.rpartition(".")
    own = getattr(definitions, attribute, None)
    if _is_layer(own):
        return own
    if not name.startswith(LAYER_PACKAGES):
        return None
    try:
        value = getattr(importlib.import_module(module), attribute, None)
    except Exception:  # noqa: BLE001 - torchvision missing, or broken in this environment
        return None
    # A class that a module merely imported is not the one that was named.
    return value if _is_layer(value) and f"{value.__module__}.{value.__qualname__}" == name else None


def _is_layer(value: Any) -> TypeGuard[type[nn.Module]]:
    return isinstance(value, type) and issubclass(value, nn.Module) and not issubclass(value, fx.GraphModule)


def _refusal(names: Iterable[str], where: str) -> SubpruneError:
    names = list(names)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if any(name.startswith(GRAPH_MODULE) for name in names):
        what = f"holds an fx.GraphModule, which runs Python code from the file when loaded ({shown})"
        return SubpruneError(what, where=where, remedy="pass --trust if you trust its origin, or save a .pt2 instead")
    what = f"loading it would run code that is not torch's own: {shown}"
    remedy = "pass --arch FILE.py:NAME (your file that defines the network), or --trust if you trust its origin"
    return SubpruneError(what, where=where, remedy=remedy)


def _unreadable(error: Exception, where: str) -> SubpruneError:
    if isinstance(error, MemoryError):
        return SubpruneError("does not fit in memory, or is damaged", where=where)
    message = str(error)
    if isinstance(error, pickle.UnpicklingError) and _HIDDEN.search(message):
        what = f"loading it would run code ({_brief(error)})"
        return SubpruneError(what, where=where, remedy="pass --trust if you trust its origin")
    if "persistent_load of storage" in message:  # only state dicts of that format can be
        what = "holds a network in the format from before torch 1.6, which cannot be loaded safely"
        return SubpruneError(what, where=where, remedy="pass --trust if you trust its origin, or save it again")
    if "Unsupported operand" in message:
        what = "is damaged, or was pickled with a protocol that cannot be loaded safely"
        return SubpruneError(what, where=where, remedy="save it again with torch.save(model.state_dict(), path)")
    return SubpruneError("is a damaged or truncated PyTorch checkpoint", where=where, remedy="save or copy it again")


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split("WeightsUnpickler error: ")[-1].split(" Check the documentation")[0].split(" Please ")[0]
    return text if len(text) <= 160 else f"{text[:157]}..."


def _pickle_module(definitions: ModuleType | None) -> Any:
    """`pickle`, with an Unpickler that looks into the user's module for what the file calls `__main__`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            own = getattr(definitions, name, None)
            return own if own is not None and module == "__main__" else super().find_class(module, name)

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    shim = ModuleType("pickle")
    shim.__dict__.update(vars(pickle))
    shim.__dict__.update(Unpickler=Unpickler, load=load)
    return shim
