"""Multiply-adds of ONNX operators, counted as torch's FlopCounterMode counts those of torch calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Shape = torch.Size


def multiply_adds(op_type: str, operands: Any, value: Any) -> int:
    """Of one node.

    Args:
        op_type: Its operator.
        operands: The values of its operands.
        value: The value of the node.

    Returns:
        0 for all but contractions.
    """
    count = _COUNTS.get(op_type)
    tensors = [operand for operand in operands[:2] if isinstance(operand, Tensor)]
    if count is None or len(tensors) < 2 or not isinstance(value, Tensor):
        return 0
    return count(tensors[0].shape, tensors[1].shape, value.shape)


def _conv(_x: Shape, weight: Shape, out: Shape) -> int:
    return out.numel() * weight[1:].numel()


def _transposed(x: Shape, weight: Shape, _out: Shape) -> int:
    return x.numel() * weight[1:].numel()


def _matmul(x: Shape, _weight: Shape, out: Shape) -> int:
    return out.numel() * x[-1]


_COUNTS: Mapping[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _matmul,
    "MatMul": _matmul,
}
