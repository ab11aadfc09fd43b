"""Widths that are multiples, and layers whose channels the user fixes: every rule honours them, and the ratio holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx import Layer, SubpruneError
from subprune_fx.formats.layers import load_layers
from subprune_fx.passes.budgets import BUDGETS
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.steps import BLOCK, SMALL, Multiple, multiples


class Coupled(nn.Module):
    """A residual stream, a depthwise convolution, a concatenation and a flatten; one layer narrower than 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.inner = nn.Conv2d(32, 40, 3, padding=1)
        self.depth = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.back = nn.Conv2d(40, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.side = nn.Conv2d(32, 24, 1)
        self.narrow = nn.Conv2d(56, 6, 1)
        self.head = nn.Linear(6 * 16, 50)
        self.out = nn.Linear(50, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.back(torch.relu(self.depth(torch.relu(self.inner(x)))))))
        x = torch.cat([x, torch.relu(self.side(x))], 1)
        found: Tensor = self.out(torch.relu(self.head(torch.relu(self.narrow(x)).flatten(1))))
        return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return Coupled().eval()


INPUTS = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(1))
FREE = ("stem", "inner", "depth", "back", "norm", "side", "head")


@pytest.mark.parametrize("align", [4, 8])
@pytest.mark.parametrize(
    "options", [*({"budget": name} for name in BUDGETS), {"select": "weightnorm"}, {"select": "layersampling"}]
)
def test_every_width_is_a_multiple_and_the_ratio_holds(align: int, options: dict[str, Any]) -> None:
    pruned = subprune_fx.prune(network(), INPUTS, ratio=2.5, align=align, **options)
    assert pruned.report.achieved >= 2.5
    kept = {row.name: row.kept for row in pruned.report.groups}
    whole = network().state_dict()
    for name, value in pruned.module.state_dict().items():
        layer = name.split(".")[0]
        if layer in FREE and value.ndim:
            assert value.shape[0] % align == 0 or value.shape[0] == whole[name].shape[0], name
    assert kept["narrow"] in ((6,) if align == 8 else (4, 6))  # whole, where there is no multiple
    assert pruned.module.get_parameter("narrow.weight").shape[1] % align == 0  # the concatenation
    with torch.no_grad():
        assert pruned.module(INPUTS).shape == (24, 4)


def test_alignment_costs_at_most_a_step_of_size() -> None:
    """The next smaller network would be needed only if the one before it were too large."""
    aligned = subprune_fx.prune(network(), INPUTS, ratio=2, align=8, budget="error").report
    assert 2 <= aligned.achieved < 2.6


def test_a_fraction_is_aligned_too() -> None:
    report = subprune_fx.prune(network(), INPUTS, keep=0.5, align=8).report
    assert {row.name: row.kept for row in report.groups} == {
        "stem": 16,
        "inner": 16,
        "side": 8,
        "narrow": 6,
        "head": 24,
    }


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_convolutions_read_is_aligned_by_itself(budget: str) -> None:
    report = subprune_fx.prune(network(), INPUTS, ratio=2, budget=budget).report
    kept = {row.name: row.kept for row in report.groups}
    assert kept["stem"] % BLOCK == kept["inner"] % BLOCK == kept["side"] % BLOCK == 0


def test_what_convolutions_read() -> None:
    """Few channels are read as they are; of those that a depthwise convolution reads, or others join, fewer still."""
    channels = analyse(network(), INPUTS[:2]).channels
    free, block = Multiple(), Multiple(BLOCK, BLOCK)
    wanted = {"stem": block, "inner": block, "side": block, "narrow": free, "head": free}
    assert multiples(channels, None) == wanted
    assert multiples(channels, 8) == dict.fromkeys(wanted, Multiple(8))
    plain = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()
    assert multiples(analyse(plain, INPUTS[:2]).channels, None) == {"0": Multiple(BLOCK, SMALL)}
    kept = [subprune_fx.prune(plain, INPUTS, keep=k / 24).report.groups[0].kept for k in range(1, 24)]
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 20, 20, 20, 20]


def test_a_number_of_channels_that_is_asked_for_need_not_be_a_multiple_that_was_not() -> None:
    report = subprune_fx.prune(network(), INPUTS, layers=[Layer("inner", channels=17)]).report
    assert {row.name: row.kept for row in report.groups}["inner"] == 17


def test_an_unreachable_ratio_names_the_largest_aligned_one() -> None:
    with pytest.raises(SubpruneError, match="cannot be reached") as caught:
        subprune_fx.prune(network(), INPUTS, ratio=100, align=8)
    largest = float(caught.value.remedy.split()[-1])
    report = subprune_fx.prune(network(), INPUTS, ratio=largest, align=8).report
    assert {row.name: row.kept for row in report.groups} == {"stem": 8, "inner": 8, "side": 8, "narrow": 6, "head": 8}


def test_layers_get_what_is_asked_and_the_rest_meets_the_ratio() -> None:
    layers = [Layer("*e*", ratio=1), Layer("inner", channels=17), Layer("head", ratio=3)]  # the last match counts
    report = subprune_fx.prune(network(), INPUTS, ratio=1.8, layers=layers).report
    kept = {row.name: row.kept for row in report.groups}
    assert kept == {**kept, "stem": 32, "side": 24, "inner": 17, "head": 16}
    assert kept["narrow"] <= 6
    assert report.achieved >= 1.8


def test_without_a_ratio_only_the_layers_are_pruned() -> None:
    report = subprune_fx.prune(network(), INPUTS, layers=[Layer("in*", ratio=2.5), Layer("head", channels=7)]).report
    kept = {row.name: row.kept for row in report.groups}
    assert kept == {"stem": 32, "inner": 16, "side": 24, "narrow": 6, "head": 7}
    assert report.ratio == pytest.approx(report.achieved, rel=0.01)  # the intercepts of layers without bias


@pytest.mark.parametrize(
    ("layer", "more", "says"),
    [
        (Layer("tail", ratio=2), {}, "no prunable layer is called 'tail'; there are stem"),
        (Layer("head", channels=51), {}, "head: 51 channels leaves 51 of its 50 channels"),
        (Layer("narrow", ratio=7), {}, "narrow: ratio 7 leaves 0 of its 6 channels"),
        (Layer("head", ratio=0.5), {}, "head: ratio 0.5 is not a number of at least 1"),
        (Layer("head"), {}, "one of the two"),
        (Layer("head", ratio=1, channels=2), {}, "one of the two"),
        (Layer("head", channels=20), {"align": 8}, "head: 20 channels are not aligned to 8; use 16, 24"),
        (Layer("head", channels=50), {"ratio": 100}, "ratio 100 cannot be reached"),
    ],
)
def test_what_a_layer_does_not_have_is_refused(layer: Layer, more: dict[str, Any], says: str) -> None:
    with pytest.raises(SubpruneError, match=says):
        subprune_fx.prune(network(), INPUTS, layers=[layer], **more)


@pytest.mark.parametrize("align", [0, -8, 2.0])
def test_an_alignment_that_is_none_is_refused(align: Any) -> None:
    with pytest.raises(SubpruneError, match="is not a whole number of at least 1"):
        subprune_fx.prune(network(), INPUTS, ratio=2, align=align)


def test_a_file_of_layers(tmp_path: Path) -> None:
    path = tmp_path / "layers.toml"
    path.write_text('# mine\n[channels]\nfc1 = 40\n[ratio]\n"layer1.*" = 2\nhead = 1.5\n', encoding="utf-8")
    assert load_layers(path) == (Layer("fc1", channels=40), Layer("layer1.*", ratio=2), Layer("head", ratio=1.5))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no layer"),
        ("[ratio", "is not TOML"),
        ("[ratio]\nlayer1.0 = 2", r'has layer1 with a dot outside of quotes; write "layer1.0"'),
        ("[ratio]\nfc = true", "fc = True is not a number"),
        ("[channels]\nfc = 2.5", "fc = 2.5 is not a whole number"),
        ("[ratio]\nfc = nan", r"\[ratio\] fc is not between 1 and"),
        ("[ratio]\nfc = 0.5", r"\[ratio\] fc is not between 1 and"),
        ("[ratio]\nfc = 1" + "0" * 400, r"\[ratio\] fc is not between 1 and"),
        ("[channels]\nfc = 0", r"\[channels\] fc is not between 1 and"),
        ("fc = 2", r"has 'fc' outside of \[ratio\] and \[channels\]"),
        ("[share]\nfc = 2", "has 'share' outside"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("#" * (2**20 + 1), "holds more than"),
    ],
)
def test_files_that_say_something_else_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SubpruneError, match=says):
        load_layers(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SubpruneError, match="is not TOML"):
        load_layers(path)
    with pytest.raises(SubpruneError, match="no such file"):
        load_layers(tmp_path / "gone.toml")
