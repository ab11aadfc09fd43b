"""Prune recurrent networks: trained here to read MNIST row by row, and a speaker encoder that a package of PyPI ships.

    python examples/benchmarks/recurrent.py [--only lstm ...] [--ratios 1.5,2,4] [--data FOLDER] [--work FOLDER]

MNIST's are judged by accuracy on the whole test set. Resemblyzer's encoder (three LSTM layers, 160 steps; Wan et al.
2018) hears parts of the first half of the 30 s of speech in pyannote.audio, at other speeds and loudness, with noise,
and is judged by the cosine between its embeddings and the original's on parts of the second half. Nothing is trained.
"""

from __future__ import annotations

import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from data import data_option, load_images, normalise
from mobilenet import member
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import subprune_fx

SAMPLES = 512
EPOCHS = 4
ENCODER = ("Resemblyzer==0.1.4", "pretrained.pt")
SPEECH = ("pyannote-audio==4.0.7", "sample.wav")
WINDOW, HOP, FRAMES, BANDS, RATE = 400, 160, 160, 40, 16_000
Judge = Callable[[nn.Module], float]


class Rows(nn.Module):
    """An image's rows, one after the other."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], layers: int) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(28, 64), nn.Linear(96, 64)
        self.steps, self.last = kind(64, 96, layers, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits; x: (samples, 1, 28, 28)."""
        steps, _ = self.steps(torch.relu(self.before(x.squeeze(1))))
        scores: Tensor = self.last(torch.relu(self.after(steps[:, -1])))
        return scores


class Cells(nn.Module):
    """The same network, one layer, as a loop that calls a cell."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.before, self.after, self.last = rows.before, rows.after, rows.last
        self.cell = (nn.LSTMCell if isinstance(rows.steps, nn.LSTM) else nn.GRUCell)(64, 96)
        self.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in rows.steps.state_dict().items()})

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits; x: (samples, 1, 28, 28)."""
        steps, state = torch.relu(self.before(x.squeeze(1))), None
        for step in steps.unbind(1):
            state = self.cell(step, state)
        made = state[0] if isinstance(state, tuple) else state
        scores: Tensor = self.last(torch.relu(self.after(made)))
        return scores


class Encoder(nn.Module):
    """Resemblyzer's `VoiceEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(BANDS, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of length 1; x: (samples, frames, bands)."""
        _, (state, _) = self.lstm(x)
        found = torch.relu(self.linear(state[-1]))
        unit: Tensor = found / torch.norm(found, dim=1, keepdim=True)
        return unit


def digits(
    kind: type[nn.LSTM | nn.GRU], layers: int, data: Path | None, *, cells: bool = False
) -> tuple[nn.Module, Tensor, Judge]:
    """A network trained on MNIST, perhaps as a loop of `cells`, its calibration inputs, and its accuracy, %."""
    images = load_images("mnist", data)
    torch.manual_seed(0)
    network = Rows(kind, layers)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    x, y = normalise(images.train, "mnist"), torch.from_numpy(images.train_labels)
    for _ in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(x)), 128):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(network(x[chosen]), y[chosen]))
            optimizer.step()
        schedule.step()
    test, wanted = normalise(images.test, "mnist"), torch.from_numpy(images.test_labels)

    def accuracy(pruned: nn.Module) -> float:
        return 100 * float((outputs(pruned, test).argmax(1) == wanted).double().mean())

    made = Cells(network) if cells else network
    return made.eval(), x[torch.randperm(len(x))[:SAMPLES]], accuracy


def speakers(work: Path) -> tuple[nn.Module, Tensor, Judge]:
    """The speaker encoder, its calibration inputs, and the mean cosine with its embeddings of others."""
    network = Encoder()
    network.load_state_dict(torch.load(member(*ENCODER, work), "cpu", weights_only=True)["model_state"], strict=False)
    with wave.open(str(member(*SPEECH, work))) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15
    network.eval()
    calibration, others = (heard(half, seed) for seed, half in enumerate(np.array_split(sound, 2)))
    wanted = outputs(network, others)

    def cosine(pruned: nn.Module) -> float:
        return float(functional.cosine_similarity(outputs(pruned, others), wanted).mean())

    return network, calibration, cosine


def heard(sound: NDArray[Any], seed: int) -> Tensor:
    """Mel spectrograms of parts of a sound, (samples, frames, bands)."""
    rng, parts = np.random.default_rng(seed), []
    for _ in range(SAMPLES):
        speed = rng.uniform(0.8, 1.25)
        length = int(FRAMES * HOP * speed) + 1
        start = rng.integers(0, len(sound) - length)
        part = np.interp(np.arange(FRAMES * HOP) * speed, np.arange(length), sound[start : start + length])
        parts.append(part * 10 ** rng.uniform(-0.3, 0.3) + rng.normal(0, 10 ** rng.uniform(-5, -2.5), len(part)))
    waves = torch.from_numpy(np.stack(parts)).float()
    spectra = torch.stft(waves, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    return (bands() @ spectra).mT[:, :FRAMES].contiguous()


def bands() -> Tensor:
    """Slaney's mel filters, (bands, frequencies), as librosa has them."""
    step, bend = np.log(6.4) / 27, 15.0
    top = bend + np.log(RATE / 2 / 1000) / step
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < bend, mels * 200 / 3, 1000 * np.exp(step * (mels - bend)))
    away = edges[:, None] - np.fft.rfftfreq(WINDOW, 1 / RATE)
    widths = np.diff(edges)[:, None]
    rise, fall = -away[:-2] / widths[:-1], away[2:] / widths[1:]
    filters = np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])[:, None]
    return torch.from_numpy(filters).float()


@torch.no_grad()
def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """All outputs."""
    return torch.cat([network(part) for part in torch.split(inputs, 256)])


NETWORKS: dict[str, Callable[[Path | None, Path], tuple[nn.Module, Tensor, Judge]]] = {
    "lstm": lambda data, _: digits(nn.LSTM, 1, data),
    "gru": lambda data, _: digits(nn.GRU, 1, data),
    "lstm cells": lambda data, _: digits(nn.LSTM, 1, data, cells=True),
    "gru cells": lambda data, _: digits(nn.GRU, 1, data, cells=True),
    "three lstm layers": lambda data, _: digits(nn.LSTM, 3, data),
    "speaker encoder": lambda _, work: speakers(work),
}


@click.command(help=__doc__)
@data_option
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Repeatable.")
@click.option("--ratios", default="1.2,1.5,2,4", show_default=True, help="Parameters before / after.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("results/recurrent"), help="Downloads.")
def main(data: Path | None, only: tuple[str, ...], ratios: str, work: Path) -> None:
    """Prune each at every ratio and print what it is worth."""
    work.mkdir(parents=True, exist_ok=True)
    for name in only or NETWORKS:
        network, calibration, judge = NETWORKS[name](data, work)
        click.echo(f"{name}: {judge(network):.4g} before")
        for ratio in map(float, ratios.split(",")):
            start = time.perf_counter()
            pruned = subprune_fx.prune(network, calibration, ratio=ratio)
            kept = ", ".join(f"{group.name} {group.kept}" for group in pruned.report.groups)
            took = time.perf_counter() - start
            click.echo(f"  {pruned.report.achieved:.2f}: {judge(pruned.module):.4g} ({kept}; {took:.0f} s)")


if __name__ == "__main__":
    main()
