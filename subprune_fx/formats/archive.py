"""torch.export archives (`.pt2`) as graph modules; vetted before they are loaded (see `vetting`)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.vetting import RESAVE, vet

RESHAPES = (
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default,  # noqa: SLF001 - an operator, not a member
)


def load_archive(data: bytes, where: str, *, trust: bool) -> ExportedProgram:
    """The exported program in a `.pt2` file.

    Args:
        data: The whole file.
        where: Its name, for errors.
        trust: Do not vet it.

    Returns:
        The program, with its sample inputs where the archive has them.

    Raises:
        SubpruneError: Damaged, written by another torch, compiled code instead of a program, or not safe to
            load.
    """
    if not trust:
        vet(data, where)
    try:
        with quiet():
            from torch.export.pt2_archive._package import load_pt2  # noqa: PLC0415 - slow, and for .pt2 only

            # Not torch.export.load: where this fails, that falls back to the older format and its pickles.
            programs = load_pt2(io.BytesIO(data)).exported_programs
    except Exception as error:
        what = f"cannot be read by torch {torch.__version__}: damaged, or written by another version"
        raise SubpruneError(what, where=where, remedy=RESAVE) from error
    if len(programs) != 1:
        raise SubpruneError(f"holds {len(programs)} exported programs, not one", where=where, remedy=RESAVE)
    return next(iter(programs.values()))


def as_module(program: ExportedProgram, where: str) -> tuple[nn.Module, tuple[int | None, ...]]:
    """The program as a graph module, and the shape of its input.

    Args:
        program: With one tensor input.
        where: Its file, for errors.

    Returns:
        `(module, shape)`; None in the shape: the program takes any size there.

    Raises:
        SubpruneError: It has several inputs, or its input is not a tensor.
    """
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(names) != 1 or not isinstance(names[0], str):
        what = f"takes {len(names)} inputs; only networks with one input tensor are supported"
        raise SubpruneError(what, where=where, remedy="export a network that takes one tensor")
    value = nodes[names[0]].meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        raise SubpruneError(
            "its input is not a tensor with a batch axis",
            where=where,
            remedy="export a network that takes one tensor",
        )
    sizes: Sequence[object] = value.shape  # a free one is a symbol
    shape = tuple(size if isinstance(size, int) else None for size in sizes)
    with quiet():
        module = program.module(check_guards=False)  # guards are Python source from the file
    module = _plain(module)
    if isinstance(shape[0], int) and _free_batch(module, shape):
        return module, (None, *shape[1:])
    return module, shape


def example_shape(program: ExportedProgram, shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """The shape of the sample input; without one, the program's own where all but its batch is fixed.

    Args:
        program: The exported program.
        shape: From `as_module`.

    Returns:
        A shape, batch axis first; None where it is not known.
    """
    with contextlib.suppress(Exception):
        arguments, _ = program.example_inputs
        return tuple(int(size) for size in arguments[0].shape)
    batch, *rest = shape
    sizes = [size for size in rest if size is not None]
    return (batch or 1, *sizes) if len(sizes) == len(rest) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and log lines of torch.export and the ONNX exporter; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph in ordinary calling convention: a tensor in, and where it is one, a tensor out."""
    graph = module.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    spec = getattr(module, "_out_spec", None)
    if spec is None or not spec.is_leaf():
        return fx.GraphModule(module, graph)
    values = output.args[0]
    output.args = (values[0],) if isinstance(values, list | tuple) else output.args
    graph.set_codegen(CodeGen())
    return fx.GraphModule(module, graph)


def _free_batch(module: fx.GraphModule, shape: tuple[int | None, ...]) -> bool:
    """Undo the fixed batch of an archive that was exported without dynamic shapes; whether that succeeded.

    `x.view(x.size(0), -1)` is `view(x, [1, -1])` there. A reshape that keeps its first axis means the same
    for any batch once that axis is left to be inferred. Whether all of the network does is then tried out.
    """
    changed: list[tuple[fx.Node, tuple[Any, ...]]] = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in RESHAPES:
            continue
        before, after = _shape_of(node.args[0]), _shape_of(node)
        if before and after and before[0] == after[0] == shape[0]:
            changed.append((node, node.args))
            node.args = (node.args[0], [-1, *after[1:]])
    module.recompile()
    if _keeps_samples_apart(module, shape):
        return True
    for node, arguments in changed:
        node.args = arguments
    module.recompile()
    return False


def _shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's value; empty where it is not known in full."""
    value = node.meta.get("val")
    sizes = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    return sizes if all(isinstance(size, int) for size in sizes) else ()


def _keeps_samples_apart(module: fx.GraphModule, shape: tuple[int | None, ...]) -> bool:
    """Whether the network maps a batch of 2n + 1 samples as it maps n of them, sample by sample."""
    batch = shape[0] or 1
    sizes = [size or 1 for size in shape[1:]]
    inputs = torch.randn(2 * batch + 1, *sizes, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            whole, part = module(inputs), module(inputs[:batch])
    except Exception:  # noqa: BLE001 - whatever the network raises on another batch size
        return False
    if not (isinstance(whole, torch.Tensor) and isinstance(part, torch.Tensor)):
        return False
    if whole.shape != (len(inputs), *part.shape[1:]) or len(part) != batch:
        return False
    return torch.allclose(whole[:batch], part, rtol=1e-3, atol=1e-4 * float(part.abs().max()))
