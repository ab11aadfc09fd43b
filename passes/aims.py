"""What a consumer of the pruned network is fitted to."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, fx

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_tails import Tail, affine
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.propagation import Consumer
from subprune_fx.numerics.collect import Collected, parts
from subprune_fx.numerics.readers import Reader
from subprune_fx.numerics.saturation import correction
from subprune_fx.numerics.targets import Targets
from subprune_fx.numerics.thinned_reader import picked
from subprune_fx.passes.lockstep import Lockstep
from subprune_fx.passes.problems import Problem, Settings
from subprune_fx.passes.scratch import Scratch

NEGLIGIBLE = 1e-3
"""A BatchNorm's scale below this fraction of its largest: such a channel is not steered by what follows it."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """One consumer, the two networks around it, and the output that it is fitted to.

    Attributes:
        node: The consumer's node.
        source: Name of the operand that it reads the channels from.
        axis: Channel dimension of its output.
        reader: Its geometry.
        tail: What follows it.
        outputs: Which of its original output channels are still there, (m,).
        scratch: The pruned-so-far network.
        walk: Both networks, at `node`.
        targets: Per batch, the output aimed at, less the consumer's bias, at the positions that `reader` reads.
        bias: The consumer's bias, (m,).
    """

    node: fx.Node
    source: str
    axis: int
    reader: Reader
    tail: Tail
    outputs: Tensor
    scratch: Scratch
    walk: Lockstep
    targets: list[Tensor]
    bias: Tensor

    def along(self, vector: Tensor, like: Tensor) -> Tensor:
        """`vector`, one entry per output channel, in a shape that broadcasts with an output."""
        return vector.reshape([-1 if d == self.axis % like.ndim else 1 for d in range(like.ndim)])

    def live(self, value: Tensor) -> Tensor:
        """The output channels of a value of the original network that are still there, at the positions read."""
        value = self.reader.read(value)
        return value if len(self.outputs) == value.shape[self.axis] else value.index_select(self.axis, self.outputs)

    def others(self) -> Iterator[tuple[Tensor, Tensor]] | None:
        """What is added to the consumer's output: the original and the pruned network's, per batch, if it is known."""
        found = None if self.tail.other is None else self.walk.both(self.tail.other)
        return None if found is None else itertools.starmap(self._read, found)

    def _read(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the positions read; one object where the two networks share it."""
        live = self.live(before)
        return live, live if before is after else self.reader.read(after)


def aim(
    network: FxNetwork,
    scratch: Scratch,
    walk: Lockstep,
    node: fx.Node,
    consumer: Consumer,
    variant: str,
    feedback: bool,
) -> Aim | None:
    """The aim of a consumer that is reached by the sweep.

    A is its input in the original network, B in the pruned one, W its original weights, D the channels of A that were
    decided in advance and so are missing from B.
        asym:  A W.    seq:  [B, D] W.
    With feedback, asym also takes over what the sum behind the consumer lacks, so that errors do not add up along a
    residual stream: with z = scale y + shift the consumer's part of the sum and u the other's,
        Y = A W + (u - u_pruned) / scale.

    Returns:
        None where the aim is B W, which follows from the input alone.
    """
    alive, unit = scratch.alive, network.channels.unit
    inputs, outputs = (
        torch.from_numpy(np.flatnonzero(alive[unit[labels]])) for labels in (consumer.labels, consumer.outputs)
    )
    if variant == "layer" or (variant == "seq" and len(inputs) == len(consumer.labels)):
        return None
    weight, tail = scratch.get(consumer.weight), network.tails[node.name]
    outputs = outputs.to(weight.device)
    bias = weight.new_zeros(len(outputs)) if consumer.bias is None else scratch.get(consumer.bias)
    named = None if consumer.bias is None else parameter(network.graph_module, consumer.bias)
    biases: Iterator[Tensor | None] = itertools.repeat(named)
    if consumer.offset is not None:  # a computed bias differs from batch to batch: what follows it is not inverted
        tail, biases = Tail(), walk.original_inputs(node, consumer.offset)
    reader = network.readers[node.name]
    found = Aim(node, consumer.source, consumer.axis, reader, tail, outputs, scratch, walk, [], bias)
    completed = variant == "seq"
    wanted = walk.completed(node, consumer.source, consumer.data, inputs) if completed else walk.originals(node)
    for y, own in zip(wanted, biases, strict=False):
        live = found.live(y)
        found.targets.append(live if own is None else live - found.along(own[outputs], live))
        found.targets[:] = walk.hold(found.targets)
    if variant == "asym" and feedback:
        _feed_back(found)
    return found


def _feed_back(found: Aim) -> None:
    others = found.others()
    if others is None:
        return
    scale = steering(affine(found.tail, found.scratch.module, found.bias)[0])
    for i, (before, after) in enumerate(others):
        if before is not after:
            y = found.targets[i]
            found.targets[i] = y + (before - after) / found.along(scale, y)
            found.targets[:] = found.walk.hold(found.targets)


def steering(scale: Tensor) -> Tensor:
    """The scale to divide by; infinite for channels that are as good as switched off."""
    return scale.masked_fill(scale.abs() <= NEGLIGIBLE * scale.abs().max(), torch.inf)


def saturated(aim: Aim, posed: Problem, moments: Collected, settings: Settings) -> tuple[Problem, Collected]:
    """Refit a consumer to what its activation lets through.

    Where the activation is constant around the target (a ReLU's negative side), any output on that side is as good.
    So the target there becomes the consumer's own output as far as that lies on the side, and the least-squares
    problem is solved again: alternating minimisation over weights and admissible targets, so the error after the
    activation falls with every round.

    Args:
        aim: The consumer's aim.
        posed: Its problem on the columns that are kept.
        moments: Of the same columns.
        settings: `rounds`, and how problems are posed.

    Returns:
        The problem with the last targets, and their moments.
    """
    scale, shift = affine(aim.tail, aim.scratch.module, aim.bias)
    inverse = 1 / steering(scale)
    reader, inputs = picked(aim.reader, functools.partial(aim.walk.inputs, aim.node, aim.source))
    for _ in range(settings.rounds):
        weights = posed.solution()
        ours, constant = weights.to(scale), aim.bias
        if settings.intercept:
            constant = constant + moments.intercept(weights).reshape(-1).to(scale)
        targets = Targets(moments.untargeted(), reader)
        others = aim.others()
        for x, y in zip(inputs(), aim.targets, strict=True):
            ends = (scale, inverse, shift + scale * aim.bias, shift + scale * constant)
            z, back, aimed, held = (aim.along(vector, y) for vector in ends)
            other = None if others is None else next(others)[1]
            for part in parts(reader, x):
                wanted = torch.addcmul(aimed, z, y[part])
                got = torch.addcmul(held, z, reader.output(x[part], ours))
                if other is not None:
                    wanted, got = wanted.add_(other[part]), got.add_(other[part])
                target = torch.addcmul(y[part], correction(wanted, got, aim.tail.flat), back)
                targets.add(x[part], target)
        moments = aim.walk.team.targets(targets.moments())
        posed = posed.aimed(moments, settings)
    return posed, moments
