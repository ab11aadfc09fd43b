"""Carry out a plan: slice parameters, set new values, update sizes. Reads the plan and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from subprune_fx.bundle import device_of
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.calls import COMPUTED
from subprune_fx.frontends.computed import compute_parameters
from subprune_fx.frontends.fx_edit import is_written, set_constant
from subprune_fx.frontends.tensors import copied, named_tensors, owners, parameter, put
from subprune_fx.plan import Plan

Module = TypeVar("Module", bound=nn.Module)


def apply(plan: Plan, module: Module) -> Module:
    """A smaller copy of `module`.

    Args:
        plan: What to do.
        module: The network the plan was made for: the traced graph module, or a fresh instance of the user's class
            with the same parameter names and shapes (its parameter values are the ones that are sliced, except where
            the plan holds new ones; computed ones, as of weight_norm, become plain).

    Returns:
        A copy with sliced parameters; `module` is unchanged.

    Raises:
        SubpruneError: If names or shapes differ from the plan's, or the plan changes sizes that are written in the
            code of `module`'s forward and so cannot be changed from outside.
    """
    smaller, device = copied(module, {item.parameter for item in plan.slices} | plan.values.keys()), device_of(module)
    compute_parameters(smaller)
    _check(plan, smaller)
    places = owners(smaller)
    for item in plan.slices:
        whole = parameter(smaller, item.parameter)
        index = torch.tensor(item.index, device=whole.device)
        put(smaller, places, item.parameter, whole.index_select(item.axis, index))
    for name, value in plan.values.items():
        put(smaller, places, name, value.detach().clone().to(device))
    for constant in plan.constants:
        set_constant(smaller, constant)
    for name, child in smaller.named_modules():
        refresh(child)
        if not isinstance(smaller, fx.GraphModule):
            _check_fits(name, child)
    if isinstance(smaller, fx.GraphModule):
        smaller.graph.lint()
        smaller.recompile()
    return smaller


_TRACED = "its forward computes it from others: apply the plan to the traced graph module, or use subprune_fx.repeat"


def _check(plan: Plan, module: nn.Module) -> None:
    state = named_tensors(module)
    where = type(module).__name__
    for name, shape in plan.shapes.items():
        found = None if name not in state else tuple(state[name].shape)
        if shape is not None and found != shape:
            computed = name.rpartition(".")[2].startswith(COMPUTED) and not isinstance(module, fx.GraphModule)
            what = "is missing" if found is None else f"has shape {found}"
            raise SubpruneError(
                f"parameter {name} {what}, the plan was made for {shape}",
                where=where,
                remedy=_TRACED if computed else "apply it to its network",
            )
    baked = [constant for constant in plan.constants if is_written(module, constant)]
    if baked:
        names = ", ".join(constant.name for constant in baked[:3])
        raise SubpruneError(
            f"the plan changes {len(baked)} sizes written in the code of its forward ({names})",
            where=where,
            remedy="apply the plan to the traced graph module, or derive those sizes from the input in forward",
        )


def _check_fits(name: str, module: nn.Module) -> None:
    """Torch's attention has one width for inputs, heads and output, its recurrent layers one for a whole stack."""
    what = ""
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        whole = tuple(module.in_proj_weight.shape) == (3 * module.embed_dim, module.embed_dim)
        what = "" if whole else "torch.nn.MultiheadAttention cannot be narrower inside than outside"
    if isinstance(module, nn.RNNBase):
        widths = {weight.shape[1] for name, weight in module.named_parameters() if name.startswith("weight_hh")}
        what = "" if len(widths) <= 1 else f"layers of one torch.nn.{type(module).__name__} cannot have several widths"
    if what:
        raise SubpruneError(
            what, where=name, remedy="apply the plan to the traced graph module, where it is spelled out"
        )


Shape = tuple[int, ...]
Sizes = Callable[[Shape, int], dict[str, int]]

# Attributes of stock modules that repeat the shape of their parameters, from the weight's shape and `groups`.
SIZES: dict[type[nn.Module], Sizes] = {
    **dict.fromkeys(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        lambda shape, groups: {"out_channels": shape[0], "in_channels": shape[1] * groups},
    ),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        lambda shape, groups: {"in_channels": shape[0], "out_channels": shape[1] * groups},
    ),
    nn.Linear: lambda shape, _: {"out_features": shape[0], "in_features": shape[1]},
    nn.Bilinear: lambda shape, _: {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]},
    **dict.fromkeys(
        (
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ),
        lambda shape, _: {"num_features": shape[0]},
    ),
    nn.GroupNorm: lambda shape, _: {"num_channels": shape[0]},
    nn.PReLU: lambda shape, _: {"num_parameters": shape[0]},
    nn.Embedding: lambda shape, _: {"embedding_dim": shape[1]},
    **dict.fromkeys((nn.LSTM, nn.LSTMCell), lambda shape, _: {"input_size": shape[1], "hidden_size": shape[0] // 4}),
    **dict.fromkeys((nn.GRU, nn.GRUCell), lambda shape, _: {"input_size": shape[1], "hidden_size": shape[0] // 3}),
    **dict.fromkeys((nn.RNN, nn.RNNCell), lambda shape, _: {"input_size": shape[1], "hidden_size": shape[0]}),
}


def refresh(module: nn.Module) -> None:
    """Make a stock module's size attributes agree with its parameters."""
    sizes = SIZES.get(type(module))
    tensors = (getattr(module, name, None) for name in ("weight", "running_mean", "weight_ih_l0", "weight_ih"))
    first = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
    if sizes is None or first is None:
        return
    for name, size in sizes(tuple(first.shape), int(getattr(module, "groups", 1))).items():
        setattr(module, name, size)
