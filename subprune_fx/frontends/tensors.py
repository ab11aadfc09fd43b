"""A module's parameters and buffers by qualified name: looked up, replaced, shared with a copy."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import Tensor, nn

from subprune_fx.frontends.computed import duplicate

Module = TypeVar("Module", bound=nn.Module)

Owners = dict[int, list[tuple[nn.Module, str]]]
"""By identity of a tensor, the modules that hold it and the attributes that it is there."""


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied parameters by each of theirs."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name, detached."""
    path, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(path), leaf)
    assert isinstance(found, Tensor)
    return found.detach()


def copied(module: Module, replaced: Collection[str]) -> Module:
    """A copy that, until they are replaced, shares the tensors that will be: they are most of a network."""
    named = named_tensors(module)
    return duplicate(module, {id(named[name]): named[name] for name in replaced if name in named})


def owners(module: nn.Module) -> Owners:
    """Every place where a tensor hangs, by its identity (tied parameters hang in several)."""
    found: Owners = {}
    for child in module.modules():
        for store in (child._parameters, child._buffers):  # noqa: SLF001 - the only list that shows ties
            for name, tensor in store.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((child, name))
    return found


def put(module: nn.Module, places: Owners, name: str, value: Tensor) -> None:
    """Set a parameter or buffer by name, in every place where it hangs; add it if it is new.

    Parameters stay parameters with their `requires_grad`, buffers stay buffers; the dtype stays.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf, None)
    if old is None:
        weight = getattr(owner, "weight", value)
        setattr(owner, leaf, nn.Parameter(value.to(weight.dtype)))
        return
    new: Tensor = value.to(old.dtype)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    hanging = places.pop(id(old), [(owner, leaf)])
    for place, attribute in hanging:
        setattr(place, attribute, new)
    places[id(new)] = hanging
