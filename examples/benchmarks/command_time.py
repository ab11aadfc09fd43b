"""Wall time and peak memory of the whole `subprune-compile` command, from start to exit.

    python examples/benchmarks/command_time.py --data FOLDER [--nets lenet_mnist] [--ratio 8] [--repeat 3]

Each run is a process of its own: it imports torch, loads the weights, prunes on 512 inputs, writes the ONNX
file and validates it. Wall time is the median over the repeats; peak memory is the largest resident set size
that the operating system reports for the process (wait4).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from data import data_option, draw, load_images, normalise
from models import BENCHMARKS, files, nets_option

T = TypeVar("T")

SEED = 42
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of `ru_maxrss`."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        wall: Seconds from start to exit.
        processor: Seconds of user and system time.
        memory: Peak resident set size, bytes.
    """

    wall: float
    processor: float
    memory: int


def measure(arguments: list[str], log: Path) -> Measured:
    """Run a command to its end.

    Raises:
        click.ClickException: It failed.
    """
    with log.open("w+", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise click.ClickException(f"{' '.join(arguments)}\n{output.read()}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * RSS_UNIT)


def program() -> str:
    """The `subprune-compile` of this Python."""
    found = shutil.which("subprune-compile", path=Path(sys.executable).parent)
    if found is None:
        raise click.ClickException("subprune-compile is not installed; pip install -e .")
    return found


def calibration(name: str, data: Path | None, samples: int, path: Path) -> None:
    """Write `samples` training inputs of a network's data set."""
    kind = BENCHMARKS[name].images
    images = load_images(kind, data)
    np.savez(path, x=normalise(images.train[draw(len(images.train), samples, SEED)], kind).numpy())


def apart(task: Callable[..., T], *arguments: Any) -> T:
    """Run `task` in a process of its own: a child's peak memory counts its parent's when it was started."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


@click.command()
@data_option
@nets_option
@click.option("--ratio", default=8.0, show_default=True)
@click.option("--samples", default=512, show_default=True, help="Calibration inputs.")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True)
@click.argument("options", nargs=-1)
def main(
    data: Path | None,
    nets: tuple[str, ...],
    ratio: float,
    samples: int,
    repeat: int,
    options: tuple[str, ...],
) -> None:
    """Time the command. OPTIONS after -- are handed to it, for example -- --budget accuracy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    click.echo(f"{cores} cores, ratio {ratio:g}, {samples} calibration inputs, median of {repeat}\n")
    click.echo("| network | wall s | processor s | peak memory MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in nets:
            weights, architecture = files(name, data)
            inputs, out = Path(folder, f"{name}.npz"), Path(folder, f"{name}.onnx")
            apart(calibration, name, data, samples, inputs)
            arguments = [program(), str(weights), "--arch", architecture, "--ratio", str(ratio)]
            arguments += ["--calib", str(inputs), "-o", str(out), *options]
            runs = [measure(arguments, Path(folder, "log")) for _ in range(repeat)]
            wall, processor = (statistics.median(getattr(r, key) for r in runs) for key in ("wall", "processor"))
            memory = max(run.memory for run in runs) / 1e6
            click.echo(f"| {name} | {wall:.1f} | {processor:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
