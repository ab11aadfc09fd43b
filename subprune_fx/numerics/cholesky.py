"""Cholesky factors of matrices that may be singular up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from subprune_fx.errors import SubpruneError

JITTER = 1e-12
"""First addition to the diagonal of a matrix that is not positive definite, relative to its largest entry."""

ROUNDING = 1e-14
"""A pivot below this fraction of its diagonal entry is rounding."""


def factor(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a symmetric matrix, or of the nearest to it that has one.

    A Gram matrix of overlapping patches or dead channels is singular up to rounding; the smallest power-of-ten
    multiple of the identity that makes it positive definite is added then, in a batch to those that need it only. A
    pivot that is mere rounding counts as failure: dividing by it would give weights without meaning.

    Args:
        matrix: (..., n, n), symmetric positive semidefinite up to rounding.

    Raises:
        SubpruneError: It holds infinite or undefined entries.
    """
    found, failed = attempt(matrix)
    if not bool(failed.any()):
        return found
    check_finite(matrix)
    largest = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    jitter = JITTER * largest
    while bool(failed.any()):
        added = torch.where(failed, jitter, 0.0)
        repaired, still = attempt(matrix + torch.diag_embed(added[..., None].expand(matrix.shape[:-1])))
        found = torch.where(failed[..., None, None], repaired, found)
        failed, jitter = still & failed, jitter * 10
    return found


def check_finite(matrix: Tensor) -> None:
    """Refuse second moments with infinite or undefined entries.

    Raises:
        SubpruneError: There are some.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise SubpruneError("second moments overflow", where="least squares", remedy="check the calibration inputs")


def attempt(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors, (..., n, n), and which of them failed: not positive definite beyond rounding, (...)."""
    found, info = torch.linalg.cholesky_ex(matrix)
    pivots, entries = found.diagonal(dim1=-2, dim2=-1).square(), matrix.diagonal(dim1=-2, dim2=-1)
    return found, (info != 0) | (pivots < ROUNDING * entries).any(-1)
