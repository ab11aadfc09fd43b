"""Calibration inputs for a network that came without: made-up scenes, moved until BatchNorm sees what it has learned.

A BatchNorm layer keeps the mean and variance of what it read in training. Inputs that give the same statistics are a
substitute for the training set (Yin et al. 2020, "Dreaming to Distill"; Cai et al. 2020, "ZeroQ").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from subprune_fx.bundle import Bundle, Inputs, call, parts
from subprune_fx.frontends.computed import duplicate
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.frontends.onnx_static import file_batch
from subprune_fx.numerics.scenes import scenes
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.flops import counted

SAMPLES, FEWEST_SAMPLES = 192, 64
STEPS, FEWEST_STEPS = 10, 6
BATCH = 64
RATE = 0.15
"""Of Adam on inputs of variance 1; it falls to 0 as a cosine."""
WORK = 2e12
"""Multiply-adds, forwards and backwards, from which on there are fewer samples and steps: a minute of one core."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One input to make up.

    Attributes:
        name: The argument of `forward`.
        shape: Of one sample.
        tokens: Integers below this; None: real numbers.
        dtype: Of the tensor.
    """

    name: str
    shape: tuple[int, ...]
    tokens: int | None = None
    dtype: torch.dtype = torch.float32


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Inputs that were made up.

    Attributes:
        inputs: (samples, ...).
        how: What they are, for the user.
    """

    inputs: Inputs
    how: str


def synthesise(module: nn.Module, wanted: Sequence[Wanted], seed: int = 0, tick: Tick | None = None) -> Synthetic:
    """Inputs on which `module` can be calibrated.

    Args:
        module: The network, unchanged.
        wanted: Its inputs, in its order.
        seed: Of everything random.
        tick: Told (pieces done, pieces).

    Returns:
        A tensor where the network has one input; else a bundle.
    """
    first = start(wanted, 2, seed)
    twin = duplicate(module).eval() if source_of(module) is None else module
    layers = 0 if source_of(module) is not None else _count(twin, first)
    samples, steps = _effort(twin, first) if layers else (max(SAMPLES, file_batch(module) or 1), 0)
    inputs = start(wanted, samples, seed)
    what = " and ".join(_noun(item) for item in wanted)
    movable = any(part.is_floating_point() for part in parts(inputs))
    if not layers or not movable:
        return Synthetic(inputs, f"{samples} made-up inputs ({what})")
    found = _matched(twin, inputs, steps, tick)
    if found is None:
        return Synthetic(inputs, f"{samples} made-up inputs ({what})")
    return Synthetic(found, f"{samples} made-up inputs ({what}, moved to match {layers} BatchNorm layers)")


def _noun(item: Wanted) -> str:
    kinds = {0: "noise", 1: "noise", 2: "1/f noise", 3: "pictures of discs"}
    kind = "random tokens" if item.tokens is not None else kinds.get(len(item.shape), "1/f noise")
    return f"{kind} of shape {item.shape}"


def start(wanted: Sequence[Wanted], samples: int, seed: int) -> Inputs:
    """Scenes and tokens, before anything is matched."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for place, item in enumerate(wanted):
        if "mask" in item.name:
            tensors.append(torch.ones((samples, *item.shape), dtype=item.dtype))
        elif item.tokens is None:
            tensors.append(scenes(samples, item.shape, seed + place))
        else:
            tensors.append(torch.randint(0, item.tokens, (samples, *item.shape), generator=generator).to(item.dtype))
    return tensors[0] if len(tensors) == 1 else Bundle(tuple(tensors), tuple(item.name for item in wanted))


def _effort(module: nn.Module, example: Inputs) -> tuple[int, int]:
    """Samples and steps."""
    with torch.no_grad():
        _, total = counted(lambda: call(module, example))
    work = 3 * total / len(example) * SAMPLES * STEPS
    share = min(1.0, WORK / max(work, 1.0)) ** 0.5
    return max(FEWEST_SAMPLES, int(SAMPLES * share) // BATCH * BATCH), max(FEWEST_STEPS, round(STEPS * share))


def _count(module: nn.Module, example: Inputs) -> int:
    """BatchNorm layers that know their statistics, calls counted."""
    watch = _Watch()
    with watch, torch.no_grad():
        call(module, example)
    return len(watch.distances)


def _matched(module: nn.Module, inputs: Inputs, steps: int, tick: Tick | None) -> Inputs | None:
    """Inputs after some steps down the distance from the statistics; None where there is no way down."""
    pieces = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    moved = []
    for done, piece in enumerate(pieces):
        try:
            moved.append(_moved(module, piece, steps))
        except RuntimeError:  # an op without a gradient
            return None
        if tick is not None:
            tick(done + 1, len(pieces))
    whole = [torch.cat(column) for column in zip(*moved, strict=True)]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in whole if tensor.is_floating_point()):
        return None
    return Bundle(tuple(whole), inputs.names) if isinstance(inputs, Bundle) else whole[0]


def _moved(module: nn.Module, piece: Inputs, steps: int) -> list[Tensor]:
    tensors = [part.clone().requires_grad_(part.is_floating_point()) for part in parts(piece)]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    optimizer = torch.optim.Adam(leaves, lr=RATE, betas=(0.5, 0.9))
    given = dataclasses.replace(piece, parts=tuple(tensors)) if isinstance(piece, Bundle) else tensors[0]
    for step in range(steps):
        watch = _Watch()
        with watch:
            call(module, given)
        distance = torch.stack(watch.distances).mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        gradients = torch.autograd.grad(distance, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
    return [tensor.detach() for tensor in tensors]


# Where each spelling of BatchNorm has its input, running mean, running variance and epsilon.
SPELLINGS: dict[Any, tuple[int, int, int, int]] = {
    nn.functional.batch_norm: (0, 1, 2, 7),
    torch.batch_norm: (0, 3, 4, 7),
    torch.ops.aten.batch_norm.default: (0, 3, 4, 7),
    torch.ops.aten._native_batch_norm_legit_no_training.default: (0, 3, 4, 6),  # noqa: SLF001 - an operator
}
_NAMES = ("input", "running_mean", "running_var", "eps")


class _Watch(TorchFunctionMode):
    """How far what each BatchNorm layer reads is from its statistics: in means and deviations, by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        named = kwargs or {}
        if func in SPELLINGS:
            places = zip(_NAMES, SPELLINGS[func], strict=True)
            self._note(**{name: named.get(name, args[place] if place < len(args) else None) for name, place in places})
        return func(*args, **named)

    def _note(self, **read: Any) -> None:
        value, mean, variance, eps = (read[name] for name in _NAMES)
        if mean is None or variance is None:
            return
        axes = [0, *range(2, value.ndim)]
        scale = variance + eps
        shift = (value.mean(axes) - mean).square() / scale
        stretch = ((value.var(axes, correction=0) + eps) / scale).sqrt() - 1
        self.distances.append((shift + stretch.square()).mean())
