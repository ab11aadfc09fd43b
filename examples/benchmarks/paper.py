"""The paper's comparison on its three networks: tables 3 to 5, figures 1 to 5, and other programs beside them.

    python examples/benchmarks/paper.py --data FOLDER [--methods all] [--nets lenet_mnist] [--ratios 2,8] ...

A run prunes with 512 training inputs drawn by its seed and measures on all 10,000 test images; the ratios of one seed
share a calibration. This project's own method ("ours") sees no labels; the paper's systems are run as the paper runs
them (see methods.py). Finished runs are kept in RESULTS/paper.jsonl and skipped next time; tables (paper.md, paper.csv)
and figures are drawn from all of them that were asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import click
from data import data_option
from figures import TWO, draw_all
from jobs import Job, Row, line_of, read
from methods import METHODS, methods_option
from models import load_network, nets_option
from runs import Bench, ratios_at
from tables import markdown, save
from tuning import TUNINGS

SHARED = ("net", "method", "seed", "reweight", "budget", "layers", "samples")
"""Jobs that agree in these are pruned together."""


def numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    """`2,4,8` or `42-46`."""
    found: list[int] = []
    try:
        for part in value.split(","):
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 2,4,8 or 42-46") from error
    return tuple(found)


def floats(_context: click.Context, _option: click.Parameter, value: str) -> tuple[float, ...]:
    """`2,4.5,8`."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 2,4,8") from error


def words(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A list of words out of `known`."""

    def parse(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(value.split(","))
        if unknown := set(names) - set(known):
            raise click.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(known)}")
        return names

    return parse


def together(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that one calibration serves."""
    found: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        found.setdefault(tuple(getattr(job, name) for name in SHARED), []).append(job)
    yield from found.values()


@click.command()
@data_option
@nets_option
@methods_option
@click.option("--ratios", callback=floats, default="2,4,8,16,32", show_default=True)
@click.option("--seeds", callback=numbers, default="42-46", show_default=True)
@click.option("--reweight", callback=words(("with", "without")), default="with,without", show_default=True)
@click.option("--tuning", callback=words(TUNINGS), default="none", show_default=True, help="Fine-tuning.")
@click.option("--two-layers", is_flag=True, help="Figures 4 and 5: two convolutions of VGG11, at its own ratios.")
@click.option("--budget", type=click.Choice(["output", "accuracy", "error", "uniform"]), help="Default: the method's.")
@click.option("--samples", default=512, show_default=True, help="Calibration inputs.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default="results", show_default=True)
@click.option("--fresh", is_flag=True, help="Forget finished runs of RESULTS.")
def main(
    *,
    data: Path | None,
    nets: tuple[str, ...],
    methods: tuple[str, ...],
    ratios: tuple[float, ...],
    seeds: tuple[int, ...],
    reweight: tuple[str, ...],
    tuning: tuple[str, ...],
    two_layers: bool,
    budget: str | None,
    samples: int,
    results: Path,
    fresh: bool,
) -> None:
    """Measure accuracy, speed-up and pruning time after pruning, beside the paper's figures."""
    results.mkdir(parents=True, exist_ok=True)
    journal = results / "paper.jsonl"
    if fresh:
        journal.unlink(missing_ok=True)
    done = {row.job: row for row in read(journal)}
    journal.write_text("".join(map(line_of, done.values())), encoding="utf-8")  # without a cut-off line
    layers: tuple[str, ...] = ()
    budgets: tuple[str | None, ...] = (budget,)
    if two_layers:
        layers, budgets, nets = TWO, ("accuracy", "uniform"), ("vgg11_cifar10",)
        ratios = ratios_at(load_network(*nets, data), TWO)
    jobs = [
        Job(net, method, ratio, seed, word == "with", tuned, rule, layers, samples)
        for net, method, seed, word, rule in product(nets, methods, seeds, reweight, budgets)
        if word == "with" or METHODS[method].both
        for tuned, ratio in product(tuning, ratios)
    ]
    bench = Bench(data)
    for batch in together([job for job in jobs if job not in done]):
        for row in bench.run(batch):
            done[row.job] = row
            with journal.open("a", encoding="utf-8") as file:
                file.write(line_of(row))
            click.echo(said(row), err=True)
    rows = [done[job] for job in jobs]
    save(rows, results)
    click.echo(markdown(rows))
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no figures: matplotlib is not installed", err=True)
        return
    for path in draw_all(rows, results):
        click.echo(f"wrote {path}")


def said(row: Row) -> str:
    """One line about a finished run."""
    job = row.job
    how = ", ".join(
        [*(["not reweighted"] if not job.reweight else []), *([job.tuning] if job.tuning != "none" else [])]
    )
    which = f"{job.net} {job.method}{f' ({how})' if how else ''} ratio {job.ratio:g} seed {job.seed}"
    return (
        f"{which}: {row.accuracy:.2f} % of {row.original:.2f} %, achieved {row.achieved:.2f}, "
        f"speed-up {row.speedup:.2f}, {row.seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
