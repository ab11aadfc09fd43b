"""Write a network in every format asked for; each file is compared with it before any is renamed into place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.atomic import check_targets, staged
from subprune_fx.passes.baseline import Baseline
from subprune_fx.passes.clock import Progress
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.passes.writers import Job, Writer, writer_of
from subprune_fx.plan import Plan
from subprune_fx.report import FileRow


def write_all(
    module: nn.Module,
    original: nn.Module | None,
    example: Inputs,
    calibration: Inputs,
    targets: Sequence[str | os.PathLike[str]],
    *,
    progress: Progress | None = None,
) -> tuple[FileRow, ...]:
    """Write, compare and time every target; either all of them appear, complete, or none.

    Args:
        module: The pruned network, in eval mode.
        original: The network before, whose file size and latency are reported beside; None to leave them out.
        example: One input, batch axis first.
        calibration: Inputs (n, ...) on which each file is compared with `module`.
        targets: Paths ending in a suffix of `WRITERS`.
        progress: Called with ("write", done, total).

    Returns:
        A row per target, in order.

    Raises:
        SubpruneError: A target cannot be written, or the network has no form in its format.
        ValidationError: A file does not agree with `module`.
    """
    for target in check_targets(targets):
        writer_of(target, module)
    with contextlib.ExitStack() as stack:
        baseline = None if original is None else stack.enter_context(Baseline(original, example))
        temporaries = stack.enter_context(staged(targets))
        return fill(module, baseline, example, calibration, temporaries, progress=progress)


def fill(
    module: nn.Module,
    original: Baseline | None,
    example: Inputs,
    calibration: Inputs,
    temporaries: Mapping[Path, Path],
    *,
    plan: Plan | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[FileRow, ...]:
    """`write_all` into files that `staged` made, for a caller that renames others along with them.

    Args:
        module: See `write_all`.
        original: The network before.
        example: See `write_all`.
        calibration: See `write_all`.
        temporaries: Target -> where to write it for now.
        plan: What made the network, for the formats that hold it.
        threads: Of onnxruntime where it is timed; 0 for all cores.
        progress: See `write_all`.

    Returns:
        A row per target, in order.

    Raises:
        SubpruneError: See `write_all`.
        ValidationError: See `write_all`.
    """
    job = Job(module, example, plan)
    if original is not None:
        original.begin({target.suffix.lower(): writer_of(target, module) for target in temporaries})
    rows = []
    for done, (target, temporary) in enumerate(temporaries.items()):
        if progress:
            progress("write", done, len(temporaries))
        writer = writer_of(target, module)
        difference = _write(job, writer, target, temporary, calibration)
        before = None if original is None else original.file(writer, target.suffix.lower())
        row = _row(writer, target, temporary, before, example, threads, difference)
        if original is not None and before is not None:
            row = dataclasses.replace(row, bytes_before=original.size(before))
        rows.append(dataclasses.replace(row, batch=writer.batch(job)))
    if progress:
        progress("write", len(temporaries), len(temporaries))
    return tuple(rows)


def _write(job: Job, writer: Writer, target: Path, temporary: Path, calibration: Inputs) -> float | None:
    """Write and compare; the largest difference."""
    try:
        writer.write(job, temporary)
        return writer.check(job, temporary, calibration)
    except SubpruneError as error:  # name the file the user asked for
        where = error.where.replace(str(temporary), str(target))
        raise type(error)(error.what.replace(str(temporary), str(target)), where=where, remedy=error.remedy) from error
    except Exception as error:  # a full disk, or a layer that cannot be pickled
        what = f"cannot be written ({type(error).__name__}: {first_line(error)})".replace(str(temporary), str(target))
        raise SubpruneError(what, where=str(target)) from error


def _row(
    writer: Writer,
    target: Path,
    temporary: Path,
    before: Path | None,
    example: Inputs,
    threads: int,
    difference: float | None,
) -> FileRow:
    files = [temporary] if before is None else [temporary, before]
    times = latencies_ms(files, example, threads=threads) if writer.timed else []
    return FileRow(
        path=str(target),
        bytes=temporary.stat().st_size,
        latency_ms=times[0] if times else None,
        latency_before_ms=times[1] if times and before else None,
        max_difference=difference,
    )
