"""Recurrent layers: one unit of their state is a row of every gate, in all layers and directions.

A unit whose weights are zero, and that begins at zero, stays zero, whatever the kind of layer: dropping it is exact.
What is left of the others depends on all that are kept, as with a normalisation, and who reads them is refitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subprune_fx.graph.freezing import refuse
from subprune_fx.graph.labels import Labels, along, varying, vector
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.step import Param, Step, Tree, leaves

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(state: Propagation, step: Step) -> Tree:
    """Input by direction, first state, weights by layer and direction.

    `attrs` say what kind it is, how many layers and directions, and by layer and direction which weights there are
    (`present`; those that meet the input are not: they have become the gates).
    """
    count, directions = GATES[step.attrs["kind"]], 1 + step.attrs["both"]
    gates, rest = [state.of(gate) for gate in step.operands[:directions]], step.operands[directions:]
    weights = rest[len(rest) - sum(map(sum, step.attrs["present"])) :]
    begins = rest[: len(rest) - len(weights)]
    if not all(isinstance(weight, Param) for weight in weights):
        return refuse(state, step, f"{step.op} has computed weights")
    if any(len(present) not in (2, 4) for present in step.attrs["present"]):
        return refuse(state, step, f"{step.op} projects what it holds")
    if any({*varying(labels)} - {labels.ndim - 1} for labels in gates):
        return refuse(state, step, f"{step.op} reads channels on a dimension it does not sum over")
    parts = [vector(gate, -1).reshape(count, -1) for gate in gates]
    units = parts[0][0]
    for part in parts:
        state.unify(np.broadcast_to(units, part.shape), part, f"{step.op} holds it with fixed channels")
    for labels in (labels for operand in begins for labels in leaves(state.of(operand))):
        tied = state.tie(labels, range(labels.ndim - 1), f"{step.op} begins with it")
        state.unify(units, vector(tied, -1), f"{step.op} begins with fixed channels")
    _weighted(state, step, [weight for weight in weights if isinstance(weight, Param)], units)
    state.normalised.append(units)
    wide = np.tile(units, directions)
    return _spread(step.blank, (wide, units))


def _spread(blank: Tree, units: tuple[Labels, Labels]) -> Tree:
    """Labels of what is given: at each step the units of all directions, and the last state."""
    if isinstance(blank, tuple):
        return tuple(_spread(part, units) for part in blank)
    return along(next(one for one in units if one.size == blank.shape[-1]), -1, blank.shape)


def _weighted(state: Propagation, step: Step, weights: Sequence[Param], units: Labels) -> None:
    """Rows of all weights are those of the gates; columns are units of the layer, or of all directions of the last."""
    rows, columns = np.tile(units, GATES[step.attrs["kind"]]), np.tile(units, 1 + step.attrs["both"])
    state.follows.append((units, step.module))
    pending = iter(weights)
    for present in step.attrs["present"]:
        for place, there in enumerate(present):
            if not there:
                continue
            weight = next(pending)
            state.weight_axis(weight, 0, rows)
            if place < _MATRICES:
                state.weight_axis(weight, 1, (columns, units)[place])


_MATRICES = 2
"""First of the weights of a layer and direction come its matrices, of the input and of the state."""
