"""Output formats: each is a row of `WRITERS`, with what writes a file and what compares it with the network.

A `.pt` holds the `fx.GraphModule` as `torch.save` writes it: Python source and all, so that loading it again needs
`--trust`; `.onnx` and `.pt2` need no trust. A `.plan` holds what was decided, `.safetensors` the weights alone.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load, save
from torch import nn
from torch.export import ExportedProgram

from subprune_fx.bundle import Inputs
from subprune_fx.errors import SubpruneError, ValidationError
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.passes import export, fold, onnx_rewrite, validate
from subprune_fx.plan import Plan, same


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
