"""Several processes that share the calibration inputs: what each has found of its own becomes what all have."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from subprune_fx.bundle import Bundle
from subprune_fx.errors import SubpruneError
from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.row_moments import RowMoments

T = TypeVar("T")
Samples = TypeVar("Samples", Tensor, Bundle, Tensor | Bundle)

PATIENCE = dt.timedelta(hours=2)
"""How long a process waits for one that lives and does not answer; one that has died is noticed at once."""


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of one run. All call the same methods in the same order; of a single process they change nothing.

    Attributes:
        rank: Which of them this one is; 0 writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, inputs: Samples) -> Samples:
        """This process's samples: every `size`-th, so that shares of the first n samples are first in the shares."""
        return inputs if self.size == 1 else inputs[self.rank :: self.size]

    def batches(self, own: Sequence[Tensor | Bundle]) -> float:
        """How many batches, as large as the first of these, all processes have together."""
        return self.numbers(sum(len(batch) for batch in own))[0] / len(own[0])

    def inputs(self, moments: Collected) -> Collected:
        """Second moments of the inputs of all processes."""
        if isinstance(moments, RowMoments):
            return moments.joined(self.gathered(moments.inputs))
        (rows,) = self.numbers(moments.rows)
        return dataclasses.replace(
            moments, gram=self.sum(moments.gram), columns=self.sum(moments.columns), rows=round(rows)
        )

    def targets(self, moments: Collected) -> Collected:
        """The same with the targets of all processes; the moments of the inputs are of all already."""
        if isinstance(moments, RowMoments):
            return moments.aimed([piece for own in self.gathered(moments.targets) for piece in own])
        return dataclasses.replace(
            moments,
            cross=self.sum(moments.cross),
            targets=self.sum(moments.targets),
            energy=self.sum(moments.energy),
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same to the last bit in each."""
        return self._reduced(tensor, distributed.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        return self._reduced(tensor, distributed.ReduceOp.MAX)

    def numbers(self, *values: float) -> list[float]:
        """Sums of numbers over all processes."""
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist() if self.size > 1 else list(values)

    def gathered(self, value: T) -> list[T]:
        """What all processes have, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _lost():
            distributed.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """What process 0 has: rounding may differ between machines, and decisions must not."""
        if self.size == 1:
            return value
        found = [value]
        with _lost():
            distributed.broadcast_object_list(found)
        return found[0]

    def wait(self) -> None:
        """Until all have come this far."""
        self.gathered(None)

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return tensor
        found = tensor.contiguous().clone()
        with _lost():
            distributed.all_reduce(found, how)
        return found


ALONE = Team()


@contextmanager
def team_of_environment() -> Iterator[Team]:
    """The processes that `torchrun`, or whoever sets RANK, WORLD_SIZE and MASTER_ADDR, has started together."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield ALONE
        return
    with _lost():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        what = "another process of this run has ended or cannot be reached; nothing was written"
        raise SubpruneError(what, remedy="see what it said") from error
