"""The trained networks of the benchmarks, and what the paper reports for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click
import torch
from torch import nn

SHIPPED = Path(__file__).resolve().parents[1] / "lenet"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One network of the paper.

    Attributes:
        images: The data set it was trained on, a key of `data.STATISTICS`.
        architecture: Its class or function in the data folder's `networks.py`.
        paper_original: Top-1 accuracy of the paper's network, %; the rest of its figures is in `methods.published`.
        goal: What this project wants to reach on its own weights and images, % by ratio.
    """

    images: str
    architecture: str
    paper_original: float
    goal: dict[int, float]


BENCHMARKS = {
    "lenet_mnist": Benchmark(
        "mnist",
        "LeNet",
        97.75,
        {2: 97.6, 4: 97.3, 8: 96.5, 16: 95.5, 32: 93.5},
    ),
    "resnet56_cifar10": Benchmark(
        "cifar10",
        "ResNet56",
        92.27,
        {2: 86.0, 4: 72.0, 8: 45.0},
    ),
    "vgg11_cifar10": Benchmark(
        "cifar10",
        "vgg11",
        90.11,
        {2: 85.35, 4: 85.35, 8: 84.85, 16: 83.85, 32: 79.85},
    ),
}


def nets_of(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    """`lenet_mnist,vgg11_cifar10`."""
    names = tuple(value.split(","))
    if unknown := set(names) - set(BENCHMARKS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(BENCHMARKS)}")
    return names


nets_option = click.option("--nets", callback=nets_of, default=",".join(BENCHMARKS), show_default=True)


def files(name: str, folder: Path | None) -> tuple[Path, str]:
    """A network's state dict, and what `--arch` says about it.

    Args:
        name: A key of `BENCHMARKS`.
        folder: The data folder, with `networks.py` and `weights/<name>.pt`; None: only the shipped LeNet.
    """
    if folder is not None and (folder / "networks.py").exists():
        return folder / "weights" / f"{name}.pt", f"{folder / 'networks.py'}:{BENCHMARKS[name].architecture}"
    if name == "lenet_mnist":
        return SHIPPED / "lenet_mnist.pt", f"{SHIPPED / 'lenet.py'}:LeNet"
    raise click.UsageError(f"{name}: give --data FOLDER with networks.py and weights/{name}.pt")


def load_network(name: str, folder: Path | None) -> nn.Module:
    """The trained network in eval mode, float32; arguments as for `files`."""
    weights, architecture = files(name, folder)
    path, _, builder = architecture.rpartition(":")
    network: nn.Module = getattr(_import(Path(path)), builder)()
    network.load_state_dict(torch.load(weights, weights_only=True))  # float16 becomes float32
    return network.eval()


def _import(path: Path) -> ModuleType:
    name = f"benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
