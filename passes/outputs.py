"""What a network's outputs say: accuracy, agreement, change, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from subprune_fx.bundle import Bundle
from subprune_fx.errors import SubpruneError
from subprune_fx.passes.by_sample import (
    REMEDY,
    VARYING,
    Rows,
    is_steady,
    numbered,
    numbers_of,
    rows_of,
    tensors_of,
    width_of,
)
from subprune_fx.team import ALONE, Team

Batch = TypeVar("Batch", Tensor, Bundle, Tensor | Bundle)


def batches_of(tensor: Batch, size: int, *, whole: bool = False) -> list[Batch]:
    """`tensor`, or a bundle of them, in pieces of `size` samples; `whole` leaves out a smaller last one."""
    end = len(tensor) // size * size if whole else len(tensor)
    return [tensor[start : start + size] for start in range(0, end, size)]


def head(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """The first samples of some batches."""
    found = []
    for batch in batches:
        if samples <= 0:
            break
        found.append(batch[:samples])
        samples -= len(batch)
    return found


def agreement(
    outputs: Sequence[Any], labels: Sequence[Tensor] | None, team: Team = ALONE
) -> Callable[[Sequence[Any]], float]:
    """Top-1 accuracy against `labels`, or agreement with the arg-max of `outputs`, over the batches of all `team`."""
    place = 0 if labels else scores_at(outputs, team)
    wanted = labels or _classes(outputs, place)

    def metric(found: Sequence[Any]) -> float:
        classes = _classes(found, place)
        if any(one.shape != want.shape for one, want in zip(classes, wanted, strict=False)):
            raise SubpruneError(VARYING, remedy=REMEDY)
        hits = sum((one == want).double().mean().item() * len(want) for one, want in zip(classes, wanted, strict=False))
        hits, count = team.numbers(hits, sum(len(want) for want in wanted[: len(found)]))
        return hits / count

    return metric


def _classes(outputs: Sequence[Any], place: int) -> list[Tensor]:
    return [tensors_of(output)[place].argmax(-1).cpu() for output in outputs]


def scores_at(outputs: Sequence[Any], team: Team = ALONE, among: Sequence[int] | None = None) -> int:
    """Which tensor of the outputs holds class scores: one of probabilities (behind boxes, say), else the first.

    Args:
        outputs: By batch.
        team: Processes that have other batches.
        among: Places to choose from; None: all.
    """
    batches = [tensors_of(output) for output in outputs]
    places = range(min(map(len, batches))) if among is None else among
    likely = _places([all(_is_distribution(batch[place]) for batch in batches) for place in places], team)
    return places[likely[0]] if likely else places[0]


def _is_distribution(output: Tensor) -> bool:
    """Whether each row holds probabilities, which sum to 1 but for rounding."""
    if not is_score(output):
        return False
    rounding = 8 * output.shape[1] * torch.finfo(output.dtype).eps
    return bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() <= rounding).all())


def output_change(
    outputs: Sequence[Any], counts: Sequence[int], samples: int, team: Team = ALONE
) -> Callable[[Sequence[Any]], float]:
    """||f'(x) - f(x)||^2 / ||f(x) - mean f||^2 over the first `samples` samples of all `team`.

    Args:
        outputs: Of the original network, by batch.
        counts: Samples of each batch.
        samples: Of this process.
        team: Processes that have other batches.
    """
    by_batch = _rows(outputs, counts)
    places = numbered(by_batch, _places([is_steady(column) for column in zip(*by_batch, strict=False)], team))
    if not places:
        raise SubpruneError(VARYING, remedy=REMEDY)
    reference = head((numbers_of(rows, places) for rows in by_batch), samples)
    (count,) = team.numbers(sum(len(one) for one in reference))
    mean = team.sum(torch.cat(reference).sum(0)) / count
    (spread,) = team.numbers(sum(float((one - mean).square().sum()) for one in reference))

    def metric(found: Sequence[Any]) -> float:
        change = 0.0
        for output, wanted in zip(found, reference, strict=True):
            rows = rows_of(output, len(wanted))
            if [width_of(rows[place]) for place in places] != [width_of(by_batch[0][place]) for place in places]:
                raise SubpruneError(VARYING, remedy=REMEDY)
            change += float((numbers_of(rows, places) - wanted).square().sum())
        return team.numbers(change)[0] / max(spread, 1e-30)

    return metric


def compared(
    outputs: Sequence[Any], found: Sequence[Any], counts: Sequence[int], team: Team = ALONE
) -> tuple[float | None, float | None]:
    """Agreement of the classes, or of outputs that hold no class scores the `deviation`; None: not that, or not known.

    Args:
        outputs: Of the original network, by batch.
        found: Of the other.
        counts: Samples of each batch.
        team: Processes that have other batches.
    """
    places = _shared(_rows(outputs, counts), _rows(found, counts), team)
    place = scores_at(outputs, team, places) if places else 0
    wanted, got = ([tensors_of(output)[place] for output in side if places] for side in (outputs, found))
    if wanted and is_score(wanted[0], counts[0]):
        return agreement(wanted, None, team)(got), None
    return None, deviation(outputs, found, counts, team)


def deviation(outputs: Sequence[Any], found: Sequence[Any], counts: Sequence[int], team: Team = ALONE) -> float | None:
    """How far outputs are from the original's, for networks that give no class scores.

    Args:
        outputs: Of the original network, by batch.
        found: Of the other, perhaps of the first batches only.
        counts: Samples of each batch.
        team: Processes that have other batches.

    Returns:
        Root mean square, relative to that of the original's outputs around their mean over samples; None where they do
        not vary, or are not of one sample each. Those of which there are more for some inputs than for others, or than
        from the other network, are left out.
    """
    sides = _rows(outputs, counts), _rows(found, counts)
    places = numbered(sides[0], _shared(*sides, team))
    if not places:
        return None
    change = squares = count = 0.0
    total: Tensor | None = None
    for wanted, got in zip(*sides, strict=False):
        left, right = numbers_of(wanted, places), numbers_of(got, places)
        change += float((right - left).square().sum())
        total = left.sum(0) if total is None else total + left.sum(0)
        squares += float(left.square().sum())
        count += len(left)
    if total is None:
        return None
    total = team.sum(total)
    change, squares, count = team.numbers(change, squares, count)
    spread = squares - float(total.square().sum()) / count
    return math.sqrt(change / spread) if spread > 1e-12 * squares else None  # of float64: that is rounding


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a network's output."""
    return tensors_of(output)[0]


def is_score(output: Tensor, samples: int | None = None) -> bool:
    """Whether an output can hold class scores, a row a sample; classes, positions and flags are none."""
    several = output.ndim == 2 and output.shape[1] > 1 and samples in (None, len(output))
    return several and output.dtype not in (torch.bool, torch.int32, torch.int64)


def _rows(outputs: Sequence[Any], counts: Sequence[int]) -> list[Rows]:
    return [rows_of(output, count) for output, count in zip(outputs, counts, strict=False)]


def _shared(wanted: Sequence[Rows], found: Sequence[Rows], team: Team) -> list[int]:
    """Places of those tensors that two networks give in the same sizes for every input."""
    pairs = list(zip(wanted, found, strict=False))
    lefts, rights = (list(zip(*side, strict=False)) for side in ([a for a, _ in pairs], [b for _, b in pairs]))
    fits = [
        is_steady(left) and [*map(width_of, left)] == [*map(width_of, right)]
        for left, right in zip(lefts, rights, strict=False)
    ]
    return _places(fits, team)


def _places(fits: Sequence[bool], team: Team) -> list[int]:
    """Where all of `team` say yes."""
    misfits = team.numbers(*(float(not fit) for fit in fits))
    return [place for place, count in enumerate(misfits) if not count]


def loss(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over samples.

    Args:
        output: Of the network; its first tensor holds class scores, (samples, classes).
        labels: (samples,), int64.

    Raises:
        SubpruneError: If it does not, or a label is no class of it.
    """
    scores = first_tensor(output)
    check_classes(labels, scores)
    return functional.cross_entropy(scores, labels.to(scores.device), reduction="sum")


def check_scores(output: Tensor, samples: int | None = None, *, where: str, remedy: str) -> None:
    """That an output holds class scores, of so many samples where that is known.

    Raises:
        SubpruneError: It does not.
    """
    if not is_score(output, samples):
        what = f"the output has shape {tuple(output.shape)}, which is no class score for each sample"
        raise SubpruneError(what, where=where, remedy=remedy)


def check_classes(labels: Tensor, scores: Tensor) -> None:
    """That outputs are class scores, and labels are classes.

    Raises:
        SubpruneError: They are not, or one is none.
    """
    check_scores(scores, where="labels", remedy="leave them out: the report has the change of the output")
    count = scores.shape[-1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        what = f"some are none of the network's {count} classes"
        raise SubpruneError(what, where="labels", remedy=f"classes are numbers from 0 to {count - 1}")
