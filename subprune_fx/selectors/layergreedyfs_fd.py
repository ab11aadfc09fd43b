"""LayerGreedyFS-fd: the same with the full training data to draw its batches from."""

from __future__ import annotations

import dataclasses

from subprune_fx.selectors import layergreedyfs
from subprune_fx.selectors.base import Need

ROW = dataclasses.replace(
    layergreedyfs.ROW,
    name="layergreedyfs-fd",
    summary="the same on batches of the training set",
    needs=frozenset({Need.LOSS, Need.TRAINING}),
)
