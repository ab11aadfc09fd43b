"""The geometry of a contraction node of an fx graph."""

from __future__ import annotations

from typing import Any

from subprune_fx.frontends.calls import Call
from subprune_fx.frontends.fx_products import Letters
from subprune_fx.graph.step import Param
from subprune_fx.numerics.conv_reader import ConvReader, same_padding
from subprune_fx.numerics.readers import LinearReader, Reader
from subprune_fx.numerics.stacked_reader import StackedReader
from subprune_fx.numerics.transposed_reader import TransposedConvReader


def reader(call: Call, weight: Param) -> Reader:
    """How `call`, a convolution or linear layer with this weight, reads its input."""
    weight_shape = weight.shape
    rank = len(weight_shape) - 2
    if rank <= 0:
        stored = call.row is not None and call.row.axes is not None and call.row.axes.outputs == 1
        return LinearReader(transposed=stored != (weight.order is not None))
    kernel = weight_shape[2:]
    stride = _each(call.get("stride", 1), rank)
    dilation = _each(call.get("dilation", 1), rank)
    groups = int(call.get("groups", 1))
    if "transpose" in call.name:
        extra = _each(call.get("output_padding", 0), rank)
        cut = _padding(call.get("padding", 0), kernel, dilation)
        return TransposedConvReader(kernel, stride, cut, extra, dilation, groups)
    mode = call.get("padding_mode", "zeros")
    both = _padding(call.get("padding", 0), kernel, dilation)
    return ConvReader(kernel, stride, both, dilation, groups, "constant" if mode == "zeros" else mode)


def product_reader(letters: Letters, weight: Param) -> Reader:
    """How a product of an activation and a matrix, with dimensions `letters`, reads the activation."""
    read, matrix, out = letters
    summed = next(letter for letter in matrix if letter in read and letter not in out)
    free = next(letter for letter in matrix if letter not in read)
    if len(matrix) == 3:
        return _stacked(letters, weight, summed, free)
    transposed = weight.own(matrix.index(summed)) == 0
    return LinearReader(transposed, axis=read.index(summed) - len(read), made=out.index(free) - len(out))


def _stacked(letters: Letters, weight: Param, summed: str, free: str) -> Reader:
    """The same of a stack of matrices."""
    read, matrix, out = letters
    (which,) = set(matrix) - {summed, free}
    first, second, third = (weight.own(matrix.index(letter)) for letter in (which, summed, free))
    return StackedReader(
        order=(first, second, third),
        groups=weight.shape[matrix.index(which)],
        blocks=(read.index(which) - len(read), out.index(which) - len(out)),
        axis=(read.index(summed) - len(read), out.index(free) - len(out)),
    )


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        return same_padding(kernel, dilation)
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if isinstance(padding, tuple) and padding and isinstance(padding[0], tuple):
        return padding
    return tuple((amount, amount) for amount in _each(padding, len(kernel)))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    if isinstance(value, int):
        return (value,) * rank
    values = tuple(int(v) for v in value)
    return values * rank if len(values) == 1 else values
