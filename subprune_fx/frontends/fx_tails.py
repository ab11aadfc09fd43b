"""What happens to a contraction's output before others read it: BatchNorm or a constant, an addition, an activation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from subprune_fx.frontends.calls import Call
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.step import Param

_ADDITIONS = ("add", "iadd")
_NORMS = ("batchnorm1d", "batchnorm2d", "batchnorm3d", "batch_norm", "syncbatchnorm", "batchnormalization")


@dataclasses.dataclass(frozen=True)
class Norm:
    """A BatchNorm in eval mode, by the names of its parameters: z = (y - mean) / sqrt(variance + eps) weight + bias."""

    mean: str
    variance: str
    weight: str | None
    bias: str | None
    eps: float


@dataclasses.dataclass(frozen=True)
class Tail:
    """What follows a contraction as long as each node is the only reader of the one before.

    Attributes:
        norm: The BatchNorm, if there is one.
        constant: The parameter that is added as a bias would be, if there is one.
        other: What is then added, if anything.
        flat: Where the activation after that is constant: below the first number and above the second.
    """

    norm: Norm | None = None
    constant: str | None = None
    other: fx.Node | None = None
    flat: tuple[float, float] = (-math.inf, math.inf)

    @property
    def saturates(self) -> bool:
        """Whether the activation is constant somewhere."""
        return self.flat != (-math.inf, math.inf)


def tail(
    node: fx.Node,
    calls: Mapping[str, Call],
    roles: Mapping[str, Mapping[str, Param]],
    shapes: Mapping[fx.Node, tuple[int, ...] | None],
    axis: int,
    constant: str | None,
) -> Tail:
    """The tail of contraction `node`.

    Args:
        node: Its node.
        calls: All calls of the graph, by node name.
        roles: Parameters of each call by role, by node name.
        shapes: Shape of every node's value.
        axis: Channel dimension of its value.
        constant: The parameter that its only reader adds as a bias would be, if it does.
    """
    found, current, normed = Tail(), node, normalisable(axis, len(shapes.get(node) or ()))
    if constant is not None:
        found, current = Tail(constant=constant), next(iter(node.users))
    while len(current.users) == 1:
        reader = next(iter(current.users))
        call = calls.get(reader.name)
        if call is None or call.row is None:
            break
        if call.row.flat is not None:
            return dataclasses.replace(found, flat=call.row.flat)
        norm = _norm(call, roles.get(reader.name, {})) if normed and found == Tail() else None
        other = _other(reader, call, current, shapes) if found.other is None else None
        if norm is None and other is None:
            break
        found = dataclasses.replace(found, norm=norm or found.norm, other=other or found.other)
        current = reader
    return found


def normalisable(axis: int, rank: int) -> bool:
    """Whether dimension `axis` of `rank` is the one that a BatchNorm has its parameters for."""
    return axis % max(rank, 1) == 1


def _norm(call: Call, roles: Mapping[str, Param]) -> Norm | None:
    names = {role: param.name for role, param in roles.items()}
    if call.name not in _NORMS or not {"running_mean", "running_var"} <= names.keys():
        return None
    if call.module is None and call.get("training", False) is not False:
        return None
    eps = float(call.get("eps", 1e-5))
    return Norm(names["running_mean"], names["running_var"], names.get("weight"), names.get("bias"), eps)


def _other(
    reader: fx.Node, call: Call, mine: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...] | None]
) -> fx.Node | None:
    """What a plain sum adds to `mine`; None where it is scaled, broadcast or no sum."""
    others = [used for used in reader.all_input_nodes if used is not mine]
    if call.name not in _ADDITIONS or len(others) != 1 or len(reader.args) != 2 or reader.kwargs:
        return None
    shape = shapes.get(mine)
    return others[0] if shape is not None and shapes.get(others[0]) == shape else None


def affine(found: Tail, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a tail, z = scale y + shift, shape (channels,) as `like`; 1 and 0 where nothing does."""
    norm = found.norm
    if norm is None:
        shift = torch.zeros_like(like) if found.constant is None else parameter(module, found.constant).reshape(-1)
        return torch.ones_like(like), shift
    mean, variance = parameter(module, norm.mean), parameter(module, norm.variance)
    weight = torch.ones_like(mean) if norm.weight is None else parameter(module, norm.weight)
    bias = torch.zeros_like(mean) if norm.bias is None else parameter(module, norm.bias)
    scale = weight / (variance + norm.eps).sqrt()
    return scale, bias - scale * mean
