"""Eight-bit integers: onnxruntime's own static quantiser, fed with the calibration inputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError, ValidationError, first_line
from subprune_fx.passes.by_sample import axis_of
from subprune_fx.passes.outputs import batches_of
from subprune_fx.passes.validate import feeder
from subprune_fx.sessions import opened, quiet
from subprune_fx.silence import silence

BATCH = 32
PER_CHANNEL = 13
"""The first opset in which a scale may belong to one channel."""
LOST = 0.5
"""Squared change of the output, as a fraction of its spread, at which it says too little of the original's.

Eight bits leave a change of 1e-4 to 1e-2; a range that was seen wrongly, or a kernel that overflows, brings it to 1."""

Array = npt.NDArray[Any]


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, path: Path, inputs: Inputs) -> None:
        session = opened(path, quiet())
        feed = feeder(session)
        self._left = (feed(batch) for batch in _batches(session, inputs))

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, by input."""
        return next(self._left, None)


def quantise(source: Path, target: Path, inputs: Inputs, *, where: str) -> None:
    """Write an ONNX file whose weights and activations are int8 where onnxruntime has kernels for it.

    Weights have a scale a channel, activations a scale a tensor, the smallest that covers what the calibration inputs
    give. Quantised values are marked in the graph (QDQ), and inputs and outputs stay floats.

    Args:
        source: The float network.
        target: Where to write.
        inputs: Calibration inputs, (samples, ...).
        where: What to call the target in errors.

    Raises:
        SubpruneError: The quantiser fails.
        ValidationError: The file's outputs have other shapes, are not finite, or have little to do with the float
            network's.
    """
    try:
        with silence(), tempfile.TemporaryDirectory(prefix="subprune-") as folder:
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(source, ready, skip_symbolic_shape=True, skip_optimization=True)
            opset = max(entry.version for entry in onnx.load(source).opset_import if entry.domain in ("", "ai.onnx"))
            quantization.quantize_static(
                *(ready, target, _Reader(ready, inputs)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=opset >= PER_CHANNEL,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    except Exception as error:
        what = f"onnxruntime cannot quantise it ({type(error).__name__}: {first_line(error)})"
        raise SubpruneError(what, where=where, remedy="leave --quantize out") from error
    _check(source, target, inputs, where)


def _check(source: Path, target: Path, inputs: Inputs, where: str) -> None:
    try:
        wanted, found = (outputs_of(path, inputs) for path in (source, target))
    except Exception as error:
        raise ValidationError(f"it does not run ({first_line(error)})", where=where) from error
    if [value.shape for value in found] != [value.shape for value in wanted]:
        raise ValidationError("its outputs have other shapes than the float network's", where=where)
    for got, want in zip(found, wanted, strict=True):
        change = float(np.square(got.astype(np.float64) - want).sum())
        spread = float(np.square(want - want.mean(0, dtype=np.float64)).sum())
        if not change <= LOST * max(spread, float(np.finfo(np.float32).tiny)):
            what = f"its outputs are off by {change / max(spread, 1e-30):.2f} of their spread, allowed are {LOST:g}"
            raise ValidationError(what, where=where, remedy="this network does not stand int8; nothing was written")


def outputs_of(path: Path, inputs: Inputs) -> list[Array]:
    """What onnxruntime makes of all inputs, output by output, (samples, ...); a row a batch of what is of no sample."""
    session = opened(path, quiet())
    feed = feeder(session)
    pieces = [
        [_samples_first(value, len(batch)) for value in session.run(None, feed(batch))]
        for batch in _batches(session, inputs)
    ]
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def _samples_first(value: Array, samples: int) -> Array:
    axis = axis_of(value.shape, samples)
    return np.atleast_1d(value) if axis is None else np.moveaxis(value, axis, 0)


def _batches(session: onnxruntime.InferenceSession, inputs: Inputs) -> list[Inputs]:
    """Inputs in pieces that a session takes: of any size, or of the one that its file states."""
    first = session.get_inputs()[0].shape[:1]
    fixed = next((size for size in first if isinstance(size, int)), None)
    return batches_of(inputs, fixed or BATCH, whole=fixed is not None)
