"""The paper's tables 1 and 2, the submodularity ratio and Proposition 6.1, on its three networks.

    python examples/benchmarks/theory.py --data FOLDER [--nets lenet_mnist] [--random-patches] [--sets 4]

A column a quantity: the upper bound on k / n under which the paper's lower bound on the ratio is not zero (here and in
the paper), the rank of A, upper estimates of the ratio (along greedy's path for k = n / 2, and of random sets), and at
k = n / 8, n / 4 and n / 2 greedy's relative error with Proposition 6.1's bound.
"""

from __future__ import annotations

from pathlib import Path

import click
from data import data_option, draw, load_images, normalise
from methods import SPARED
from models import BENCHMARKS, load_network, nets_option

import subprune_fx

PAPER: dict[tuple[str, bool], tuple[float, ...]] = {
    ("lenet_mnist", False): (0.37, 1, 0.46, 0.49),
    ("vgg11_cifar10", False): (0.22, 0.39, 0.25, 0.28, 0.06, 0.03, 0.01, 1, 1),
    ("vgg11_cifar10", True): (0.38, 0.43, 0.29, 0.31, 0.15, 0.08, 0.1, 1, 1),
    ("resnet56_cifar10", False): (
        *(0.12, 0.15, 0.22, 0.22, 0.30, 0.28, 0.44, 0.35, 0.15),
        *(0.48, 0.47, 0.48, 0.47, 0.48, 0.47, 0.48, 0.47, 0.48),
        *(0.47, 0.49, 0.46, 0.48, 0.48, 0.49, 0.48, 0.48, 1),
    ),
}
"""Tables 1 (all patches) and 2 (random ones), by network in the order of its layers."""


@click.command()
@data_option
@nets_option
@click.option("--samples", default=512, show_default=True, help="Inputs.")
@click.option("--seed", default=42, show_default=True)
@click.option("--sets", default=4, show_default=True, help="Random sets a layer for the ratio's estimate.")
@click.option("--random-patches", is_flag=True, help="Table 2: as many random patches an image as a patch has pixels.")
def main(data: Path | None, nets: tuple[str, ...], samples: int, seed: int, sets: int, random_patches: bool) -> None:
    """Print the diagnostics as a table a network."""
    for name in nets:
        kind = BENCHMARKS[name].images
        images = load_images(kind, data)
        inputs = normalise(images.train[draw(len(images.train), samples, seed)], kind)
        found = subprune_fx.diagnose(
            load_network(name, data), inputs, skip=SPARED[name], patches=random_patches, samples=sets, seed=seed
        )
        said = PAPER.get((name, random_patches), ())
        click.echo(f"### {name}\n")
        click.echo(
            "| layer | n | bound on k/n | paper | rank / columns | ratio, path | ratio, sets | n/8 | n/4 | n/2 |"
        )
        click.echo("|---|---|---|---|---|---|---|---|---|---|")
        for number, item in enumerate(found):
            ks = [max(1, item.units // part) for part in (8, 4, 2)]
            errors = " | ".join(f"{item.error[k]:.3f} ≤ {item.bound[k]:.3f}" for k in ks)
            paper = f"{said[number]:.2f}" if number < len(said) else ""
            rank = f"{item.rank} / {item.units * item.columns}"
            ratios = f"{item.ratio[ks[-1]]:.2g} | {item.sampled:.2g}"
            click.echo(f"| {item.group} | {item.units} | {item.bounded:.2f} | {paper} | {rank} | {ratios} | {errors} |")
        click.echo()


if __name__ == "__main__":
    main()
