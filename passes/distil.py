"""Label-free distillation: the pruned network trained towards the original one's outputs. An option: it is training."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs
from subprune_fx.passes.calibrate import Tick
from subprune_fx.plan import Plan

BATCH = 64
RATE = 1e-3
"""Peak learning rate of Adam; it rises over the first tenth of the steps and falls to nothing."""


def distil(
    module: fx.GraphModule, teacher: nn.Module, inputs: Inputs, steps: int, seed: int, tick: Tick | None = None
) -> None:
    """Train `module` in place to yield what `teacher` yields.

    The loss is the squared difference of the outputs relative to their spread. Inputs are mixed in pairs,
    x = a x_i + (1 - a) x_j, and the teacher answers for the mixture, so a few hundred inputs do not run out;
    integer and several inputs are taken as they are. BatchNorm keeps its statistics.

    Args:
        module: The pruned network, in eval mode.
        teacher: The original.
        inputs: Calibration inputs, (samples, ...).
        steps: Of Adam, on `BATCH` samples each.
        seed: Of the drawing.
        tick: Told (steps done, steps).
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    trained = [parameter for parameter in wanted if parameter.is_floating_point()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(trained, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(steps, 2), pct_start=0.1)
    for done in range(1, steps + 1):
        batch = _mixed(inputs, generator)
        with torch.no_grad():
            target = _flat(teacher(batch))
        spread = (target - target.mean(0)).square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        with torch.enable_grad():
            loss = (_flat(module(batch)) - target).square().mean() / spread
            optimiser.zero_grad()
            torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if tick is not None:
            tick(done, steps)
    for parameter, requires_grad in wanted.items():
        parameter.grad = None
        parameter.requires_grad_(requires_grad)


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


def _mixed(inputs: Inputs, generator: torch.Generator) -> Inputs:
    first, second = (inputs[torch.randint(len(inputs), (BATCH,), generator=generator)] for _ in range(2))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor) and first.is_floating_point()):
        return first
    share = torch.rand(BATCH, generator=generator, dtype=first.dtype).reshape(-1, *[1] * (first.ndim - 1))
    return share * first + (1 - share) * second


def _flat(output: object) -> Tensor:
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
