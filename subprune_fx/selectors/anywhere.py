"""Random: any units of the whole network go."""

from __future__ import annotations

import dataclasses

from subprune_fx.selectors import layerrandom
from subprune_fx.selectors.globally import highest

ROW = dataclasses.replace(layerrandom.ROW, name="random", summary="random units, whole network", allot=highest)
