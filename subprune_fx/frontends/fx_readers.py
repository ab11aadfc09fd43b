"""The geometry of a contraction node of an fx graph."""

from __future__ import annotations

from typing import Any

from subprune_fx.frontends.calls import Call
from subprune_fx.numerics.readers import ConvReader, LinearReader, Reader, TransposedConvReader, same_padding


def reader(call: Call, weight_shape: tuple[int, ...]) -> Reader:
    """How `call`, a contraction with a weight of `weight_shape`, reads its input."""
    rank = len(weight_shape) - 2
    if rank <= 0:
        return LinearReader()
    kernel = weight_shape[2:]
    stride = _each(call.get("stride", 1), rank)
    dilation = _each(call.get("dilation", 1), rank)
    groups = int(call.get("groups", 1))
    if "transpose" in call.name:
        padding = _each(call.get("padding", 0), rank)
        extra = _each(call.get("output_padding", 0), rank)
        return TransposedConvReader(kernel, stride, padding, extra, dilation, groups)
    mode = call.get("padding_mode", "zeros")
    both = _padding(call.get("padding", 0), kernel, dilation)
    return ConvReader(kernel, stride, both, dilation, groups, "constant" if mode == "zeros" else mode)


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        return same_padding(kernel, dilation)
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    return tuple((amount, amount) for amount in _each(padding, len(kernel)))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    if isinstance(value, int):
        return (value,) * rank
    values = tuple(int(v) for v in value)
    return values * rank if len(values) == 1 else values
