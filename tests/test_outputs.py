"""What a report says of networks that give no class scores."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import subprune_fx
from subprune_fx.cli.outputs import slow
from subprune_fx.cli.table import show
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.page import page
from subprune_fx.passes.outputs import agreement, batches_of, compared, deviation, output_change
from subprune_fx.report import FileRow


def rms(wanted: Tensor, found: Tensor) -> float:
    left, right = wanted.double().numpy(), found.double().numpy()
    return float(np.sqrt(np.square(right - left).sum() / np.square(left - left.mean(0)).sum()))


def test_the_change_is_that_of_all_batches() -> None:
    wanted, found = torch.randn(11, 3, 4) + 50, torch.randn(11, 3, 4) + 50
    for size in (11, 4, 1):
        pieces = batches_of(wanted, size)
        change = deviation(pieces, batches_of(found, size), [*map(len, pieces)])
        assert change == pytest.approx(rms(wanted, found), rel=1e-9)  # float64 sums of a hundred numbers
    assert deviation([wanted], [wanted], [11]) == 0


@pytest.mark.parametrize(
    "outputs", [[torch.ones(5, 2)], [torch.randn(3, 2)], []], ids=["constant", "a weight alone", "none"]
)
def test_nothing_is_said_where_there_is_no_such_figure(outputs: list[Tensor]) -> None:
    assert deviation(outputs, outputs, [5]) is None


@pytest.mark.parametrize(
    "outputs",
    [[torch.randn(3, 2), torch.randn(3, 2)], [torch.randn(5, 4), torch.randn(5, 7)]],
    ids=["a weight alone", "a detector's selection"],
)
def test_outputs_that_cannot_be_compared_are_said_to_be(outputs: list[Any]) -> None:
    with pytest.raises(SubpruneError, match="cut it before that"):
        output_change(outputs, [5, 5], 10)


def test_positions_that_come_with_numbers_are_left_out() -> None:
    scores, places = torch.randn(5, 2), torch.zeros(9, 3, dtype=torch.int64)
    assert output_change([(scores, places)], [5], 5)([(scores, places[:4])]) == 0


def test_what_is_not_as_many_in_both_networks_is_left_out() -> None:
    """A detector's selection that comes first, as numbers or as positions, and what it was selected from."""
    wanted, found = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    for kind in (torch.float32, torch.int64):
        ten, eleven = torch.zeros(10, 3, dtype=kind), torch.zeros(11, 3, dtype=kind)
        change = deviation([wanted], [found], [5])
        assert compared([(ten, wanted)], [(eleven, found)], [5]) == (None, change)
        assert compared([ten], [eleven], [5]) == (None, None)
    ones = batches_of(wanted, 1)
    several = list(zip([torch.randn(k, 7) for k in (4, 2, 3, 4, 1)], ones, strict=True))
    assert compared(several, [(torch.randn(2, 7), one) for one in ones], [1] * 5) == (None, 0)
    assert output_change(several, [1] * 5, 5)(several) == 0


@pytest.mark.parametrize(
    "given",
    [
        lambda scores: (scores, scores.new_ones(3, 2)),
        lambda scores: (scores.mean(), scores.t()),
        lambda scores: (scores.t()[None], scores.new_zeros(())),
        lambda scores: scores.reshape(-1, 2, 2).transpose(0, 1),
        lambda scores: scores.reshape(-1, 2),
    ],
    ids=["a weight beside", "samples last", "time first", "in the middle", "two rows a sample"],
)
def test_samples_on_any_dimension(given: Callable[[Tensor], Any]) -> None:
    wanted, found, counts = torch.randn(8, 4), torch.randn(8, 4), [5, 3]
    left, right = ([given(one) for one in batches_of(side, 5)] for side in (wanted, found))
    assert deviation(left, right, counts) == pytest.approx(rms(wanted, found), rel=1e-5)
    for samples in (8, 5):
        change = output_change(left, counts, samples)([given(one) for one in batches_of(found[:samples], 5)])
        assert change == pytest.approx(rms(wanted[:samples], found[:samples]) ** 2, rel=1e-5)


def test_a_selection_of_one_size_in_the_original_alone() -> None:
    """It is told apart only when a pruned network gives another."""
    ten, eleven = torch.randn(10, 7), torch.randn(11, 7)
    for metric in (agreement([ten], None), output_change([ten], [5], 5)):
        with pytest.raises(SubpruneError, match="depends on the input; cut it before that"):
            metric([eleven])


def test_a_network_that_gives_pictures() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1)).eval()
    x = torch.randn(64, 3, 8, 8)
    smaller, _, report = subprune_fx.prune(network, x, ratio=2)
    assert report.agreement is None
    assert report.change is not None
    with torch.no_grad():
        assert report.change == pytest.approx(rms(network(x), smaller(x)), rel=1e-4)  # float32 outputs
    written = io.StringIO()
    show([report], verbose=False, console=Console(file=written))
    assert "change of the output, RMS" in written.getvalue()
    assert "change of the output, RMS" in page([report], "net.pt")
    labelled = (x, torch.zeros(64, dtype=torch.int64))
    with pytest.raises(SubpruneError, match=r"\(64, 2, 6, 6\), which is no class score for each sample"):
        subprune_fx.prune(network, x, ratio=2, evaluation=labelled)
    assert "same class" not in written.getvalue() + page([report], "net.pt")


def test_labels_that_are_no_class() -> None:
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(12, 4)
    for wrong in (3, -1):
        labels = torch.zeros(12, dtype=torch.int64)
        labels[5] = wrong
        with pytest.raises(SubpruneError, match=r"none of the network's 3 classes; classes are numbers from 0 to 2"):
            subprune_fx.prune(network, x, ratio=1.5, evaluation=(x, labels))


@pytest.mark.parametrize(
    ("before", "after", "words", "says"),
    [(0.7, 1.1, {}, "slower than"), (0.7, 0.75, {}, "0.93 times as fast as the original, with 1 / 2.00 of its"),
     (0.7, 0.49, {}, ""), (0.02, 0.1, {}, ""), (0.7, 1.1, {"align": 1}, ""), (0.7, 1.1, {"target": "latency"}, ""),
     (0.7, 1.1, {"plan": "a.plan"}, ""), (None, None, {}, "")],
)  # fmt: skip
def test_a_network_that_is_not_as_fast_as_it_could_be_is_warned_of(
    before: float | None, after: float | None, words: dict[str, Any], says: str
) -> None:
    request = SimpleNamespace(**{"align": None, "plan": None, "target": "params"} | words)
    found = slow([FileRow("a.onnx", 1, latency_ms=after, latency_before_ms=before)], request, 2.0)  # type: ignore[arg-type]
    assert len(found) == bool(says)
    assert all(says in note and "--align 8" in note for note in found)


def test_complex_outputs_are_two_numbers_each() -> None:
    wanted, parts = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    left, right = [torch.view_as_complex(wanted)], [torch.view_as_complex(parts)]
    assert compared(left, right, [6]) == compared([wanted], [parts], [6])
    assert output_change(left, [6], 6)(right) == output_change([wanted], [6], 6)([parts])


def test_infinities_in_both_do_not_count() -> None:
    """Policies and language models mask what may not be chosen."""
    wanted, found = torch.randn(6, 3), torch.randn(6, 3)
    masked = [each.clone().index_fill_(1, torch.tensor([1]), -torch.inf) for each in (wanted, found)]
    rest = [each[:, [0, 2]] for each in (wanted, found)]
    assert output_change(masked[:1], [6], 6)(masked[1:]) == pytest.approx(output_change(rest[:1], [6], 6)(rest[1:]))
    assert deviation(masked[:1], masked[1:], [6]) == pytest.approx(deviation(rest[:1], rest[1:], [6]))
    assert output_change([wanted], [6], 6)([found * torch.nan]) != 0


@pytest.mark.parametrize("size", [12, 5])
def test_classes_are_those_of_the_output_that_holds_probabilities(size: int) -> None:
    """A detector's come behind its boxes; where none are probabilities, they are the first output's."""
    torch.manual_seed(0)
    boxes, others, scores = torch.randn(12, 4), torch.randn(12, 4), torch.randn(12, 3).softmax(1)
    same, different = (batches_of(part, size) for part in (scores, scores.roll(1, 1)))
    left, right = (batches_of(part, size) for part in (boxes, others))
    counts = [*map(len, same)]
    wanted = [*zip(left, same, strict=True)]
    assert compared(wanted, [*zip(right, same, strict=True)], counts) == (1.0, None)
    assert compared(wanted, [*zip(left, different, strict=True)], counts) == (0.0, None)
    assert agreement(wanted, None)([*zip(right, same, strict=True)]) == 1.0
    rate = float((boxes.argmax(1) == others.argmax(1)).double().mean())
    plain = [[(a, 2 * b) for a, b in zip(side, same, strict=True)] for side in (left, right)]
    assert compared(plain[0], plain[1], counts)[0] == pytest.approx(rate)
    assert agreement(wanted, [part.argmax(1) for part in left])(wanted) == 1.0  # labels are the first output's
