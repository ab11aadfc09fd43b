"""First-order change of the loss when a channel becomes zero: activation times gradient, at every consumer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.passes.outputs import loss
from subprune_fx.passes.segment import operand


def taylor(network: FxNetwork, batches: Sequence[Inputs], labels: Sequence[Tensor]) -> Tensor:
    """Per sample and unit, sum over consumers, channels and positions of activation x gradient of the sample's loss.

    The gradient at a consumer's input is the one through that consumer alone, so the sum over consumers is the
    derivative of the loss along "this unit's activations shrink", wherever they are read (Molchanov et al. 2017,
    eq. 8; with one consumer it is theirs).

    Args:
        network: The analysed network.
        batches: Calibration inputs.
        labels: Their classes.

    Returns:
        (samples, units of the network), float64.

    Raises:
        SubpruneError: If the output is no class score.
    """
    found = []
    for x, y in zip(batches, labels, strict=True):
        tracer = _Tracer(network)
        with torch.enable_grad():
            total = loss(tracer.run(x), y)
            inputs = list(tracer.inputs.values())
            gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        sums = torch.zeros(len(x), network.channels.prunable.size, dtype=torch.float64)
        for (name, value), gradient in zip(tracer.inputs.items(), gradients, strict=True):
            consumer = network.channels.contractions[name]
            product = (value.detach() * gradient).movedim(consumer.data % value.ndim, -1)
            channels = product.reshape(len(x), -1, product.shape[-1]).double().sum(1).cpu()
            sums.index_add_(1, torch.from_numpy(network.channels.unit[consumer.labels].astype(np.int64)), channels)
        found.append(sums)
    return torch.cat(found)


class _Tracer(fx.Interpreter):
    """Gives every consumer its own copy of its input, whose gradient can be asked for."""

    def __init__(self, network: FxNetwork) -> None:
        super().__init__(network.graph_module)
        self.consumers = {name: network.channels.contractions[name].source for name in network.channels.consumers}
        self.inputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.consumers:
            return super().run_node(n)
        source = operand(n, self.consumers[n.name])
        value = self.env[source]
        copy = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
        self.inputs[n.name] = self.env[source] = copy
        result = super().run_node(n)
        self.env[source] = value
        return result
