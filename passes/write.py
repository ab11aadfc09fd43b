"""Write the pruned network in every format asked for, each compared with it before anything is renamed.

Each format is a row of `WRITERS`. A `.pt` holds the `fx.GraphModule` as `torch.save` writes it: Python source
and all, so that loading it again needs `--trust`; `.onnx` and `.pt2` need no trust. A `.plan` holds what was decided,
`.safetensors` the weights alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from safetensors.torch import load, save
from torch import nn
from torch.export import ExportedProgram

from subprune_fx.background import Background, can_fork
from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError, ValidationError, first_line
from subprune_fx.formats.atomic import check_targets, staged
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_graph import source_of
from subprune_fx.passes import export, fold, onnx_rewrite, validate
from subprune_fx.passes.clock import Progress
from subprune_fx.passes.timing import latencies_ms
from subprune_fx.plan import Plan, same
from subprune_fx.report import FileRow

ROOM = 1 << 29
"""Parameters up to which a network may be captured twice at a time."""

PATIENCE = 60.0
"""Seconds that the original may take longer than the other network before it is written once more, in this process."""


class Job:
    """A network on its way into files; captured once, for all formats that need it captured.

    Attributes:
        module: The network, in eval mode.
        example: One input, batch axis first.
        plan: What made it; None where nothing did.
    """

    def __init__(self, module: nn.Module, example: Inputs, plan: Plan | None = None) -> None:
        self.module = module
        self.example = example
        self.plan = plan

    @functools.cached_property
    def captured(self) -> tuple[ExportedProgram, bool]:
        """The program, and whether its batch axis is free (`export.export`)."""
        return export.export(self.module, self.example)

    @functools.cached_property
    def merged(self) -> tuple[ExportedProgram, bool]:
        """The same with BatchNorm merged into convolutions (`fold.folded`)."""
        module = fold.folded(self.module)
        return self.captured if module is self.module else export.export(module, self.example)

    def fixed_batch(self, captured: tuple[ExportedProgram, bool]) -> int | None:
        """The only batch size that a captured program takes; None for any."""
        return None if captured[1] else len(self.example)


class Baseline:
    """The network before, written once in each format, however many networks are compared with it."""

    def __init__(self, module: nn.Module, example: Inputs) -> None:
        self._job = Job(module, example)
        self._folder = tempfile.TemporaryDirectory(prefix="subprune-")
        self._written: dict[str, Path | None] = {}
        self._background: tuple[Background, float, Mapping[str, Writer]] | None = None

    def __enter__(self) -> Self:
        """Its files live as long as the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        if self._background is not None:
            self._background[0].stop()
        self._folder.cleanup()

    def begin(self, writers: Mapping[str, Writer]) -> None:
        """Begin to write it in slow formats, by suffix, in a process of its own where that can be had."""
        slow = {suffix: writer for suffix, writer in writers.items() if writer.slow and suffix not in self._written}
        small = sum(tensor.numel() for tensor in self._job.module.parameters()) <= ROOM
        if slow and small and self._background is None and can_fork():
            self._background = Background(functools.partial(self._write, slow)), time.monotonic(), slow

    def file(self, writer: Writer, suffix: str) -> Path | None:
        """The network in a format; None where it has no such form."""
        if self._background is not None:
            (work, start, slow), self._background = self._background, None
            if work.ended_well(PATIENCE + time.monotonic() - start):
                self._written |= {other: self._found(other) for other in slow}
        if suffix not in self._written:
            self._write({suffix: writer})
            self._written[suffix] = self._found(suffix)
        return self._written[suffix]

    def size(self, path: Path) -> int:
        """Bytes of its file."""
        return bytes_of(path, self._job.module)

    def _write(self, writers: Mapping[str, Writer]) -> None:
        for suffix, writer in writers.items():
            part = self._path(f".part{suffix}")
            with contextlib.suppress(Exception):  # only figures for the report are lost
                writer.write(self._job, part)
                part.rename(self._path(suffix))

    def _found(self, suffix: str) -> Path | None:
        path = self._path(suffix)
        return path if path.exists() else None

    def _path(self, suffix: str) -> Path:
        return Path(self._folder.name) / f"original{suffix}"


@dataclasses.dataclass(frozen=True)
class Writer:
    """One output format.

    Attributes:
        write: Writes the network to a path.
        check: Compares the file with the network; the largest absolute difference on calibration inputs, None for a
            format that does not run.
        timed: Whether onnxruntime runs it.
        slow: Whether the network has to be captured for it.
        batch: The only batch size that a captured network takes; None for any.
    """

    write: Callable[[Job, Path], None]
    check: Callable[[Job, Path, Inputs], float | None]
    timed: bool = False
    slow: bool = False
    batch: Callable[[Job], int | None] = lambda _: None


def writer_of(path: str | os.PathLike[str], module: nn.Module | None = None) -> Writer:
    """The writer of a target, by its suffix.

    Args:
        path: The file to be written.
        module: The network; one that came from an ONNX file is written back as that file.

    Returns:
        The row of `WRITERS` or `ONNX_WRITERS`.

    Raises:
        SubpruneError: No format has this suffix, or the network has no form in it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        what = f"has the suffix {suffix!r}, which is no output format" if suffix else "has no suffix to tell its format"
        raise SubpruneError(what, where=str(path), remedy=f"end it in {', '.join(WRITERS)}")
    if module is None or source_of(module) is None:
        return WRITERS[suffix]
    if suffix not in ONNX_WRITERS:
        what = f"a network that came from an ONNX file cannot be written as {suffix}"
        raise SubpruneError(what, where=str(path), remedy="end it in .onnx or .plan")
    return ONNX_WRITERS[suffix]


def bytes_of(path: Path, module: nn.Module) -> int:
    """Bytes of a network's file; of one that is still what an ONNX file holds, those of that file.

    What is written of it has functions inlined and sparse tensors made dense.
    """
    source = source_of(module)
    read = 0 if source is None or source.attributes else source.size
    return read or path.stat().st_size


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


def _write_onnx(job: Job, path: Path) -> None:
    export.to_onnx(job.merged[0], job.example, path)


def _write_pt2(job: Job, path: Path) -> None:
    export.to_pt2(job.captured[0], job.example, path)


def _write_pt(job: Job, path: Path) -> None:
    torch.save(job.module, path)


def _merged_batch(job: Job) -> int | None:
    return job.fixed_batch(job.merged)


def _captured_batch(job: Job) -> int | None:
    return job.fixed_batch(job.captured)


def _check_onnx(job: Job, path: Path, calibration: Inputs) -> float:
    return validate.validate_onnx(path, job.module, calibration, fixed_batch=_merged_batch(job))


def _check_pt2(job: Job, path: Path, calibration: Inputs) -> float:
    run = validate.torch_runner(load_model(path).module)  # the vetted way in: what is written loads without trust
    return validate.validate(run, job.module, calibration, where=str(path), fixed_batch=_captured_batch(job))


def _check_pt(job: Job, path: Path, calibration: Inputs) -> float:
    run = validate.torch_runner(load_model(path, trust=True).module)  # written a moment ago, by us
    return validate.validate(run, job.module, calibration, where=str(path))


def _write_plan(job: Job, path: Path) -> None:
    if job.plan is None:
        raise SubpruneError("there is no plan to write", where=str(path), remedy="use Plan.save")
    job.plan.save(path)


def _check_plan(job: Job, path: Path, calibration: Inputs) -> None:
    del calibration
    if job.plan is None or not same(Plan.load(path), job.plan):
        raise ValidationError("does not hold the plan that was written", where=str(path))


def _write_weights(job: Job, path: Path) -> None:
    """Tied weights under each of their names: a class of the user's own ties them again."""
    state = {name: value.detach().clone().contiguous() for name, value in job.module.state_dict().items()}
    path.write_bytes(save(state))


def _check_weights(job: Job, path: Path, calibration: Inputs) -> None:
    del calibration
    found, wanted = load(path.read_bytes()), job.module.state_dict()
    if found.keys() != wanted.keys() or not all(torch.equal(found[name], value) for name, value in wanted.items()):
        raise ValidationError("does not hold the weights that were written", where=str(path))


def _write_onnx_back(job: Job, path: Path) -> None:
    onnx_rewrite.save(job.module, job.example, path)


def _check_onnx_back(job: Job, path: Path, calibration: Inputs) -> float:
    return onnx_rewrite.check(job.module, path, calibration)


WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        ".onnx": Writer(_write_onnx, _check_onnx, timed=True, slow=True, batch=_merged_batch),
        ".pt2": Writer(_write_pt2, _check_pt2, slow=True, batch=_captured_batch),
        ".pt": Writer(_write_pt, _check_pt),
        ".plan": Writer(_write_plan, _check_plan),
        ".safetensors": Writer(_write_weights, _check_weights),
    }
)

ONNX_WRITERS: Mapping[str, Writer] = MappingProxyType(
    {".onnx": Writer(_write_onnx_back, _check_onnx_back, timed=True), ".plan": Writer(_write_plan, _check_plan)}
)
"""For networks that came from an ONNX file."""
