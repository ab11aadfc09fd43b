"""What a network's outputs say: accuracy, agreement, change, loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Bundle
from subprune_fx.errors import SubpruneError
from subprune_fx.team import ALONE, Team

VARYING = "how many numbers the network gives depends on the input"
REMEDY = "cut it before that (a detector's selection, say), or pass budget='error'"

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
    wanted = labels or [first_tensor(output).argmax(-1).cpu() for output in outputs]

    def metric(found: Sequence[Any]) -> float:
        classes = [first_tensor(output).argmax(-1).cpu() for output in found]
        if any(one.shape != want.shape for one, want in zip(classes, wanted, strict=False)):
            raise SubpruneError(VARYING, remedy=REMEDY)
        hits = sum((one == want).double().mean().item() * len(want) for one, want in zip(classes, wanted, strict=False))
        hits, count = team.numbers(hits, sum(len(want) for want in wanted[: len(found)]))
        return hits / count

    return metric


def output_change(outputs: Sequence[Any], samples: int, team: Team = ALONE) -> Callable[[Sequence[Any]], float]:
    """||f'(x) - f(x)||^2 / ||f(x) - mean f||^2 over the first `samples` outputs of all `team`."""
    by_batch = [_tensors(output) for output in outputs]
    places = _places([_is_steady(column) for column in zip(*by_batch, strict=False)], team)
    if not places:
        raise SubpruneError(VARYING, remedy=REMEDY)
    try:
        reference = head((_numbers([tensors[k] for k in places]) for tensors in by_batch), samples)
    except RuntimeError as error:
        raise SubpruneError("the network's outputs are not as many for each sample", remedy=REMEDY) from error
    (count,) = team.numbers(sum(len(one) for one in reference))
    mean = team.sum(torch.cat(reference).sum(0)) / count
    (spread,) = team.numbers(sum(float((one - mean).square().sum()) for one in reference))

    def metric(found: Sequence[Any]) -> float:
        change = 0.0
        for output, wanted in zip(found, reference, strict=True):
            tensors = _tensors(output)
            got = _numbers([tensors[k] for k in places])
            if got.shape != wanted.shape:
                raise SubpruneError(VARYING, remedy=REMEDY)
            change += float((got - wanted).square().sum())
        return team.numbers(change)[0] / max(spread, 1e-30)

    return metric


def compared(outputs: Sequence[Any], found: Sequence[Any], team: Team = ALONE) -> tuple[float | None, float | None]:
    """Agreement of the classes, or of outputs that hold no class scores the `deviation`; None: not that, or not known.

    Args:
        outputs: Of the original network, by batch.
        found: Of the other.
        team: Processes that have other batches.
    """
    wanted, got = _shared(outputs, found, team)
    if wanted and wanted[0] and is_score(wanted[0][0]):
        return agreement(wanted, None, team)(got), None
    return None, deviation(wanted, got, team)


def deviation(outputs: Sequence[Any], found: Sequence[Any], team: Team = ALONE) -> float | None:
    """How far outputs are from the original's, for networks that give no class scores.

    Args:
        outputs: Of the original network, by batch.
        found: Of the other, perhaps of the first batches only.
        team: Processes that have other batches.

    Returns:
        Root mean square, relative to that of the original's outputs around their mean over samples; None where they do
        not vary, or are not of one sample each. Those of which there are more for some inputs than for others, or than
        from the other network, are left out.
    """
    outputs, found = _shared(outputs, found, team)
    if not any(outputs):
        return None
    change = squares = count = 0.0
    total: Tensor | None = None
    for wanted, got in zip(outputs, found, strict=False):
        try:
            left, right = _numbers(wanted), _numbers(got)
            change += float((right - left).square().sum())
            total = left.sum(0) if total is None else total + left.sum(0)
        except RuntimeError:
            return None
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
    return _tensors(output)[0]


def is_score(output: Tensor) -> bool:
    """Whether an output can hold class scores, a row a sample; classes, positions and flags are none."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype not in (torch.bool, torch.int32, torch.int64)


def _tensors(output: Any) -> list[Tensor]:
    """Its tensors; complex numbers as their two parts."""
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in tensors]


def _shared(outputs: Sequence[Any], found: Sequence[Any], team: Team) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """By batch, those tensors that two networks give in the same sizes for every input."""
    pairs = [(_tensors(left), _tensors(right)) for left, right in zip(outputs, found, strict=False)]
    lefts, rights = (list(zip(*side, strict=False)) for side in ([a for a, _ in pairs], [b for _, b in pairs]))
    fits = [
        _is_steady(left) and all(a.shape == b.shape for a, b in zip(left, right, strict=True))
        for left, right in zip(lefts, rights, strict=False)
    ]
    places = _places(fits, team)
    return [[a[k] for k in places] for a, _ in pairs], [[b[k] for k in places] for _, b in pairs]


def _is_steady(batches: Sequence[Tensor]) -> bool:
    """Whether there is as much of a tensor for each input: it has one size, but for a smaller last batch."""
    first, last = batches[0], batches[-1]
    same = all(tensor.shape == first.shape for tensor in batches[:-1])
    return first.ndim > 0 and same and last.shape[1:] == first.shape[1:] and len(last) <= len(first)


def _places(fits: Sequence[bool], team: Team) -> list[int]:
    """Where all of `team` say yes."""
    misfits = team.numbers(*(float(not fit) for fit in fits))
    return [place for place, count in enumerate(misfits) if not count]


def flat(output: Any) -> Tensor:
    """Its numbers, a row a sample; without classes and positions (of a detector, say) that come with them.

    Raises:
        RuntimeError: They are not so many for each sample.
    """
    tensors = [tensor for tensor in _tensors(output) if tensor.ndim]
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()] or tensors
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)


def _numbers(output: Any) -> Tensor:
    """The same to calculate with: infinities (scores of what may not be chosen) count as zero."""
    numbers = flat(output).cpu().double()
    return numbers.masked_fill(numbers.isinf(), 0.0)


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


def check_scores(output: Tensor, *, where: str, remedy: str) -> None:
    """That an output holds class scores.

    Raises:
        SubpruneError: It does not.
    """
    if not is_score(output):
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
