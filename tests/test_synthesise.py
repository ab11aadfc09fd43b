"""Inputs made up where there are none: what they look like, what they match, and their shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.bundle import Bundle
from subprune_fx.cli.main import main
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.archive import as_module
from subprune_fx.formats.input_spec import InputSpec, arguments_of
from subprune_fx.numerics.scenes import scenes
from subprune_fx.passes.guess import guess
from subprune_fx.passes.synthesise import Wanted, synthesise

SHAPE = (3, 16, 16)


def conv_net(classes: int = 10, stride: int = 1, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(channels, 8, 3, stride), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes)).eval()


def trained() -> nn.Module:
    """Statistics of inputs that are not what scenes look like."""
    network = conv_net().train()
    for _ in range(60):
        network(0.3 * torch.randn(64, *SHAPE) + torch.tensor([1.0, -1.0, 0.5]).view(3, 1, 1))
    return network.eval()


# Scenes.


@pytest.mark.parametrize("shape", [(3, 20, 24), (1, 9, 9), (4, 64), (2, 6, 8, 8), (7,)])
def test_scenes_are_standard_and_reproducible(shape: tuple[int, ...]) -> None:
    made = scenes(24, shape, 5)
    assert made.shape == (24, *shape)
    assert made.dtype == torch.float32
    assert abs(float(made.mean())) < 1e-5
    assert abs(float(made.std(correction=0)) - 1) < 1e-5
    assert torch.equal(made, scenes(24, shape, 5))
    assert not torch.equal(made, scenes(24, shape, 6))


def test_scenes_have_their_channels_where_the_network_has_them() -> None:
    assert torch.equal(scenes(4, (9, 12, 3), 5), scenes(4, (3, 9, 12), 5).permute(0, 2, 3, 1))


def test_scenes_have_a_natural_spectrum() -> None:
    """Power falls with frequency as f^-2 or so; it is flat in noise."""

    def slope(images: Tensor) -> float:
        power = torch.fft.rfft2(images[:, 0]).abs().square().mean(0)[0, 1:17]
        frequency = np.log(np.arange(1, 17))
        return float(np.polyfit(frequency, np.log(power.numpy()), 1)[0])

    assert -3 < slope(scenes(64, (3, 48, 48), 0)) < -1
    assert abs(slope(torch.randn(64, 3, 48, 48))) < 0.3


def test_colours_of_scenes_are_correlated() -> None:
    pixels = scenes(64, (3, 16, 16), 0).transpose(0, 1).flatten(1)
    assert 0.6 < float(torch.corrcoef(pixels)[0, 1]) < 0.95


# Matching.


def distance(network: nn.Module, inputs: Tensor) -> float:
    """Of the statistics of the first BatchNorm's input."""
    bn = network.get_submodule("1")
    assert isinstance(bn, nn.BatchNorm2d)
    read = network.get_submodule("0")(inputs)
    return float(((read.mean((0, 2, 3)) - bn.running_mean).square() / bn.running_var).mean())


SPELLED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "module": lambda network: network,
    "exported": lambda network: as_module(torch.export.export(network, (torch.zeros(2, *SHAPE),)), "")[0],
    "decomposed": lambda network: as_module(
        torch.export.export(network, (torch.zeros(2, *SHAPE),)).run_decompositions(), ""
    )[0],
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_made_up_inputs_match_batch_norm(spelling: str) -> None:
    network = trained()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = scenes(192, SHAPE, 0)
    made = synthesise(SPELLED[spelling](network), [Wanted("x", SHAPE)])
    assert made.how == "192 made-up inputs (pictures of discs of shape (3, 16, 16), moved to match 2 BatchNorm layers)"
    assert isinstance(made.inputs, Tensor)
    assert made.inputs.shape == start.shape
    with torch.no_grad():
        assert distance(network, made.inputs) < 0.2 * distance(network, start)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_without_batch_norm_they_are_scenes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4))
    made = synthesise(network, [Wanted("x", SHAPE)], seed=3)
    assert made.how == "192 made-up inputs (pictures of discs of shape (3, 16, 16))"
    assert torch.equal(made.inputs, scenes(192, SHAPE, 3))  # type: ignore[arg-type]


def test_a_batch_norm_without_statistics_is_no_goal() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    assert "BatchNorm" not in synthesise(network, [Wanted("x", SHAPE)]).how


# Shapes.


class Text(nn.Module):
    """Tokens, a mask and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 6), nn.Embedding(9, 6)
        self.score = nn.Linear(6, 70)

    def forward(self, ids: Tensor, places: Tensor, attention_mask: Tensor, temperature: Tensor) -> Tensor:
        found = (self.words(ids) + self.places(places)) * attention_mask[..., None]
        scores: Tensor = self.score(found.mean(1)) * temperature
        return scores


def test_tokens_stay_inside_their_tables() -> None:
    takes = [InputSpec(name, sample=(1, 7)) for name in ("ids", "places", "attention_mask")]
    found = guess(Text(), [*takes, InputSpec("temperature", sample=(1, 1))], "net.pt")
    assert not found.guessed
    assert [item.tokens for item in found.wanted[:2]] == [50, 9]
    assert found.wanted[3].tokens is None
    made = synthesise(Text(), found.wanted).inputs
    assert isinstance(made, Bundle)
    assert made.names == ("ids", "places", "attention_mask", "temperature")
    assert int(made.parts[0].max()) == 49
    assert bool((made.parts[2] == 1).all())


GUESSED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "thumbnails": (conv_net(), (3, 32, 32)),
    "digits": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3)), (1, 28, 28)),
    "photographs, by stride": (conv_net(stride=2), (3, 224, 224)),
    "photographs, by classes": (conv_net(classes=1000), (3, 224, 224)),
    "vector": (nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)), (9,)),
    "series": (nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU()), (2, 1024)),
    "tokens": (nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2)), (16,)),
}


@pytest.mark.parametrize("name", GUESSED)
def test_shapes_are_guessed_from_the_weights(name: str) -> None:
    network, shape = GUESSED[name]
    found = guess(network.eval(), arguments_of(network), "net.pt")
    assert found.guessed
    assert [item.shape for item in found.wanted] == [shape]
    assert found.wanted[0].tokens == (11 if name == "tokens" else None)


def test_free_sizes_are_filled_in() -> None:
    takes = [InputSpec("x", accepts=(None, 3, None, None))]
    assert guess(conv_net(), takes, "").wanted[0].shape == (3, 32, 32)


def _claiming(name: str, value: Any) -> nn.Module:
    """A network whose first layer says something of itself that is not so."""
    network = conv_net()
    setattr(next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), name, value)
    return network


@pytest.mark.parametrize(
    ("network", "takes", "says"),
    [
        (nn.ReLU(), (), "input shape is not known.*--input-shape"),
        (nn.Bilinear(2, 2, 2), (InputSpec("a"), InputSpec("b")), r"shapes of its inputs are not known \(a, b\)"),
        (conv_net(), (InputSpec("x", sample=(1, 3, 10**7, 10**7)),), "more than half of this machine's memory"),
        (_claiming("in_channels", 10**12), (), "more than half of this machine's memory"),
        (_claiming("in_channels", "many"), (), "damaged network"),
        (_claiming("stride", None), (), "damaged network"),
    ],
)
def test_what_cannot_be_guessed(network: nn.Module, takes: Any, says: str) -> None:
    with pytest.raises(SubpruneError, match=says):
        guess(network, takes, "net.pt")


def test_in_python() -> None:
    network = trained().train()
    made = subprune_fx.synthetic_inputs(network, SHAPE, seed=1)
    assert isinstance(made, Tensor)
    assert made.shape == (192, *SHAPE)
    assert network.training
    assert torch.equal(made, synthesise(network, [Wanted("input", SHAPE)], seed=1).inputs)  # type: ignore[arg-type]
    small = subprune_fx.prune(network, made, ratio=2).module
    assert small(made[:2]).shape == (2, 10)


def test_the_command_says_what_it_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained(), tmp_path / "net.pt")
    assert main([str(tmp_path / "net.pt"), "--ratio", "2", "-o", str(tmp_path / "a.onnx")]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"warning: no --calib: .*pictures of discs of shape \(3, 32, 32\), moved to match 2 Batch", said
    ), said
    assert "guessed from the weights" in said


def test_labelled_inputs_say_the_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained(), tmp_path / "net.pt")
    np.savez(tmp_path / "xy.npz", x=np.zeros((9, 3, 20, 20), np.float32), y=np.zeros(9, np.int64))
    arguments = [str(tmp_path / "net.pt"), "--ratio", "2", "--eval", str(tmp_path / "xy.npz")]
    assert main([*arguments, "-o", str(tmp_path / "a.onnx")]) == 0
    said = capsys.readouterr().err
    assert "of shape (3, 20, 20)" in said
    assert "guessed" not in said
