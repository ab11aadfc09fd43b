"""Second moments of a consumer's input and target: all that selection and reweighting ever read."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from subprune_fx.numerics.normal import Normal
from subprune_fx.numerics.symmetric import product


@dataclasses.dataclass
class Moments:
    """Sums over rows, per channel group of the contraction; d columns, m targets.

    Attributes:
        gram: B'B, shape (groups, d, d), float64.
        cross: B'Y, shape (groups, d, m), float64.
        columns: Sum of B's rows, shape (groups, d).
        targets: Sum of Y's rows, shape (groups, m).
        energy: Sum of Y squared, shape (groups,).
        rows: How many.
    """

    gram: Tensor
    cross: Tensor
    columns: Tensor
    targets: Tensor
    energy: Tensor
    rows: int

    @staticmethod
    def zeros(groups: int, columns: int, targets: int) -> Moments:
        """No rows yet."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return Moments(
            empty(groups, columns, columns),
            empty(groups, columns, targets),
            empty(groups, columns),
            empty(groups, targets),
            empty(groups),
            0,
        )

    def add(self, columns: Tensor, targets: Tensor | None = None) -> None:
        """Add rows.

        Args:
            columns: Design matrix, transposed: (groups, d, rows), float32 (its products are summed in blocks).
            targets: Targets, transposed: (groups, m, rows); None where only the input's moments are wanted.
        """
        inputs = _Centred.of(columns)
        inputs.add_product(inputs, self.gram)
        self.columns += inputs.total().cpu()
        self.rows += columns.shape[2]
        if targets is not None:
            self._add_targets(inputs, targets)

    def only(self, kept: Tensor) -> Moments:
        """Moments of the columns `kept`, (groups, kept d)."""
        rows = torch.arange(len(kept))[:, None]
        found = dataclasses.replace(self, columns=self.columns[rows, kept])
        if self.gram.shape[1] < self.columns.shape[1]:  # `means`
            return found
        found.gram = self.gram[rows[:, :, None], kept[:, :, None], kept[:, None, :]]
        found.cross = self.cross[rows, kept]
        return found

    def untargeted(self, targets: int | None = None) -> Moments:
        """The same input; targets, as many as before or `targets` a group, are yet to be added."""
        groups, columns = self.columns.shape
        m = self.targets.shape[1] if targets is None else targets
        return dataclasses.replace(
            self,
            cross=self.gram.new_zeros(groups, columns, m),
            targets=self.gram.new_zeros(groups, m),
            energy=self.gram.new_zeros(groups),
        )

    def add_targets(self, columns: Tensor, targets: Tensor) -> None:
        """Add targets for rows that are already counted; arguments as in `add`."""
        self._add_targets(_Centred.of(columns), targets)

    def _add_targets(self, inputs: _Centred, targets: Tensor) -> None:
        outputs = _Centred.of(targets)
        inputs.add_product(outputs, self.cross)
        self.targets += outputs.total().cpu()
        self.energy += outputs.energy().cpu()

    def centred(self, *, own: bool = False) -> Moments:
        """Moments about the mean: what remains to be explained once an intercept takes the means.

        Args:
            own: Whether the Gram matrix is needed for nothing else.
        """
        mean = self.columns / self.rows
        add = self.gram.baddbmm_ if own else self.gram.baddbmm
        gram = add(mean[:, :, None], self.columns[:, None, :], alpha=-1)
        return dataclasses.replace(self.targets_about(centre=True), gram=gram)

    def targets_about(self, *, centre: bool) -> Moments:
        """Products with the targets, perhaps about the means; those of the inputs are left as they are."""
        if not centre:
            return self
        return dataclasses.replace(
            self,
            cross=self.cross - (self.columns / self.rows)[:, :, None] * self.targets[:, None, :],
            energy=self.energy - self.targets.square().sum(1) / self.rows,
        )

    def means(self) -> Moments:
        """What `intercept` and new targets need of them, without the large rest."""
        return dataclasses.replace(self, gram=self.gram[:, :0, :0].clone(), cross=self.cross[:, :0].clone())

    def mean_diagonal(self) -> Tensor:
        """Of the Gram matrix, (groups,)."""
        return self.gram.diagonal(dim1=1, dim2=2).mean(1)

    def diagonal_of_means(self) -> Tensor:
        """How much smaller the mean diagonal is about the means, (groups,)."""
        return self.columns.square().mean(1) / self.rows

    @staticmethod
    def weights(weight: Tensor) -> Tensor:
        """Original weights, in the precision of what is computed with them."""
        return weight.double()

    def normal(self, weight: Tensor, ridge: Tensor, *, own: bool) -> Normal:
        """The ridge regression, see `numerics.normal`.

        Args:
            weight: W_0, (groups, d, m), float64.
            ridge: lambda, (groups,).
            own: Whether the Gram matrix is needed for nothing else.
        """
        gram = self.gram if own else self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        return Normal(gram, self.cross, self.energy, weight).aimed(self.cross, self.energy, ridge)

    def towards(self, weight: Tensor) -> Moments:
        """The same input moments with the target B W: cross = B'B W."""
        weight = weight.double()
        cross = self.gram @ weight
        targets, energy = (self.columns[:, None, :] @ weight)[:, 0, :], (weight * cross).sum((1, 2)).clamp(min=0)
        return dataclasses.replace(self, cross=cross, targets=targets, energy=energy)

    def intercept(self, weights: Tensor) -> Tensor:
        """mean(Y) - mean(B) W, shape (groups, m), for `weights` (groups, d, m)."""
        mean = (self.columns / self.rows)[:, None, :] @ weights
        return self.targets / self.rows - mean[:, 0, :]


@dataclasses.dataclass(frozen=True)
class _Centred:
    """A matrix (groups, a, rows) as its mean over the rows and what is left.

    Products are multiplied about the means: where a mean is large against its deviation (a residual stream, outputs
    of a softplus) float32 products would lose the deviations, and the centred Gram matrix would not be positive. So
    sums of deviations may be taken in float32, which is several times faster than in float64.

    Attributes:
        mean: float64, (groups, a, 1).
        off: The deviations, (groups, a, rows).
        rest: Their sum, next to nothing: the mean's rounding. float64, (groups, a, 1).
    """

    mean: Tensor
    off: Tensor
    rest: Tensor

    @staticmethod
    def of(matrix: Tensor) -> _Centred:
        mean = matrix.mean(2, keepdim=True) if matrix.shape[2] else matrix.new_zeros(*matrix.shape[:2], 1)
        off = matrix - mean
        return _Centred(mean.double(), off, off.sum(2, keepdim=True).double())

    def add_product(self, other: _Centred, found: Tensor) -> None:
        """Add the product self other' to `found`, (groups, a, b), float64, without a second matrix of that kind."""
        found += (product(self.off) if other is self else self.off @ other.off.mT).cpu()
        rows = self.off.shape[2]
        left = torch.cat([self.mean, self.rest], 2).cpu()
        found.baddbmm_(left, torch.cat([other.rest + rows * other.mean, other.mean], 2).mT.cpu())

    def total(self) -> Tensor:
        """The sum of the rows, (groups, a)."""
        return (self.off.shape[2] * self.mean + self.rest)[:, :, 0]

    def energy(self) -> Tensor:
        """The sum of the squares, (groups,)."""
        about = self.off.square().sum(2, keepdim=True).double()
        return (about + self.mean * (2 * self.rest + self.off.shape[2] * self.mean)).sum((1, 2))
