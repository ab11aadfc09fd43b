"""What could be pruned and what not: the dependency graph for the reader, without pruning anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from subprune_fx.bundle import Inputs
from subprune_fx.explanation import Coupled, Explanation
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_static import fixed_batch, resolve_batch
from subprune_fx.frontends.original import is_undefined
from subprune_fx.passes.dependencies import clearest, restrict
from subprune_fx.passes.proof import checked
from subprune_fx.passes.summary import frozen_of
from subprune_fx.samples import Given, enough, inputs_of
from subprune_fx.unwrap import network_of


def explain(model: nn.Module, example: Given, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Explanation:
    """The groups of a network, and what stays and why.

    Args:
        model: The network; unchanged.
        example: Inputs as the network takes them, as for `prune`; two samples, or one batch, are enough.
        only: As for `prune`.
        skip: As for `prune`.

    Returns:
        A value that prints and draws itself: `print(explain(...))`, `explain(...).save("graph.svg")`.

    Raises:
        SubpruneError: The network does not run on the example or cannot be traced, or `only` and `skip` leave nothing.
    """
    inputs, model = inputs_of(example, "example"), network_of(model)
    module = resolve_batch(model, inputs)
    enough(inputs, fixed_batch(module), "example")
    some = inputs[: fixed_batch(module) or 2]
    network = clearest(module, some, undefined=True)
    if only or skip:
        network = restrict(network, only, skip)
    channels = _tried(network, some).channels
    layers = {name: consumer.module for name, consumer in channels.contractions.items()}
    groups = tuple(
        Coupled(
            group.name,
            group.units.size,
            group.producers,
            group.followers,
            tuple(dict.fromkeys(layers[name] for name in group.consumers)),
        )
        for group in channels.groups
    )
    return Explanation(type(model).__name__, groups, frozen_of(channels))


def _tried(network: FxNetwork, example: Inputs) -> FxNetwork:
    """The network as the proof leaves it; outputs that are NaN prove nothing, and nothing wrong."""
    with torch.no_grad():
        undefined = is_undefined(network.graph_module(example))
    return network if undefined else checked(network, example)
