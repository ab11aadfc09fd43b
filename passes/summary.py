"""What a report says of a network: its accuracy, what it costs, what its groups keep, and what stays and why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from subprune_fx.bundle import Inputs, device_of, placed
from subprune_fx.frontends.fx_recurrent_calls import is_marked
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.frontends.onnx_static import fixed_batch
from subprune_fx.graph.channels import ChannelGraph
from subprune_fx.passes.flops import counted, flops
from subprune_fx.passes.outputs import batches_of, check_classes, first_tensor
from subprune_fx.plan import Plan
from subprune_fx.report import Cost, FrozenRow, GroupRow

BATCH = 256
"""Samples of a forward pass where accuracy is measured."""

Curve = tuple[tuple[int, float], ...]
"""Numbers of units and errors."""


def accuracy(module: nn.Module, inputs: Inputs, labels: Tensor) -> float:
    """Top-1 accuracy, 0 to 1.

    Args:
        module: A classifier in eval mode: its first output holds class scores on its last axis.
        inputs: (samples, ...).
        labels: (samples,), int64.

    Raises:
        SubpruneError: A label is no class of it.
    """
    hits = seen = 0
    fixed = fixed_batch(module)
    batches = (batches_of(t, fixed or BATCH, whole=fixed is not None) for t in (inputs, labels))
    with torch.no_grad():
        for x, y in zip(*batches, strict=True):
            scores = first_tensor(module(placed(x, device_of(module))))
            check_classes(y, scores)
            hits += int((scores.argmax(-1).cpu() == y).sum())
            seen += len(y)
    return hits / seen


def cost(module: nn.Module, example: Inputs) -> Cost:
    """Parameters, and multiply-adds of one sample."""
    parameters, example = sum(p.numel() for p in module.parameters()), placed(example, device_of(module))
    source = source_of(module)
    if source is not None:
        added = [tensor for name, tensor in module.named_buffers() if name in source.biases]
        parameters += sum(bias.numel() for bias in added if bool(bias.any()))
    if isinstance(module, fx.GraphModule) and (source is not None or is_marked(module)):
        return Cost(parameters, sum(count for count, _ in flops(module, example).values()))
    with torch.no_grad():
        _, total = counted(lambda: module(example))
    return Cost(parameters, total // len(example))


def rows_of(channels: ChannelGraph, plan: Plan, curve: Callable[[str], Curve] | None = None) -> tuple[GroupRow, ...]:
    """A row for each group that a plan decides, in the order of the graph.

    Args:
        channels: The network's groups.
        plan: What was decided.
        curve: By group, errors at some numbers of units, where they are known.
    """
    decided = {decision.group: decision for decision in plan.decisions}
    return tuple(
        GroupRow(
            group.name,
            group.units.size,
            len(decided[group.name].kept),
            decided[group.name].error,
            tuple(channels.contractions[name].module for name in group.consumers),
            group.producers,
            group.followers,
            () if curve is None else curve(group.name),
        )
        for group in channels.groups
        if group.name in decided
    )


def frozen_of(channels: ChannelGraph) -> tuple[FrozenRow, ...]:
    """What stays, and why."""
    return tuple(FrozenRow(item.name, item.channels, item.reason) for item in channels.frozen)
