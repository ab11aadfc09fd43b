"""Label-free distillation: the pruned network trained towards the original one's outputs. An option: it is training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError
from subprune_fx.layouts import COLOURS
from subprune_fx.passes.by_sample import flat
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.outputs import batches_of
from subprune_fx.plan import Plan

BATCH = 64
RATE = 0.05
"""Peak step of Adam relative to a parameter's size; it rises over the first tenth of the steps and falls to nothing."""
LOWER = 0.25
"""Factor on the rate when the network has become much worse than at the start, or not better for too long."""
PATIENCE = 0.25
"""Share of the steps that is too long: a deep network is thrown off by rates that a small one needs."""
WORSE = 2.0
"""How many times the distance at the start counts as much worse."""
LEAST = 1e-3
"""The least size of a parameter that counts: biases start at zero."""
HELD_OUT = 8
"""One calibration input in so many is held out: neither fitted nor trained on."""
SHIFT = 8
"""Images are moved by up to one part in so many of their height and width."""
MIRRORED = 0.2
"""Images are mirrored too where that changes the original's outputs by less, squared, relative to their spread: another
image changes them by 2. It is 0.07 for ResNet56 on CIFAR-10, 1.1 for LeNet's digits."""
LOOKS = 20
"""How often the network is measured on the held-out inputs."""


def divided(inputs: Inputs, labels: Tensor | None, seed: int) -> tuple[Inputs, Tensor | None, Inputs]:
    """Calibration inputs and labels less one in `HELD_OUT`, drawn by `seed`, and those; of a single one, that twice.

    A network is closer to the original on the inputs it was fitted on, and would seem to lose by what it learns.
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    aside = -(-len(inputs) // HELD_OUT)
    kept = order[aside % len(inputs) :].sort().values
    return inputs[kept], None if labels is None else labels[kept], inputs[order[:aside]]


def distil(
    module: fx.GraphModule,
    teacher: nn.Module,
    shown: Inputs,
    held_out: Inputs,
    steps: int,
    seed: int,
    tick: Tick | None = None,
) -> int:
    """Train `module` in place to yield what `teacher` yields, and never make it worse.

    The loss is the squared difference of the outputs, relative to their variance over the batch. A few hundred inputs
    are augmented: images (one, three or four channels, channels first) are shifted a little, and mirrored where that
    hardly changes the teacher's outputs; all inputs are mixed in pairs, x = a x_i + (1 - a) x_j (mixup), and the
    teacher's outputs for the mixture are the target. Integer inputs, and those of networks with several, stay as they
    are. BatchNorm keeps its statistics.

    The weights that are kept are those whose outputs for the held-out inputs, plain and augmented, were closest to the
    teacher's; the ones at the start where nothing was gained. When the distance is far larger than at the start
    (`WORSE`), or a share of the steps (`PATIENCE`) gains nothing, the rate was too high: training goes on from the
    best weights with a lower one, in the steps that are left.

    Args:
        module: The pruned network, in eval mode.
        teacher: The original.
        shown: Calibration inputs, (samples, ...).
        held_out: Others, which `module` was not fitted on.
        steps: Of Adam, on `BATCH` samples each.
        seed: Of the drawing.
        tick: Told (steps done, steps).

    Returns:
        After how many steps the weights that are kept were reached.

    Raises:
        SubpruneError: The outputs have no gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    mirrored = _may_be_mirrored(teacher, shown)
    judged = [(part, _outputs(teacher, part)) for part in (held_out, _drawn(held_out, generator, mirrored=mirrored))]
    if not judged[0][1].is_floating_point():
        what = "the network gives integers, which have no gradients"
        raise SubpruneError(what, where="distil", remedy="leave it out, or end the network before them")
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    weights = [parameter for parameter in flags if parameter.is_floating_point()]
    rates = [RATE * max(LEAST, float(parameter.detach().square().mean().sqrt())) for parameter in weights]
    for parameter in weights:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": [parameter]} for parameter in weights])
    start = least = _distance(module, judged)
    kept, best, factor, begun = 0, _copies(weights), 1.0, 0
    for done in range(1, steps + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * rate * _course((done - begun) / (steps - begun))
        batch = _drawn(shown, generator, mirrored=mirrored)
        with torch.no_grad():
            target = flat(teacher(batch), len(batch))
        spread = (target - target.mean(0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        with torch.enable_grad():
            loss = (flat(module(batch), len(batch)) - target).square().mean() / spread
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
        if done % -(-steps // LOOKS) == 0 or done == steps:
            distance = _distance(module, judged)
            if distance < least:
                least, kept, best = distance, done, _copies(weights)
            elif distance > WORSE * start or (not kept and done - begun >= PATIENCE * (steps - begun)):
                _put(weights, best)
                optimizer.state.clear()
                factor, begun = factor * LOWER, done
        if tick is not None:
            tick(done, steps)
    _put(weights, best)
    for parameter, requires_grad in flags.items():
        parameter.grad = None
        parameter.requires_grad_(requires_grad)
    return kept


def trained(plan: Plan, module: nn.Module, original: nn.Module) -> Plan:
    """The plan that leads to `module`: all of its parameters become values."""
    before = {name: tuple(tensor.shape) for name, tensor in original.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    return dataclasses.replace(
        plan,
        shapes={**plan.shapes, **{name: before.get(name) for name in values}},
        slices=tuple(item for item in plan.slices if item.parameter not in values),
        values={**plan.values, **values},
    )


def _drawn(inputs: Inputs, generator: torch.Generator, *, mirrored: bool) -> Inputs:
    first, second = (inputs[torch.randint(len(inputs), (BATCH,), generator=generator)] for _ in range(2))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.is_floating_point()):
        return first
    if _are_images(first):
        first, second = _moved(first, generator), _moved(second, generator)
    if mirrored:
        first, second = _mirrored(first, generator), _mirrored(second, generator)
    share = torch.rand(BATCH, generator=generator, dtype=first.dtype).reshape(-1, *[1] * (first.ndim - 1)).to(first)
    return share * first + (1 - share) * second


def _are_images(inputs: Inputs) -> TypeGuard[Tensor]:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return False
    return inputs.ndim == 4 and inputs.shape[1] in COLOURS


def _may_be_mirrored(teacher: nn.Module, inputs: Inputs) -> bool:
    """Whether it is all the same to the teacher; where places are given, the outputs of mirrored images differ."""
    if not _are_images(inputs):
        return False
    plain, other = _outputs(teacher, inputs), _outputs(teacher, inputs.flip(3))
    spread = (plain - plain.mean(0)).square().mean()
    return bool((plain - other).square().mean() < MIRRORED * spread)


def _mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image as it is or mirrored, left and right."""
    turned = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned.to(images.device), images.flip(3), images)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to a part of its height and width; what comes in at the edge is the edge."""
    places = []
    for axis in (2, 3):
        size = images.shape[axis]
        reach = size // SHIFT
        shift = torch.randint(-reach, reach + 1, (len(images), 1), generator=generator)
        places.append((torch.arange(size) + shift).clamp(0, size - 1).to(images.device))
    samples = torch.arange(len(images), device=images.device)
    rows, columns = places
    return images[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _outputs(module: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return torch.cat([flat(module(batch), len(batch)) for batch in batches_of(inputs, BATCH)])


def _distance(module: nn.Module, judged: Sequence[tuple[Inputs, Tensor]]) -> float:
    """Squared, of outputs from those that are wanted; not a number counts as far."""
    found = sum(float((_outputs(module, part) - wanted).square().mean()) for part, wanted in judged)
    return found if math.isfinite(found) else math.inf


def _course(share: float) -> float:
    """The rate at a share of the steps, 0 to 1, relative to its peak."""
    return min(10 * share, (1 + math.cos(math.pi * share)) / 2)


def _copies(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
