"""Multiply-adds of ONNX operators, counted as torch's FlopCounterMode counts those of torch calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

Tensors = Sequence[Tensor]


def multiply_adds(op_type: str, operands: Any, value: Any, equation: str = "") -> int:
    """Of one node.

    Args:
        op_type: Its operator.
        operands: The values of its operands.
        value: The value of the node.
        equation: Of an Einsum.

    Returns:
        0 for all but contractions.
    """
    count = partial(_einsum, equation=equation) if op_type == "Einsum" else _COUNTS.get(op_type)
    tensors = [leaf for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)]
    values = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    if count is None or len(tensors) < 2 or not values:
        return 0
    return count(tensors, values[0])


def _conv(given: Tensors, out: Tensor) -> int:
    return out.numel() * given[1][0].numel()


def _transposed(given: Tensors, _out: Tensor) -> int:
    return given[0].numel() * given[1][0].numel()


def _matmul(given: Tensors, out: Tensor) -> int:
    return out.numel() * given[0].shape[-1]


def _attention(given: Tensors, out: Tensor) -> int:
    """Each query meets each key, and its weights each value; heads on an axis of their own, or side by side."""
    return (given[0].numel() + out.numel()) * given[1].shape[-2]


def _recurrent(given: Tensors, _out: Tensor) -> int:
    """Each step of each sample meets the weights of the inputs and those of the state."""
    steps, samples, _ = given[0].shape
    return steps * samples * sum(weight.numel() for weight in given[1:3])


def _einsum(given: Tensors, out: Tensor, equation: str) -> int:
    """The output's size, times the letters that are summed over."""
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms.split(","), given, strict=True):
        head, _, tail = term.partition("...")
        sizes |= dict(zip(head, tensor.shape, strict=False))
        sizes |= dict(zip(reversed(tail), reversed(tensor.shape), strict=False))
    return out.numel() * math.prod(size for letter, size in sizes.items() if letter not in result)


_COUNTS: Mapping[str, Callable[[Tensors, Tensor], int]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _matmul,
    "MatMul": _matmul,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
}
