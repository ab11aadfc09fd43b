"""The error of every prefix of a given order, whoever made the order (paper eq. 1 for S = the first 0..k units)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.elimination import Part


def reweighted_errors(blocks: Sequence[Part], order: Tensor) -> Tensor:
    """sum_c scale_c min_W ||Y_c - B_c,S W||^2: with new weights for every S.

    Args:
        blocks: What the consumers read.
        order: All units, (n,), int64.

    Returns:
        (n + 1,), float64, non-increasing.
    """
    total = torch.zeros(len(order) + 1, dtype=torch.float64)
    for block in blocks:
        total += block.scale * (block.energy - block.explained(order))
    return total.clamp(min=0).cummin(0).values


def kept_errors(blocks: Sequence[Part], weights: Sequence[Tensor], order: Tensor) -> Tensor:
    """sum_c scale_c ||Y_c - B_c,S W_c,S||^2: with the weights as they are.

    Args:
        blocks: What the consumers read.
        weights: W_c of every block, (d, m).
        order: All units, (n,), int64.

    Returns:
        (n + 1,), float64; not monotone in general.
    """
    total = torch.zeros(len(order) + 1, dtype=torch.float64)
    for block, weight in zip(blocks, weights, strict=True):
        total += block.scale * block.errors(order, weight)
    return total.clamp(min=0)
