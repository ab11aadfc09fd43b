"""Which units of a group are worth keeping: one method a file, one row a method."""

from __future__ import annotations

from subprune_fx.selectors import (
    actgrad,
    anywhere,
    inchange,
    layeractgrad,
    layergreedyfs,
    layergreedyfs_fd,
    layerrandom,
    layersampling,
    layerweightnorm,
    stochastic,
    weightnorm,
)
from subprune_fx.selectors.base import (
    LABELLED,
    Allot,
    Evidence,
    Keep,
    Losses,
    Need,
    Ranking,
    Readout,
    Selector,
    Sensitivity,
)

SELECTORS: dict[str, Selector] = {
    row.name: row
    for row in (
        inchange.ROW,
        stochastic.ROW,
        layergreedyfs.ROW,
        layergreedyfs_fd.ROW,
        layersampling.ROW,
        actgrad.ROW,
        layeractgrad.ROW,
        layerweightnorm.ROW,
        weightnorm.ROW,
        anywhere.ROW,
        layerrandom.ROW,
    )
}

__all__ = [
    "LABELLED",
    "SELECTORS",
    "Allot",
    "Evidence",
    "Keep",
    "Losses",
    "Need",
    "Ranking",
    "Readout",
    "Selector",
    "Sensitivity",
]
