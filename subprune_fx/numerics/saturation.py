"""Targets of an activation that is constant below one number and above another (ReLU, ReLU6, hard swish)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def correction(wanted: Tensor, got: Tensor, flat: tuple[float, float]) -> Tensor:
    """What leads from `wanted` to the input nearest to `got` for which the activation yields the same as for `wanted`.

    Args:
        wanted: Inputs of the activation, any shape.
        got: Inputs that it has instead, same shape.
        flat: The activation is constant below `flat[0]` and above `flat[1]`.

    >>> correction(torch.tensor([-1.0, -1.0, 2.0]), torch.tensor([-3.0, 1.0, -1.0]), (0.0, float("inf"))).tolist()
    [-2.0, 1.0, 0.0]
    """
    low, high = flat
    found = None if low == -math.inf else _where_below(got.clamp(max=low).sub_(wanted), wanted, low)
    if high < math.inf:
        above = _where_below(got.clamp(min=high).sub_(wanted), -wanted, -high)
        found = above if found is None else found.add_(above)
    return torch.zeros_like(wanted) if found is None else found


def _where_below(values: Tensor, x: Tensor, limit: float) -> Tensor:
    """`values` where x <= limit, else 0; in place. `torch.where` takes eight times as long on a CPU."""
    return values.sub_(torch.ops.aten.threshold_backward(values, x, limit))
