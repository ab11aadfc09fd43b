"""Compare a written file with the torch network it came from, and time it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs, arguments, call, doubled, joined, parts
from subprune_fx.errors import SubpruneError, ValidationError
from subprune_fx.formats.lines import first_line
from subprune_fx.sessions import opened, quiet

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]
Run = Callable[[Inputs], Sequence[Array]]

FLOOR = 1e-4  # of the output's scale
CEILING = 1e-2
SAFETY = 10.0
# One, an odd one, then larger ones: a batch axis that was specialised fails on some of them. 132 samples in
# all: each is a full evaluation of both networks, and a wiring fault shows on the first.
BATCH_SIZES = (1, 3, 32, 32, 64)


INPUTS = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int32)": np.int32}
"""Types of a file's input that inputs are converted to."""


def tolerance_of(module: nn.Module, inputs: Inputs) -> float:
    """How far two correct float32 evaluations of a network may differ, as a fraction of its output's scale.

    Runtimes sum in different orders and fold BatchNorm. A sum of n terms is then off by about sqrt(n) *
    2**-24 of its scale (n at worst), and L layers add up: sqrt(56 * 4608) * 6e-8 = 3e-5 for the deepest and
    widest networks at hand. `FLOOR`, 1e-4, is above that. A network may amplify rounding (saturated softmax,
    tiny variances); how much is measured, as the distance of torch's float32 from its float64, times
    `SAFETY`. A wiring fault moves the output by its own scale, hence `CEILING`.

    Args:
        module: The network.
        inputs: A few inputs.

    Returns:
        Between `FLOOR` and `CEILING`.
    """
    try:
        double = copy.deepcopy(module).double()
        with torch.no_grad():
            exact = _outputs(double(doubled(inputs)))
            plain = _outputs(module(inputs))
    except Exception:  # noqa: BLE001 - a constant that stays float32, an op without float64: no such measure
        return FLOOR
    rounding = max((_difference(a, b) / _scale(b) for a, b in zip(plain, exact, strict=True)), default=0.0)
    return float(np.clip(SAFETY * rounding, FLOOR, CEILING)) if np.isfinite(rounding) else FLOOR


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
        tolerance: Largest allowed difference as a fraction of the largest output; None: `tolerance_of`.
        fixed_batch: The only batch size of the file; None: any.

    Returns:
        The largest absolute difference.

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
        tolerance: As a fraction of the largest output; None: `tolerance_of`.
        fixed_batch: The only batch size; None: any.

    Returns:
        The largest absolute difference.

    Raises:
        ValidationError: `run` fails, or differs by more than the tolerance.
    """
    if tolerance is None:
        tolerance = tolerance_of(module, inputs[: fixed_batch or 16])
    worst = scale = 0.0
    for batch in _batches(inputs, fixed_batch):
        with torch.no_grad():
            wanted = _outputs(call(module, batch))
        if not all(np.isfinite(value).all() for value in wanted):
            what = "torch's own output of the pruned network is not finite"
            raise ValidationError(what, where=where, remedy="check the calibration inputs and the network")
        try:
            got = run(batch)
        except Exception as error:
            what = f"it fails on a batch of {len(batch)} ({first_line(error)})"
            raise ValidationError(what, where=where, remedy="nothing was written") from error
        if [a.shape for a in got] != [b.shape for b in wanted]:
            what = f"its outputs have shapes {[a.shape for a in got]}, torch's {[b.shape for b in wanted]}"
            raise ValidationError(what, where=where, remedy="nothing was written")
        for a, b in zip(got, wanted, strict=True):
            worst = max(worst, _difference(a, b))
            scale = max(scale, _scale(b))
    if worst > tolerance * scale:
        allowed = f"{tolerance * scale:.3g} ({tolerance:.0e} of its scale)"
        what = f"its output differs from torch's by {worst:.3g}, allowed are {allowed}"
        raise ValidationError(what, where=where, remedy="nothing was written")
    return worst


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
            return _outputs(call(module, batch))

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


def _outputs(value: Any) -> list[Array]:
    return [leaf.numpy() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _difference(a: Array, b: Array) -> float:
    difference = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0))
    return difference if np.isfinite(difference) else np.inf  # max() below would pass over a NaN


def _scale(array: Array) -> float:
    return max(float(np.max(np.abs(array), initial=0.0)), float(np.finfo(np.float32).tiny))
