"""What was decided once, done again: a plan from a file, carried out on a network and reported on."""

from __future__ import annotations

import torch
from torch import nn

from subprune_fx.api import Pruned
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.frontends.onnx_static import fixed_batch, ordered, resolve_batch
from subprune_fx.passes.dependencies import clearest
from subprune_fx.passes.outputs import batches_of, compared
from subprune_fx.passes.rewrite import apply
from subprune_fx.passes.summary import accuracy, cost, frozen_of, rows_of
from subprune_fx.plan import Plan
from subprune_fx.report import Report
from subprune_fx.samples import Array, Given, enough, inputs_of, labelled
from subprune_fx.unwrap import network_of

BATCH = 64


def repeat(model: nn.Module, plan: Plan, inputs: Given, evaluation: tuple[Given, Array] | None = None) -> Pruned:
    """Carry out a plan on a fresh instance of the network that it was made for, without calibrating anything.

    `subprune_fx.apply` does that to a module of the user's own class; this traces the module first, so that sizes
    written in the code of its forward can change too.

    Args:
        model: The network; unchanged. Its weights are sliced, except where the plan holds new ones.
        plan: What to do.
        inputs: A few inputs, to trace the network with and to compare what comes out.
        evaluation: Inputs and labels whose accuracy the report states.

    Returns:
        What `subprune_fx.prune` has returned when it made the plan, if the weights are the same.

    Raises:
        SubpruneError: The plan is for another network, or the network cannot be traced.
    """
    model = network_of(model)
    samples = ordered(model, inputs_of(inputs, "inputs"))
    given = labelled(evaluation, "evaluation")
    pairs = None if given is None else (ordered(model, given[0]), given[1])
    settled = resolve_batch(model, samples)
    fixed = fixed_batch(settled)
    enough(samples, fixed, "inputs")
    if pairs is not None:
        enough(pairs[0], fixed, "evaluation")
    network = clearest(settled, samples[: fixed or 2])
    smaller = apply(plan, network.graph_module)
    example = samples[: fixed or 1]
    batches = batches_of(samples, fixed or BATCH, whole=fixed is not None)
    both = network.graph_module, smaller
    with torch.no_grad():
        before, after = ([module(batch) for batch in batches] for module in both)
    large, small = (cost(module, example) for module in both)
    tops = [None if pairs is None else accuracy(module, *pairs) for module in both]
    agreement, change = compared(before, after, [*map(len, batches)])
    report = Report(
        ratio=large.parameters / max(small.parameters, 1),
        before=large,
        after=small,
        groups=rows_of(network.channels, plan),
        frozen=frozen_of(network.channels),
        agreement=agreement,
        change=change,
        accuracy_before=tops[0],
        accuracy_after=tops[1],
    )
    return Pruned(spread(smaller), plan, report)
