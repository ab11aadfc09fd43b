"""Parameters that a module computes (weight_norm, spectral_norm and the like), turned into plain ones."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize


def compute_parameters(module: nn.Module) -> None:
    """Replace computed parameters by their values in eval mode, in `module` itself."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            _compute(part)


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
