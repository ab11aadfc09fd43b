"""Write a network as an ONNX file or a torch.export archive, any batch size where the network allows it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from subprune_fx.bundle import Inputs, arguments, joined
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.frontends.fx_inputs import free_samples
from subprune_fx.garbage import seldom
from subprune_fx.passes.export_attention import laid_out
from subprune_fx.passes.export_ready import ready
from subprune_fx.silence import silence
from subprune_fx.sizes import PROTOBUF_LIMIT

BATCH = "batch"


def export(module: nn.Module, example: Inputs) -> tuple[ExportedProgram, bool]:
    """Capture a network with torch.export, with a free batch axis where that is possible.

    The example is doubled first: torch.export takes a batch of one for a constant.

    Args:
        module: In eval mode.
        example: An input with its batch axis first.

    Returns:
        `(program, dynamic)`; `dynamic` is False where the network fixes its batch size (to that of
        `example`).

    Raises:
        SubpruneError: torch.export cannot capture the network.
    """
    # A network with a batch size built in violates the constraint, or raises anything at all on another size.
    with contextlib.suppress(Exception):
        return _capture(module, joined([example, example]), dynamic=True), True
    try:
        return _capture(module, example, dynamic=False), False
    except Exception as error:
        what = f"torch.export cannot capture the network ({type(error).__name__}: {first_line(error)})"
        raise SubpruneError(what, where="export", remedy="remove data-dependent control flow from it") from error


def to_onnx(
    module: nn.Module | ExportedProgram,
    example: Inputs,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
) -> None:
    """Write a single ONNX file, weights inside.

    Inputs keep their names in the program, outputs are called `output` (or `output_0`, ...), the free axis
    `batch`. Stack traces, which name the author's files, are left out. BatchNorm is folded into convolutions.

    Args:
        module: The network, or what `export` made of it.
        example: An input with its batch axis first.
        path: Where to write.
        opset: ONNX operator set; None for the exporter's own choice.

    Raises:
        SubpruneError: The network cannot be captured or expressed in ONNX, or is larger than the 2 GB of such
            a file.
    """
    program = module if isinstance(module, ExportedProgram) else export(module, example)[0]
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > PROTOBUF_LIMIT:
        what = f"the network holds {size / 2**30:.1f} GB, an ONNX file at most 2"
        raise SubpruneError(what, where=str(path), remedy="write a .pt2 instead")
    outputs, program = _output_names(program), laid_out(program)
    result = None
    try:
        with contextlib.suppress(Exception):  # an operator that has to be decomposed after all
            result = _converted(ready(program), opset, outputs)
        result = result or _converted(program, opset, outputs)
    except Exception as error:
        cause = _innermost(error)
        what = f"the network cannot be expressed in ONNX ({type(cause).__name__}: {first_line(cause)})"
        raise SubpruneError(what, where=str(path), remedy="write a .pt2 instead") from error
    if result is None:
        raise SubpruneError("the ONNX exporter gave no model", where=str(path), remedy="write a .pt2 instead")
    model = result.model_proto
    _tidy(model)
    Path(path).write_bytes(model.SerializeToString(deterministic=True))
    check_onnx(path)


def to_pt2(module: nn.Module | ExportedProgram, example: Inputs, path: str | os.PathLike[str]) -> None:
    """Write a torch.export archive; `formats.load` reads it without `--trust`.

    Args:
        module: The network, or what `export` made of it.
        example: An input with its batch axis first.
        path: Where to write; must end in `.pt2`.

    Raises:
        SubpruneError: The network cannot be captured or serialised.
    """
    program = module if isinstance(module, ExportedProgram) else export(module, example)[0]
    try:
        with silence():
            torch.export.save(program, path)
    except Exception as error:
        what = f"torch.export cannot save the network ({type(error).__name__}: {first_line(error)})"
        raise SubpruneError(what, where=str(path), remedy="write an .onnx instead") from error


def check_onnx(path: str | os.PathLike[str]) -> None:
    """Run the ONNX checker with full shape inference.

    Args:
        path: The file.

    Raises:
        SubpruneError: The file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except Exception as error:
        raise SubpruneError(
            f"is not valid ONNX ({first_line(error)})", where=str(path), remedy="write a .pt2"
        ) from error


def _capture(module: nn.Module, example: Inputs, *, dynamic: bool) -> ExportedProgram:
    shapes = free_samples(example, Dim(BATCH)) if dynamic else None
    positional, named = arguments(example)
    with silence(), seldom(), torch.no_grad():
        return torch.export.export(module, positional, named, dynamic_shapes=shapes, strict=False)


def _converted(program: ExportedProgram, opset: int | None, outputs: list[str]) -> torch.onnx.ONNXProgram | None:
    from subprune_fx.passes.onnx_optimise import optimise  # noqa: PLC0415 - imports onnxscript

    with silence(), seldom(), torch.no_grad():
        found = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, opset_version=opset, output_names=outputs
        )
        if found is not None:
            # This folds the BatchNorm that `fold` has left. Left to onnxruntime, a convolution without bias keeps it:
            # twice the latency on ResNet56.
            optimise(found.model)
        return found


def _innermost(error: BaseException) -> BaseException:
    """What the exporter says of the op at fault: around it, it speaks of its own stages only."""
    cause = error.__cause__
    while cause is not None:
        error, cause = (cause if type(cause).__module__.startswith("torch.onnx") else error), cause.__cause__
    return error


def _output_names(program: ExportedProgram) -> list[str]:
    count = len(program.graph_signature.user_outputs)
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _tidy(model: onnx.ModelProto) -> None:
    """Drop what only a debugger reads, and call the free axis `batch`."""
    graph = model.graph
    shape = graph.input[0].type.tensor_type.shape
    symbol = shape.dim[0].dim_param if shape.dim else ""
    for message in _annotated(model):
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    del graph.value_info[:]  # the checker and the runtime infer it; a third of a small file
    for value in [*graph.input, *graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if symbol and axis.dim_param == symbol:
                axis.dim_param = BATCH


def _annotated(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    graph = model.graph
    yield from (model, graph, *model.functions, *graph.node, *graph.input, *graph.output, *graph.initializer)
    for function in model.functions:
        yield from function.node
