"""The paper's accuracy tables on its three networks: one-shot, unlabelled inputs, no fine-tuning.

    python examples/benchmarks/paper.py --data FOLDER [--nets lenet_mnist,vgg11_cifar10] [--ratios 2,8] ...

Every (network, ratio, seed) is one `subprune_fx.prune` on training inputs drawn without their labels, and one
evaluation on all 10,000 test images. Finished runs are kept in RESULTS/paper.jsonl and skipped next time.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from data import Images, data_option, draw, load_images, normalise
from models import BENCHMARKS, load_network, nets_option
from numpy.typing import NDArray
from torch import nn

import subprune_fx

EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Job:
    """One run; two equal ones are not run twice.

    Attributes:
        net: A key of `models.BENCHMARKS`.
        ratio: Requested parameter ratio.
        seed: Of the calibration inputs, and of everything random in pruning.
        variant: `asym`, `seq` or `layer`.
        budget: Budget rule; None: the default.
        samples: Calibration inputs.
    """

    net: str
    ratio: float
    seed: int
    variant: str
    budget: str | None
    samples: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What one run gave.

    Attributes:
        job: Which run.
        original: Top-1 accuracy of the original network on the test set, %.
        accuracy: The same of the pruned one, %.
        achieved: Parameters before / after.
        seconds: Wall time of `prune`.
    """

    job: Job
    original: float
    accuracy: float
    achieved: float
    seconds: float


class Bench:
    """Networks, images and original accuracies, each loaded when first asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.images: dict[str, Images] = {}
        self.originals: dict[str, float] = {}

    def run(self, job: Job) -> Row:
        """Prune and evaluate."""
        kind = BENCHMARKS[job.net].images
        network = load_network(job.net, self.folder)
        if kind not in self.images:
            self.images[kind] = load_images(kind, self.folder)
        images = self.images[kind]
        if job.net not in self.originals:
            self.originals[job.net] = top1(network, images, kind)
        chosen = draw(len(images.train), job.samples, job.seed)
        calibration = normalise(images.train[chosen], kind)
        start = time.perf_counter()
        pruned = subprune_fx.prune(
            network, calibration, ratio=job.ratio, variant=job.variant, budget=job.budget, seed=job.seed
        )
        seconds = time.perf_counter() - start
        accuracy = top1(pruned.module, images, kind)
        return Row(job, self.originals[job.net], accuracy, pruned.report.achieved, seconds)


def top1(network: nn.Module, images: Images, kind: str) -> float:
    """Top-1 accuracy on the whole test set, %."""
    hits = 0
    with torch.inference_mode():
        for start in range(0, len(images.test), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            guesses: NDArray[np.int64] = network(normalise(images.test[part], kind)).argmax(1).numpy()
            hits += int((guesses == images.test_labels[part]).sum())
    return 100 * hits / len(images.test)


def read(path: Path) -> list[Row]:
    """Finished runs; a line cut off by an interruption is dropped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(Row(**{**fields, "job": Job(**fields["job"])}))
    return found


def line_of(row: Row) -> str:
    """A finished run as `read` takes it."""
    return json.dumps(dataclasses.asdict(row)) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """One table: accuracy as mean ± sample standard deviation over seeds, beside the paper's."""
    lines = [
        "| network | ratio | paper | here | goal | achieved ratio | seeds | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, benchmark in BENCHMARKS.items():
        mine = [row for row in rows if row.job.net == name]
        if mine:
            original = f"{mine[0].original:.2f}"
            lines.append(f"| {name} | 1 | {benchmark.paper_original:.2f} | {original} | | | | |")
        for ratio, group in groups(mine):
            accuracy = spread([row.accuracy for row in group])
            paper, goal = (table.get(int(ratio), "") for table in (benchmark.paper, benchmark.goal))
            achieved = min(row.achieved for row in group)
            seconds = statistics.median(row.seconds for row in group)
            cells = (
                name,
                f"{ratio:g}",
                paper,
                accuracy,
                goal,
                f"{achieved:.2f}",
                len(group),
                f"{seconds:.1f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def groups(rows: Iterable[Row]) -> Iterator[tuple[float, list[Row]]]:
    """Rows of one network by ratio."""
    rows = list(rows)
    for ratio in sorted({row.job.ratio for row in rows}):
        yield ratio, [row for row in rows if row.job.ratio == ratio]


def spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`; a single value has none."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def save_table(rows: Sequence[Row], folder: Path) -> None:
    """Write paper.csv (a line a run) and paper.md (a line a ratio)."""
    (folder / "paper.md").write_text(markdown(rows), encoding="utf-8")
    flat = [{**dataclasses.asdict(row.job), **dataclasses.asdict(row)} for row in rows]
    with (folder / "paper.csv").open("w", newline="", encoding="utf-8") as file:
        names = [name for name in flat[0] if name != "job"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)


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


@click.command()
@data_option
@nets_option
@click.option("--ratios", callback=numbers, default="2,4,8,16,32", show_default=True)
@click.option("--seeds", callback=numbers, default="42-46", show_default=True)
@click.option("--variant", type=click.Choice(["asym", "seq", "layer"]), default="asym", show_default=True)
@click.option("--budget", type=click.Choice(["output", "accuracy", "error", "uniform"]), help="Default: the library's.")
@click.option("--samples", default=512, show_default=True, help="Calibration inputs.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default="results", show_default=True)
@click.option("--fresh", is_flag=True, help="Forget finished runs of RESULTS.")
def main(
    *,
    data: Path | None,
    nets: tuple[str, ...],
    ratios: tuple[int, ...],
    seeds: tuple[int, ...],
    variant: str,
    budget: str | None,
    samples: int,
    results: Path,
    fresh: bool,
) -> None:
    """Measure one-shot accuracy after pruning, beside the paper's figures."""
    results.mkdir(parents=True, exist_ok=True)
    journal = results / "paper.jsonl"
    if fresh:
        journal.unlink(missing_ok=True)
    done = {row.job: row for row in read(journal)}
    journal.write_text("".join(map(line_of, done.values())), encoding="utf-8")  # without a cut-off line
    jobs = [Job(*key, variant, budget, samples) for key in product(nets, map(float, ratios), seeds)]
    bench = Bench(data)
    for job in jobs:
        if job in done:
            continue
        row = done[job] = bench.run(job)
        with journal.open("a", encoding="utf-8") as file:
            file.write(line_of(row))
        click.echo(
            f"{job.net} ratio {job.ratio:g} seed {job.seed}: {row.accuracy:.2f} % of {row.original:.2f} %, "
            f"achieved {row.achieved:.2f}, {row.seconds:.1f} s",
            err=True,
        )
    rows = [done[job] for job in jobs]
    save_table(rows, results)
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
