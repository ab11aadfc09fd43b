"""Refit layers that are called at several places: siamese encoders, heads of a detector, cells in a loop.

One weight W serves all calls s. On the original network's inputs A_s, of which the channels S are left, it is fitted to
what all of them gave (paper eq. 4, whose rows are those of every call):

    min_V sum_s ||A_s W - A_s[:, S] V||^2.

The pruned network's inputs of a later call may depend on V itself, so all of them read the original's (the variant
`layer`). Groups that several calls read are decided before the sweep: so is V.
"""

from __future__ import annotations

from collections.abc import Callable

from subprune_fx.passes.scratch import Scratch
from subprune_fx.passes.trials import Reweighter


def refit(scratch: Scratch, reweighter: Callable[[], Reweighter]) -> None:
    """Give these layers new weights where they have lost channels.

    Args:
        scratch: The network, of whose groups those that several consumers read are decided.
        reweighter: Makes new weights by the original network's moments; asked for only where there are such layers.
    """
    channels = scratch.network.channels
    for name in dict.fromkeys(scratch.network.joint.values()):
        consumer = channels.contractions[name]
        if scratch.alive[channels.unit[consumer.labels]].all():
            continue
        where = scratch.network.intercepts.get(name)
        for parameter, value in reweighter().patch(name, scratch.alive, biases=True).items():
            added = where is not None and where.new and parameter == where.name
            scratch.set_whole(parameter, value, consumer.outputs if added else None)
