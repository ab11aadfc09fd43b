"""The error of every prefix of a given order, whoever made the order (paper eq. 1 for S = the first 0..k units)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.greedy import Block
from subprune_fx.numerics.solve import factor


def reweighted_errors(blocks: Sequence[Block], order: Tensor) -> Tensor:
    """sum_c scale_c min_W ||Y_c - B_c,S W||^2: with new weights for every S.

    With G = L L' in the order's own order, F(S) of eq. (2) is the sum of squares of the first rows of L^-1 C: one
    factorisation gives all prefixes.

    Args:
        blocks: What the consumers read.
        order: All units, (n,), int64.

    Returns:
        (n + 1,), float64, non-increasing.
    """
    total = torch.zeros(len(order) + 1, dtype=torch.float64)
    for block in blocks:
        columns, ends = _sorted(block.unit, order)
        root = factor(block.gram[columns][:, columns])
        rows = torch.linalg.solve_triangular(root, block.cross[columns], upper=False).square().sum(1)
        total += block.scale * (block.energy - _until(rows, ends))
    return total.clamp(min=0).cummin(0).values


def kept_errors(blocks: Sequence[Block], weights: Sequence[Tensor], order: Tensor) -> Tensor:
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
        columns, ends = _sorted(block.unit, order)
        own = weight[columns].double()
        explained = _until((own * block.cross[columns]).sum(1), ends)
        products = block.gram[columns][:, columns] * (own @ own.mT)
        inner = products.cumsum(0).cumsum(1).diagonal()
        squares = torch.cat([inner.new_zeros(1), inner])[ends]
        total += block.scale * (block.energy - 2 * explained + squares)
    return total.clamp(min=0)


def _sorted(unit: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in the order of their units, and how many belong to the first 0..n of them."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    columns = torch.argsort(rank[unit], stable=True)
    counts = torch.bincount(rank[unit], minlength=len(order))
    return columns, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _until(values: Tensor, ends: Tensor) -> Tensor:
    """Sums of the first ends[k] values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])[ends]
