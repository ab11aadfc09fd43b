"""torch.export archives (`.pt2`) as graph modules; vetted before they are loaded (see `vetting`)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.utils import _pytree as pytree

from subprune_fx.errors import SubpruneError
from subprune_fx.formats.input_spec import InputSpec, Shape
from subprune_fx.formats.vetting import RESAVE, vet
from subprune_fx.silence import silence

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
        with silence():
            from torch.export.pt2_archive._package import load_pt2  # noqa: PLC0415 - slow, and for .pt2 only

            # Not torch.export.load: where this fails, that falls back to the older format and its pickles.
            programs = load_pt2(io.BytesIO(data)).exported_programs
    except Exception as error:
        what = f"cannot be read by torch {torch.__version__}: damaged, or written by another version"
        raise SubpruneError(what, where=where, remedy=RESAVE) from error
    if len(programs) != 1:
        raise SubpruneError(f"holds {len(programs)} exported programs, not one", where=where, remedy=RESAVE)
    return next(iter(programs.values()))


def as_module(program: ExportedProgram, where: str) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    """The program as a graph module, and what it takes.

    Args:
        program: Its inputs are tensors, none of them in a list or dict.
        where: Its file, for errors.

    Returns:
        `(module, inputs)`; None in the shape of one: the program takes any size there.

    Raises:
        SubpruneError: An input is not a tensor with a batch axis, or there is none.
    """
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = [nodes[name].meta.get("val") if isinstance(name, str) else None for name in names]
    values = [value for value in found if isinstance(value, Tensor) and value.ndim > 0]
    if not values or len(values) < len(names):
        what = "its inputs are not tensors with a batch axis"
        raise SubpruneError(what, where=where, remedy="export a network that takes tensors")
    with silence():
        module = program.module(check_guards=False)  # guards are Python source from the file
    module = _plain(module)
    samples = _sample_shapes(program, len(values))
    takes: tuple[InputSpec, ...] = ()
    for name, value, sample in zip(names, values, samples, strict=True):
        sizes: Sequence[object] = value.shape  # a free one is a symbol
        shape = tuple(size if isinstance(size, int) else None for size in sizes)
        takes = (*takes, InputSpec(str(name), True, shape, sample or _smallest(shape), value.dtype))
    if all(isinstance(_shape(taken)[0], int) for taken in takes) and _free_batch(module, takes):
        takes = tuple(dataclasses.replace(taken, accepts=(None, *_shape(taken)[1:])) for taken in takes)
    return module, takes


def _shape(taken: InputSpec) -> Shape:
    assert taken.accepts is not None
    return taken.accepts


def _sample_shapes(program: ExportedProgram, count: int) -> list[tuple[int, ...] | None]:
    """Shapes of the sample inputs; None for all where the archive has none."""
    with contextlib.suppress(Exception):
        tensors = pytree.tree_leaves(program.example_inputs)
        shapes = [tuple(int(size) for size in tensor.shape) for tensor in tensors]
        return [*shapes] if len(shapes) == count else [None] * count
    return [None] * count


def _smallest(shape: Shape) -> tuple[int, ...] | None:
    """The program's own shape where all but its batch is fixed."""
    batch, *rest = shape
    sizes = [size for size in rest if size is not None]
    return (batch or 1, *sizes) if len(sizes) == len(rest) else None


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph in ordinary calling convention: tensors in, and where it is one, a tensor out."""
    graph = module.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    spec = getattr(module, "_out_spec", None)
    if spec is None or not spec.is_leaf():
        codegen = graph._codegen  # noqa: SLF001 - fx has no public name for it
        if isinstance(codegen, _PyTreeCodeGen):
            names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
            flat = pytree.tree_structure(((0,) * len(names), {}))
            graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(orig_args=names, in_spec=flat)))
        return fx.GraphModule(module, graph)
    values = output.args[0]
    output.args = (values[0],) if isinstance(values, list | tuple) else output.args
    graph.set_codegen(CodeGen())
    return fx.GraphModule(module, graph)


def _free_batch(module: fx.GraphModule, takes: Sequence[InputSpec]) -> bool:
    """Undo the fixed batch of an archive that was exported without dynamic shapes; whether that succeeded.

    `x.view(x.size(0), -1)` is `view(x, [1, -1])` there. A reshape that keeps its first axis means the same
    for any batch once that axis is left to be inferred. Whether all of the network does is then tried out.
    """
    batch = _shape(takes[0])[0]
    changed: list[tuple[fx.Node, tuple[Any, ...]]] = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in RESHAPES:
            continue
        before, after = _shape_of(node.args[0]), _shape_of(node)
        if before and after and before[0] == after[0] == batch:
            changed.append((node, node.args))
            node.args = (node.args[0], [-1, *after[1:]])
    module.recompile()
    if _keeps_samples_apart(module, takes):
        return True
    for node, arguments in changed:
        node.args = arguments
    module.recompile()
    return False


def _shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's value; empty where it is not known in full."""
    value = node.meta.get("val")
    sizes = tuple(value.shape) if isinstance(value, Tensor) else ()
    return sizes if all(isinstance(size, int) for size in sizes) else ()


def _keeps_samples_apart(module: fx.GraphModule, takes: Sequence[InputSpec]) -> bool:
    """Whether the network maps a batch of 2n + 1 samples as it maps n of them, sample by sample."""
    batch = _shape(takes[0])[0] or 1
    generator = torch.Generator().manual_seed(0)
    inputs = [_noise((2 * batch + 1, *_shape(taken)[1:]), taken.dtype, generator) for taken in takes]
    try:
        with torch.no_grad():
            whole, part = module(*inputs), module(*(tensor[:batch] for tensor in inputs))
    except Exception:  # noqa: BLE001 - whatever the network raises on another batch size
        return False
    pairs = list(zip(pytree.tree_leaves(whole), pytree.tree_leaves(part), strict=True))
    return bool(pairs) and all(_begins_with(large, small, batch) for large, small in pairs)


def _begins_with(whole: object, part: object, batch: int) -> bool:
    """Whether one output of 2n + 1 samples goes on from that of the first n."""
    if not (isinstance(whole, Tensor) and isinstance(part, Tensor) and part.ndim):
        return False
    scale = float(part.abs().max()) if part.numel() else math.nan
    if whole.shape != (2 * batch + 1, *part.shape[1:]) or len(part) != batch or not math.isfinite(scale):
        return False
    return torch.allclose(whole[:batch], part, rtol=1e-3, atol=1e-4 * scale)


def _noise(shape: Shape, dtype: torch.dtype | None, generator: torch.Generator) -> Tensor:
    """Values that any table of tokens has, where they are integers."""
    sizes = [size or 1 for size in shape]
    if dtype is not None and not dtype.is_floating_point:
        return torch.randint(0, 2, sizes, generator=generator).to(dtype)
    return torch.randn(sizes, generator=generator)
