"""How far any choice of channels could take LeNet: exchange steps from the plan's own, on the network's output.

    python examples/benchmarks/exchange.py --data FOLDER --ratio 32 --seed 42

A step swaps channels of a layer, or trades some of one layer for some of another within the number of parameters; all
layers are refitted, and it stays if the output on the calibration inputs comes closer to the original's. Thousands of
steps are cheap here and nowhere else: this measures what is left to gain, it is no way to prune.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from data import data_option, load_images, normalise
from models import load_network
from torch import Tensor, nn
from torch.nn import functional

import subprune_fx

RIDGE, ROUNDS = 1e-3, 2
Kept = dict[str, frozenset[int]]
Network = Callable[[Tensor], Tensor]


def pooled(z: Tensor) -> Tensor:
    """What a convolution's output becomes."""
    return functional.max_pool2d(functional.relu(z), 2)


class Trials:
    """Networks with some of LeNet's channels, refitted layer by layer (asym, with rounds)."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        """Run the original once on the calibration inputs."""
        self._layers = dict(network.named_children())
        self.sizes = {name: len(layer.get_parameter("weight")) for name, layer in list(self._layers.items())[:-1]}
        first = self._layers["conv1"](x)
        second = self._layers["conv2"](pooled(first))
        third = self._layers["fc1"](pooled(second).flatten(1))
        fourth = self._layers["fc2"](functional.relu(third))
        self._maps = first, second
        self._rows = {"conv2": second.permute(0, 2, 3, 1).flatten(0, 2), "fc1": third, "fc2": fourth}
        self._rows["fc3"] = self._layers["fc3"](functional.relu(fourth))
        self._patches = functional.unfold(pooled(first), 3).transpose(1, 2).flatten(0, 1)

    def parameters(self, kept: Kept) -> int:
        """How many a network has."""
        a, b, c, d = (len(kept[name]) for name in self.sizes)
        return a * 10 + b * (a * 9 + 1) + c * (b * 25 + 1) + d * (c + 1) + 10 * (d + 1)

    def network(self, kept: Kept) -> tuple[float, Network]:
        """The change of its output, relative to that output's spread over classes, and the network."""
        a, b, c, d = (torch.tensor(sorted(kept[name])) for name in self.sizes)
        columns = (a[:, None] * 9 + torch.arange(9)).flatten()
        patches, shape = self._patches[:, columns], self._maps[1].shape
        second = self._fit("conv2", patches, b, columns, ROUNDS)
        maps = (patches @ second[0] + second[1]).reshape(shape[0], *shape[2:], -1).permute(0, 3, 1, 2)
        hidden = pooled(maps).flatten(1)
        rest = []
        columns = (b[:, None] * 25 + torch.arange(25)).flatten()
        for name, outputs, rounds in (("fc1", c, ROUNDS), ("fc2", d, ROUNDS), ("fc3", torch.arange(10), 0)):
            rest.append(self._fit(name, hidden, outputs, columns, rounds))
            hidden = hidden @ rest[-1][0] + rest[-1][1]
            hidden = functional.relu(hidden) if rounds else hidden
            columns = outputs

        def run(x: Tensor) -> Tensor:
            x = pooled(self._layers["conv1"](x)[:, a])
            x = pooled(functional.conv2d(x, second[0].T.reshape(len(b), len(a), 3, 3), second[1])).flatten(1)
            for weight, bias in rest[:-1]:
                x = functional.relu(x @ weight + bias)
            return x @ rest[-1][0] + rest[-1][1]

        found, wanted = (y - y.mean(1, keepdim=True) for y in (hidden, self._rows["fc3"]))
        return float((found - wanted).square().sum() / wanted.square().sum()), run

    def _fit(self, name: str, x: Tensor, outputs: Tensor, columns: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """Weight (columns, outputs) and bias: ridge towards the original, targets saturated by the ReLU behind."""
        layer, y = self._layers[name], self._rows[name][:, outputs]
        weight, bias = (layer.get_parameter(kind)[outputs] for kind in ("weight", "bias"))
        weight = weight.flatten(1)[:, columns].T
        rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
        gram = (rows.T @ rows).double()
        ridge = RIDGE * gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        pull, target = ridge * torch.cat([weight, bias[None]]).double(), y
        for _ in range(rounds + 1):
            fitted = torch.cholesky_solve((rows.T @ target).double() + pull, factor).float()
            target = torch.where(y < 0, (rows @ fitted).clamp(max=0), y)
        return fitted[:-1], fitted[-1]


def exchanged(kept: Kept, trials: Trials, budget: float, rng: np.random.Generator) -> Kept:
    """Another choice of channels within the budget."""
    new = {name: set(chosen) for name, chosen in kept.items()}

    def add(name: str) -> None:
        if rest := sorted(set(range(trials.sizes[name])) - new[name]):
            new[name].add(int(rng.choice(rest)))

    def drop(name: str) -> None:
        if len(new[name]) > 1:
            new[name].discard(int(rng.choice(sorted(new[name]))))

    names = list(trials.sizes)
    one, other = (str(name) for name in rng.choice(names, 2, replace=False))
    add(one)
    if rng.random() < 0.6:
        drop(one)
    for _ in range(trials.sizes[other]):
        if trials.parameters(frozen(new)) > budget:
            drop(other)
    before = frozen(new)
    while trials.parameters(frozen(new)) <= budget and len(new["fc2"]) < trials.sizes["fc2"]:
        before = frozen(new)
        add("fc2")
    return before


def frozen(kept: dict[str, set[int]]) -> Kept:
    """The same, as a value."""
    return {name: frozenset(chosen) for name, chosen in kept.items()}


@click.command()
@data_option
@click.option("--ratio", default=32.0, show_default=True)
@click.option("--seed", default=42, show_default=True)
@click.option("--steps", default=4000, show_default=True, help="How many exchanges to try.")
@torch.no_grad()
def main(data: Path | None, ratio: float, seed: int, steps: int) -> None:
    """Accuracy of the plan's choice of channels, and of the best that exchange steps find."""
    images, network, rng = load_images("mnist", data), load_network("lenet_mnist", data), np.random.default_rng(seed)
    x = normalise(images.train[rng.choice(len(images.train), 512, replace=False)], "mnist")
    test, labels = normalise(images.test, "mnist"), torch.from_numpy(images.test_labels)
    with torch.enable_grad():
        plan = subprune_fx.prune(network, x, ratio=ratio, seed=seed)[1]
    trials = Trials(network, x)
    kept = {name: frozenset(range(size)) for name, size in trials.sizes.items()}
    kept |= {made.group: frozenset(made.kept) for made in plan.decisions}

    def tell(what: str, error: float, run: Network) -> None:
        accuracy = 100 * float((run(test).argmax(1) == labels).double().mean())
        widths = ", ".join(f"{name} {len(chosen)}" for name, chosen in kept.items())
        click.echo(f"{what}: accuracy {accuracy:.2f} %, output change {error:.4f} ({widths})")

    error, run = trials.network(kept)
    tell("the plan's", error, run)
    budget = sum(p.numel() for p in network.parameters()) / ratio
    for _ in range(steps):
        new = exchanged(kept, trials, budget, rng)
        if trials.parameters(new) > budget:
            continue
        found, made = trials.network(new)
        if found < error:
            kept, error, run = new, found, made
    tell(f"after {steps} steps", error, run)


if __name__ == "__main__":
    main()
