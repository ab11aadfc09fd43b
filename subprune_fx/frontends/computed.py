"""Parameters that a module computes (weight_norm, spectral_norm and the like), turned into plain ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Module = TypeVar("Module", bound=nn.Module)


def duplicate(module: Module, shared: Mapping[int, Any] | None = None) -> Module:
    """A deep copy; what hooks have computed and hung into a module is copied without its history.

    Args:
        module: What to copy.
        shared: By identity, what to take instead of a copy.
    """
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    computed = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    return copy.deepcopy(module, {**computed, **(shared or {})})


def compute_parameters(module: nn.Module) -> None:
    """Replace computed parameters by their values in eval mode, in `module` itself."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            _compute(part)
        for hook in list(part._forward_pre_hooks.values()):  # noqa: SLF001 - no public name
            if isinstance(hook, WeightNorm):  # those before parametrizations
                remove_weight_norm(part, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)


def _compute(part: nn.Module) -> None:
    """Of one module.

    `remove_parametrizations` would change the class, which the user's own module shares.
    """
    parametrizations = part.get_submodule("parametrizations").eval()
    values = {name: getattr(part, name).detach().clone() for name in parametrizations._modules}  # noqa: SLF001
    part.__class__ = type(part).__bases__[0]
    del part._modules["parametrizations"]  # noqa: SLF001
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value))
