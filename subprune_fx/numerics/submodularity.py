"""How far F of eq. (2) is from submodular, and what that guarantees (paper sections 2, 3.1 and 6).

The submodularity ratio (Definition 2.1) is the least of sum_i F(i | L) / F(S | L) over disjoint L and S: NP-hard to
know, but the proof of Proposition 6.1 needs it only for L along the greedy path and S = all the rest, where greedy has
computed it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subprune_fx.numerics.elimination import Part
from subprune_fx.numerics.greedy import Selection

ROUNDING = 1e-9
"""What is left to explain, relative to all there is, below which a ratio is a quotient of rounding errors."""


def explained(blocks: Sequence[Part], kept: Tensor) -> float:
    """F(S) = sum_c scale_c tr(C_S' G_SS^-1 C_S), paper eq. (2).

    Args:
        blocks: What the consumers read.
        kept: By unit, whether it is in S, (units,), bool.
    """
    total = 0.0
    for block in blocks:
        columns = kept[block.unit].nonzero()[:, 0]
        if len(columns):
            total += block.scale * block.explained_by(columns)
    return total


def path_ratio(found: Selection) -> Tensor:
    """Least sum_i F(i | L) / F(V | L) over the first 0..k units L of a complete greedy run, (k + 1,), float64.

    An upper estimate of the submodularity ratio gamma_{L, n}, and the very quantity that Proposition 6.1's proof uses:
    with it in gamma's place the bound is a theorem.
    """
    left = found.error[:-1] - found.error[-1]
    ratio = torch.where(left > ROUNDING * float(found.error[0]), found.gains / left, 1.0).clamp(0, 1)
    return torch.cat([torch.ones(1, dtype=torch.float64), ratio.cummin(0).values])


def sampled_ratio(blocks: Sequence[Part], order: Tensor, k: int, *, samples: int, generator: torch.Generator) -> float:
    """An upper estimate of gamma_{U, k}, U the first k units: the least ratio over random L in U and S outside L.

    Args:
        blocks: What the consumers read.
        order: Of greedy, (units,), int64.
        k: Largest size of S.
        samples: How many pairs are tried.
        generator: Where they come from.
    """
    units, worst = len(order), 1.0
    floor = ROUNDING * explained(blocks, torch.ones(units, dtype=torch.bool))
    for _ in range(samples):
        inside = torch.zeros(units, dtype=torch.bool)
        inside[order[: int(torch.randint(k + 1, (1,), generator=generator))]] = True
        outside = (~inside).nonzero()[:, 0]
        chosen = outside[torch.randperm(len(outside), generator=generator)[:k]]
        base = explained(blocks, inside)
        together = inside.clone()
        together[chosen] = True
        gain = explained(blocks, together) - base
        if gain <= floor:
            continue
        singles = 0.0
        for unit in chosen.tolist():
            one = inside.clone()
            one[unit] = True
            singles += explained(blocks, one) - base
        worst = min(worst, singles / gain)
    return max(worst, 0.0)


def error_bound(error: Tensor, ratio: Tensor) -> Tensor:
    """Proposition 6.1 for k = 0..n: e^(-gamma k / n) E_0 + (1 - e^(-gamma k / n)) E_n.

    Args:
        error: Of greedy, (n + 1,); its last value is that of all units, zero in the symmetric case.
        ratio: gamma for every k, (n + 1,).
    """
    n = len(error) - 1
    decay = torch.exp(-ratio * torch.arange(n + 1, dtype=torch.float64) / n)
    return decay * error[0] + (1 - decay) * error[-1]
