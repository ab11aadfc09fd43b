"""What each step of a compilation has cost and gained: the original's file, the pruned one, the quantised one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subprune_fx.bundle import Inputs
from subprune_fx.passes.outputs import deviation
from subprune_fx.passes.quantise import outputs_of
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.report import Stage

ORIGINAL = "original"
Array = npt.NDArray[Any]
Classes = npt.NDArray[np.int64] | None
"""By sample; None where the output holds no class scores."""


def stages(
    original: Path | None,
    made: Mapping[str, tuple[Path, Path]],
    calibration: Inputs,
    evaluation: tuple[Inputs, Tensor] | None,
    *,
    example: Inputs,
    threads: int,
) -> tuple[Stage, ...]:
    """Measure files of one network against the original's.

    Args:
        original: ONNX file of the network before; None: it has none, and there is nothing to agree with.
        made: By name of the stage its ONNX file as it lies now, and where it goes.
        calibration: Inputs on which classes are compared.
        evaluation: Inputs and labels for the accuracy.
        example: One input, for the latency.
        threads: Of onnxruntime; 0 for all cores.

    Returns:
        A row a file.
    """
    first = {} if original is None else {ORIGINAL: (original, None)}
    files: dict[str, tuple[Path, Path | None]] = {**first, **made}
    times = latencies_ms([file for file, _ in files.values()], example, threads=threads)
    outputs = {name: outputs_of(file, calibration)[0] for name, (file, _) in files.items()}
    wanted = outputs.get(ORIGINAL)
    rows = []
    for (name, (file, target)), milliseconds in zip(files.items(), times, strict=True):
        found = outputs[name]
        agreement = None if wanted is None else _share(_classes(found), _classes(wanted))
        change = None if wanted is None or agreement is not None else _change(wanted, found)
        accuracy = None
        if evaluation is not None:
            accuracy = _share(_classes(outputs_of(file, evaluation[0])[0]), evaluation[1].numpy())
        path = None if target is None else str(target)
        rows.append(Stage(name, file.stat().st_size, milliseconds, agreement, accuracy, path, change))
    return tuple(rows)


def _change(wanted: Array, found: Array) -> float | None:
    return deviation([torch.from_numpy(wanted)], [torch.from_numpy(found)], [len(wanted)])


def _classes(output: Array) -> Classes:
    return output.argmax(1) if output.ndim == 2 and output.shape[1] > 1 else None


def _share(found: Classes, wanted: Classes) -> float | None:
    if found is None or wanted is None:
        return None
    return float((found == wanted[: len(found)]).mean())
