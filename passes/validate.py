"""Compare a written file with the torch network it came from, and time it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from subprune_fx.bundle import Inputs, arguments, call, joined, parts
from subprune_fx.errors import SubpruneError, ValidationError, first_line
from subprune_fx.passes.differences import FLOOR, Array, Difference, arrays, differences, limits, scales, tolerances_of
from subprune_fx.sessions import opened, quiet

if TYPE_CHECKING:
    import onnxruntime

Run = Callable[[Inputs], Sequence[Array]]

# One, an odd one, then larger ones: a batch axis that was specialised fails on some of them. 132 samples in
# all: each is a full evaluation of both networks, and a wiring fault shows on the first.
BATCH_SIZES = (1, 3, 32, 32, 64)


INPUTS = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int32)": np.int32}
"""Types of a file's input that inputs are converted to."""


def validate_onnx(
    path: str | os.PathLike[str],
    module: nn.Module,
    inputs: Inputs,
    *,
    tolerance: float | None = None,
    fixed_batch: int | None = None,
) -> float:
    """Run an ONNX file in onnxruntime and compare it with torch.

    Args:
        path: The file.
        module: The network that it must equal.
        inputs: Calibration inputs; the first `sum(BATCH_SIZES)` are used.
        tolerance: Largest allowed difference as a fraction of an output's scale; None: `differences.tolerances_of`.
        fixed_batch: The only batch size of the file; None: any.

    Returns:
        The largest absolute difference; of integers, the share that differs.

    Raises:
        ValidationError: The file does not run, or differs by more than the tolerance.
    """
    try:
        run = onnx_runner(path)
    except Exception as error:
        raise ValidationError(f"onnxruntime cannot load it ({first_line(error)})", where=str(path)) from error
    return validate(run, module, inputs, where=str(path), tolerance=tolerance, fixed_batch=fixed_batch)


def validate(
    run: Run,
    module: nn.Module,
    inputs: Inputs,
    *,
    where: str,
    tolerance: float | None = None,
    fixed_batch: int | None = None,
) -> float:
    """Compare any evaluation of a network with torch's own; see `validate_onnx`.

    Args:
        run: Inputs -> the outputs to be compared.
        module: The reference.
        inputs: Calibration inputs.
        where: For the error.
        tolerance: As a fraction of an output's scale; None: `differences.tolerances_of`.
        fixed_batch: The only batch size; None: any.

    Returns:
        The largest absolute difference; of integers, the share that differs.

    Raises:
        ValidationError: `run` fails, or differs by more than the tolerance.
    """
    found: list[Difference] = []
    for batch in _batches(inputs, fixed_batch):
        with torch.no_grad():
            wanted = arrays(call(module, batch))
        if any(np.isnan(value).any() for value in wanted):
            what = "torch's own output of the pruned network is NaN"
            raise ValidationError(what, where=where, remedy="check the calibration inputs and the network")
        try:
            got = run(batch)
        except Exception as error:
            what = f"it fails on a batch of {len(batch)} ({first_line(error)})"
            raise ValidationError(what, where=where, remedy="nothing was written") from error
        if [a.shape for a in got] != [b.shape for b in wanted]:
            what = f"its outputs have shapes {[a.shape for a in got]}, torch's {[b.shape for b in wanted]}"
            raise ValidationError(what, where=where, remedy="nothing was written")
        found = found or differences(wanted)
        for one, a, b in zip(found, got, wanted, strict=True):
            one.add(a, b)
    within = FLOOR if tolerance is None else tolerance
    if all(one.worst <= limit for one, limit in zip(found, limits(found, [within] * len(found)), strict=True)):
        return max((one.worst for one in found), default=0.0)
    # How much more may be allowed takes the network in float64 to say.
    more = [] if tolerance is not None else tolerances_of(module, inputs[: fixed_batch or 16])
    tolerances = more or [within] * len(found)
    each = zip(found, limits(found, tolerances), scales(found), strict=True)
    for place, (one, allowed, scale) in enumerate(each):
        if one.worst > allowed:
            which = "its output" if len(found) == 1 else f"its output {place}"
            by = f"in {one.worst:.3g} of its numbers" if one.whole else f"by {one.worst:.3g}"
            share = f" ({allowed / scale:.0e} of its scale)" if scale else ""  # of zeros there is none
            what = f"{which} differs from torch's {by}, allowed are {allowed:.3g}{share}"
            raise ValidationError(what, where=where, remedy="nothing was written")
    return max((one.worst for one in found), default=0.0)


def onnx_runner(path: str | os.PathLike[str], threads: int = 0) -> Run:
    """An onnxruntime session as a function.

    Args:
        path: The file.
        threads: Of one operator; 0 for all cores.

    Returns:
        Inputs -> outputs.
    """
    session = opened(path, quiet(threads))
    feed = feeder(session)

    def run(batch: Inputs) -> Sequence[Array]:
        return [np.asarray(value) for value in session.run(None, feed(batch))]

    return run


def feeder(session: onnxruntime.InferenceSession) -> Callable[[Inputs], dict[str, Array]]:
    """From inputs to what a session is fed: by name where they have the session's, else by position."""
    takes = {value.name: INPUTS.get(value.type) for value in session.get_inputs()}

    def feed(batch: Inputs) -> dict[str, Array]:
        given = arguments(batch)[1]
        named = given if given.keys() == takes.keys() else dict(zip(takes, parts(batch), strict=True))
        return {name: _as(tensor.numpy(), takes[name]) for name, tensor in named.items()}

    return feed


def _as(array: Array, kind: Any) -> Array:
    return array if kind is None else array.astype(kind, copy=False)


def torch_runner(module: nn.Module) -> Run:
    """A torch network as a function, for `validate`.

    Args:
        module: The network.

    Returns:
        Inputs -> outputs.
    """

    def run(batch: Inputs) -> Sequence[Array]:
        with torch.no_grad():
            return arrays(call(module, batch))

    return run


def _batches(inputs: Inputs, fixed: int | None) -> Iterator[Inputs]:
    if len(inputs) == 0:
        raise SubpruneError("there are no inputs to compare on", where="validation")
    if fixed is not None:
        repeats = -(-fixed // len(inputs))
        inputs = joined([inputs] * repeats)
        count = max(1, min(len(inputs), sum(BATCH_SIZES)) // fixed)
        yield from (inputs[i * fixed : (i + 1) * fixed] for i in range(count))
        return
    start = 0
    for size in BATCH_SIZES:
        if start < len(inputs):
            yield inputs[start : start + size]
        start += size
