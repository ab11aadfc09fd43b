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
from speed_layers import CURVES, Values, gated, greedy_alone, product_speed
from torch import nn

from subprune_fx.passes.dependencies import analyse

BATCH = 64
"""Samples of a forward pass, as in the command."""


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


def tasks(data: Path | None) -> dict[str, Callable[[], Values]]:
    """All that can be measured, by name."""
    found: dict[str, Callable[[], Values]] = {
        "help": functools.partial(answer, "-m", "subprune_fx.cli", "--help"),
        "import": importing,
        "greedy d=4608 r=9 m=512": lambda: greedy_alone(512, 9, 512),
        "greedy d=4096 r=1 m=4096": lambda: greedy_alone(4096, 1, 4096),
        "greedy d=11008 r=1 m=4096": lambda: greedy_alone(11008, 1, 4096),
        "gated block 4096 x 11008": lambda: apart(gated, 4096, 11008),
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
