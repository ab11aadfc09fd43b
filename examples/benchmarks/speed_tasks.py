"""What `speed.py` measures: one task a line of its table, each measured once at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from command_time import apart, calibration, measure, program
from models import BENCHMARKS, files, load_network
from torch import nn

import subprune_fx
from subprune_fx.numerics.blocks import Block
from subprune_fx.numerics.greedy import greedy
from subprune_fx.passes.dependencies import analyse

BATCH = 64
"""Samples of a forward pass, as in the command."""

Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Target:
    """A network whose whole command is timed.

    Attributes:
        samples: Calibration inputs.
        ratios: `--ratio`.
        arch: For torchvision's networks, with made-up weights; None: a trained one of `models.BENCHMARKS`.
        options: More options of the command.
    """

    samples: int = 512
    ratios: tuple[int, ...] = (2, 4)
    arch: str | None = None
    options: tuple[str, ...] = ()


TARGETS = {
    "lenet_mnist": Target(ratios=(2, 4, 8)),
    "resnet56_cifar10": Target(ratios=(2, 4, 8)),
    "vgg11_cifar10": Target(ratios=(2, 4, 8)),
    "mobilenet_v2": Target(64, arch="torchvision.models:mobilenet_v2"),
    "resnet50": Target(ratios=(2,), arch="torchvision.models:resnet50", options=("--memory", "2GiB")),
}


def network_of(name: str, data: Path | None) -> nn.Module:
    """The network, in eval mode."""
    if TARGETS[name].arch is None:
        return load_network(name, data)
    import torchvision  # noqa: PLC0415 - optional

    torch.manual_seed(0)
    found: nn.Module = getattr(torchvision.models, name)(weights=None)
    return found.eval()


def shape_of(name: str) -> tuple[int, ...]:
    """Of one sample."""
    kinds = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    return (3, 224, 224) if TARGETS[name].arch else kinds[BENCHMARKS[name].images]


def command(name: str, ratio: int, data: Path | None) -> Values:
    """The whole command in a process of its own, and what its report says about the result's latency."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        inputs, out, report = (Path(folder, f"x.{suffix}") for suffix in ("npz", "onnx", "json"))
        if target.arch is None:
            weights, arch = files(name, data)
            apart(calibration, name, data, target.samples, inputs)
        else:
            weights, arch = Path(folder, "weights.pt"), target.arch
            torch.save(network_of(name, data).state_dict(), weights)
            generator = np.random.default_rng(0)
            np.savez(inputs, x=generator.standard_normal((target.samples, *shape_of(name)), dtype=np.float32))
        arguments = [program(), str(weights), "--arch", arch, "--ratio", str(ratio), "--calib", str(inputs)]
        arguments += ["-o", str(out), "--json", str(report), *target.options]
        run = apart(measure, arguments, Path(folder, "log"))
        said = json.loads(report.read_text(encoding="utf-8"))
    written = said["files"][0]
    latency = written["latency_before_ms"] / written["latency_ms"]
    flops = said["before"]["flops"] / said["after"]["flops"]
    return {
        "seconds": run.wall,
        "processor": run.processor,
        "MB": run.memory / 1e6,
        "latency x": latency,
        "FLOPs x": flops,
        "latency / FLOPs": latency / flops,
    }


def floor(name: str, data: Path | None) -> Values:
    """One forward pass over the calibration inputs, and the least that the method needs.

    That is two forward passes, and twice (calibration and sweep) the Gram products of what every layer reads, at the
    measured speed of a float32 product.
    """
    network, count, shape = network_of(name, data), TARGETS[name].samples, shape_of(name)
    x = torch.randn(min(count, BATCH), *shape)
    batches = -(-count // BATCH)
    with torch.no_grad():
        network(x)
        start = time.perf_counter()
        for _ in range(batches):
            network(x)
    forward = time.perf_counter() - start
    described = analyse(network, torch.randn(2, *shape))
    products = 0
    for consumer in described.channels.consumers:
        reader = described.readers[consumer]
        read = described.channels.values[described.channels.contractions[consumer].source]
        groups, d, rows = reader.columns(torch.empty(2, *read.shape[1:])).shape
        products += groups * d * d * rows // 2 * count
    gram = 2 * products / product_speed(torch.float32)
    return {"seconds": forward, "floor": 2 * forward + gram, "Gram": gram}


@functools.cache
def product_speed(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-adds a second of a matrix product; the best of 3."""
    one = torch.randn(size, size, dtype=dtype)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - start)
    return size**3 / min(times)


def greedy_alone(units: int, r: int, m: int, samples: int = 512) -> Values:
    """All k of one layer, from its normal equations; `paper` is its Prop. B.7's count at a product's measured speed."""
    generator = torch.Generator().manual_seed(0)
    d = units * r
    x = torch.randn(2 * d, d, generator=generator)
    weight = torch.randn(d, m, dtype=torch.float64, generator=generator)
    gram = (x.mT @ x).double()
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    cross = gram @ weight
    block = Block(gram, cross, torch.arange(d) // r, float((weight * cross).sum()))
    start = time.perf_counter()
    greedy([block], units)
    seconds = time.perf_counter() - start
    counted = sum(d * (m + samples + k * r) * r for k in range(units))
    return {"seconds": seconds, "paper": counted / product_speed(torch.float64)}


def pruning(network: nn.Module, samples: int, shape: tuple[int, ...]) -> Values:
    """`subprune_fx.prune`, half of every layer, without budget."""
    _warm()
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    subprune_fx.prune(network.eval(), x, keep=0.5)
    return {"seconds": time.perf_counter() - start}


@functools.cache
def _warm() -> None:
    """Import what pruning imports on first use."""
    subprune_fx.prune(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(8, 4), keep=0.5)


def dense(n: int, m: int = 64, samples: int = 4096) -> Values:
    """A hidden layer of n neurons that m outputs read."""
    torch.manual_seed(0)
    return pruning(nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, m), nn.ReLU()), samples, (64,))


def convolutions(depth: int = 1, kernel: int = 3, samples: int = 128) -> Values:
    """A chain of convolutions of 64 channels on 12 x 12 positions, each with as many columns as 64 kernel ** 2."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(64, 64, kernel, padding=kernel // 2), nn.ReLU()]
    return pruning(nn.Sequential(*layers), samples, (3, 12, 12))


def rival(name: str, ratio: int, data: Path | None) -> Values:
    """Torch-Pruning's time to the same ratio, its search for the fraction included."""
    from rivals import torch_pruning  # noqa: PLC0415 - optional

    network, x = network_of(name, data), torch.randn(2, *shape_of(name))
    start = time.perf_counter()
    try:
        torch_pruning(network, x, ratio)
    except RuntimeError as error:  # ResNet56's shortcuts: its network does not run
        click.echo(f"Torch-Pruning on {name}: {str(error).splitlines()[0]}", err=True)
        return {"seconds": math.nan}
    return {"seconds": time.perf_counter() - start}


def answer(*arguments: str) -> Values:
    """A process of this Python, from start to exit."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return {"seconds": time.perf_counter() - start}


def importing() -> Values:
    """What `subprune_fx.prune` imports beyond torch."""
    clock = "time.process_time()"  # not what others use
    code = f"import torch, time; t = {clock}; import subprune_fx as s; s.prune; print({clock} - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"seconds": float(done.stdout)}


CURVES: dict[str, tuple[Callable[[int], Values], tuple[int, ...]]] = {
    "units": (dense, (128, 256, 512, 1024, 2048)),
    "columns": (lambda d: convolutions(kernel=math.isqrt(d // 64)), (64, 576, 1600, 3136)),
    "outputs": (lambda m: dense(512, m), (64, 256, 1024, 4096)),
    "samples": (lambda samples: dense(256, samples=samples), (1024, 4096, 16384, 65536)),
    "depth": (convolutions, (2, 4, 8, 16, 32)),
}
"""What cost is measured against, with its values."""


def tasks(data: Path | None) -> dict[str, Callable[[], Values]]:
    """All that can be measured, by name."""
    found: dict[str, Callable[[], Values]] = {
        "help": functools.partial(answer, "-m", "subprune_fx.cli", "--help"),
        "import": importing,
        "greedy d=4608 r=9 m=512": lambda: greedy_alone(512, 9, 512),
        "greedy d=4096 r=1 m=4096": lambda: greedy_alone(4096, 1, 4096),
    }
    for curve, (run, values) in CURVES.items():
        found |= {f"curve {curve}={value}": functools.partial(run, value) for value in values}
    for name, target in TARGETS.items():
        found[f"forward {name}"] = functools.partial(floor, name, data)
        for ratio in target.ratios:
            found[f"command {name} c={ratio}"] = functools.partial(command, name, ratio, data)
        if target.arch is None:
            found[f"torch-pruning {name} c=4"] = functools.partial(rival, name, 4, data)
    return found
