"""Targets of an activation that is constant below one number and above another (ReLU, ReLU6, hard swish)."""

from __future__ import annotations

import torch
from torch import Tensor


def admissible(wanted: Tensor, got: Tensor, flat: tuple[float, float]) -> Tensor:
    """The input nearest to `got` for which the activation yields what it yields for `wanted`.

    Args:
        wanted: Inputs of the activation, any shape.
        got: Inputs that it has instead, same shape.
        flat: The activation is constant below `flat[0]` and above `flat[1]`.

    >>> admissible(torch.tensor([-1.0, -1.0, 2.0]), torch.tensor([-3.0, 1.0, -1.0]), (0.0, float("inf"))).tolist()
    [-3.0, 0.0, 2.0]
    """
    low, high = flat
    below = torch.where(wanted <= low, got.clamp(max=low), wanted)
    return torch.where(wanted >= high, got.clamp(min=high), below)
