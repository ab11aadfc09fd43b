"""Look at convolutions in some output positions only, where all of them are far more than a fit needs.

A least-squares fit of d columns to n rows errs by about d / n of what it cannot explain, and neighbouring positions of
an image say much the same. So of each sample some positions are looked at: every sample counts, and products and refits
cost that much less. He et al. 2017 (Channel Pruning for Accelerating Very Deep Networks) look at 10 a sample.
"""

from __future__ import annotations

import dataclasses
import math

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.numerics.conv_reader import ConvReader
from subprune_fx.numerics.thinned_reader import ThinnedReader

LEAST = 32
"""Positions of a sample that are looked at at least: what is where in a picture may matter."""

WORTHWHILE = 0.5
"""Share of the positions up to which it pays to pick them: all have faster ways, see `numerics.grams`."""


def thinned(network: FxNetwork, samples: int, rows: int) -> FxNetwork:
    """The same network, its convolutions looked at in fewer positions.

    Args:
        network: The analysed network.
        samples: Calibration inputs.
        rows: That are enough for each column of a design matrix; 0: look at all.
    """
    if rows == 0:
        return network
    readers = dict(network.readers)
    for name, reader in network.readers.items():
        positions = _positions(network, name)
        if not isinstance(reader, ConvReader) or not positions:
            continue
        consumer = network.channels.contractions[name]
        columns = len(consumer.labels) // consumer.groups * reader.taps
        share = max(LEAST, rows * columns / samples) / positions
        if share <= WORTHWHILE:
            readers[name] = ThinnedReader(reader, share)
    return dataclasses.replace(network, readers=readers)


def _positions(network: FxNetwork, name: str) -> int:
    """Of a sample's output, in all calls of a layer together; 0: not known."""
    values, joint = network.channels.values, network.joint
    calls = [call for call, first in joint.items() if first == joint[name]] if name in joint else [name]
    return sum(math.prod(values[call].shape[2:]) for call in calls) if all(call in values for call in calls) else 0
