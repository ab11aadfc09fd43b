"""From a module to a graph that can be analysed: symbolic tracing, and torch.export."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from subprune_fx.bundle import Bundle, Inputs, arguments
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.frontends.autocast import unrounded
from subprune_fx.frontends.blame import culprit
from subprune_fx.frontends.calls import bind
from subprune_fx.frontends.causal import masks_as_given
from subprune_fx.frontends.computed import compute_parameters, duplicate
from subprune_fx.frontends.detached import Detached
from subprune_fx.frontends.fx_across import mark
from subprune_fx.frontends.fx_cells import spell_cells
from subprune_fx.frontends.fx_computed import compute_weights
from subprune_fx.frontends.fx_constants import hold_constants
from subprune_fx.frontends.fx_einsum import pair_einsums
from subprune_fx.frontends.fx_fills import expand_fills
from subprune_fx.frontends.fx_flat import flatten_weights
from subprune_fx.frontends.fx_index import spell_indices
from subprune_fx.frontends.fx_inline import inline
from subprune_fx.frontends.fx_inputs import free_samples, pack
from subprune_fx.frontends.fx_modes import ExportedModule
from subprune_fx.frontends.fx_order import shallow_first
from subprune_fx.frontends.fx_picks import size_by_rows
from subprune_fx.frontends.fx_recurrent_calls import mark as mark_recurrent
from subprune_fx.frontends.fx_repeats import expand_repeats
from subprune_fx.frontends.fx_routed import mark as mark_routed
from subprune_fx.frontends.fx_shapes import shapes
from subprune_fx.frontends.fx_squeezes import spell_squeezes
from subprune_fx.frontends.fx_whole import reads_apart
from subprune_fx.frontends.fx_writes import valued, writes
from subprune_fx.frontends.lengths import traceable
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.frontends.onnx_static import specialise
from subprune_fx.frontends.original import Original
from subprune_fx.graph.kinds import Kind
from subprune_fx.silence import silence

_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_LAYOUTS: dict[Any, Any] = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}
"""Ops that want one layout in memory: torch.export drops a `contiguous` where its example happens to be so already."""
_UNCHANGED = ("requires_grad_", "share_memory_")
"""Methods that end like in-place ones and change no value."""
_FIELDS = ("values", "indices")
"""What torch calls the two results of max, sort and the like."""


def traces(module: nn.Module, example: Inputs, *, undefined: bool = False) -> Iterator[fx.GraphModule]:
    """Graphs of `module`'s forward pass in eval mode, sharing nothing with it, the one nearest to its code first.

    Args:
        module: Any module; a `GraphModule` is taken as it is.
        example: Input that it accepts, first dimension = sample.
        undefined: Whether its outputs may be NaN for the example.

    Yields:
        Graph modules without in-place ops (they would overwrite activations that later consumers read), whose
        parameters have the names they have in `module` (but those that its forward computes from others, see
        `fx_computed`): what symbolic tracing gives, where modules of torch's own are single nodes; then what
        torch.export gives, where nothing is. A graph with functions that its tracer does not look into comes last.

    Raises:
        SubpruneError: If the module does not run on `example`, or neither tracer can follow it.
    """
    plain = _plain(module).eval()
    original, failures = Original(plain, example, undefined=undefined), list[str]()
    for name, graph in _candidates(plain, example, failures):
        try:
            with silence():  # fx prints the graph around what fails
                fault = original.fault(graph)
        except Exception as error:  # noqa: BLE001 - the next one is tried
            failures.append(_failure(name, error))
            continue
        if fault:
            failures.append(f"{name}: the traced graph {fault}")
        else:
            yield graph
    if len(failures) == len(_TRACERS):
        original.check_steady()
        raise SubpruneError(
            "cannot be traced (" + " | ".join(failures) + ")",
            where=type(module).__name__,
            remedy=_remedy(module),
        )


def _remedy(module: nn.Module) -> str:
    """What makes it traceable; transformers has mixtures of experts without control flow too."""
    has_experts = getattr(module, "_can_set_experts_implementation", bool)()
    if has_experts and getattr(getattr(module, "config", None), "_experts_implementation", None) == "eager":
        return 'call its set_experts_implementation("batched_mm")'
    return "remove control flow that depends on data from its forward"


def _candidates(module: nn.Module, example: Inputs, failures: list[str]) -> Iterator[tuple[str, fx.GraphModule]]:
    """What the tracers make of a module, and their names; graphs that are likely to be left for another come last."""
    late, shared = [], {id(parameter): parameter for parameter in module.parameters()}
    for name, tracer in _TRACERS.items():
        try:
            with traceable(module), unrounded(), masks_as_given():
                graph = tracer(copy.deepcopy(module, dict(shared)), example)
            graph = functional(graph, example)
            graph = pack(graph, example) if isinstance(example, Bundle) else graph
        except Exception as error:  # noqa: BLE001 - a tracer may fail in any way; the next one is tried
            failures.append(_failure(name, error))
            continue
        if reads_apart(graph):
            late.append((name, graph))
        else:
            yield name, graph
    yield from late


def _failure(name: str, error: Exception) -> str:
    place = culprit(error)
    return f"{name}: {first_line(error)}" + (f" at {place}" if place else "")


def _plain(module: nn.Module) -> nn.Module:
    """A copy with computed parameters (weight_norm, spectral_norm and the like) as they come out in eval mode.

    Raises:
        SubpruneError: It cannot be copied.
    """
    try:
        twin = duplicate(module)
    except Exception as error:
        raise SubpruneError(
            f"cannot be copied ({first_line(error)})",
            where=type(module).__name__,
            remedy="detach the tensors that it holds",
        ) from error
    twin.eval()
    compute_parameters(twin)
    return twin


def _symbolic(module: nn.Module, example: Inputs) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule) and source_of(module) is not None:
        return specialise(module, example)
    return module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)


def _exported(module: nn.Module, example: Inputs) -> fx.GraphModule:
    positional, named = arguments(example)
    with silence(), Detached():
        program = torch.export.export(module, positional, named, dynamic_shapes=free_samples(example))
    left = [node for node in list(program.graph.nodes) if writes(node.target) and not valued(node)]
    if any(_writes_part(node) for node in left):
        program = program.run_decompositions({})
    traced = program.module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    inline(traced)
    return ExportedModule(traced, traced.graph, type(module).__name__)


def _writes_part(node: fx.Node) -> bool:
    """Whether what writes does so into a part of another tensor: such writes have to become values of their own."""
    return any(used.op == "call_function" and _is_view(used.target) for used in node.all_input_nodes[:1])


def _is_view(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.is_view  # noqa: SLF001


_TRACERS: dict[str, Callable[[nn.Module, Inputs], fx.GraphModule]] = {
    "symbolic_trace": _symbolic,
    "torch.export": _exported,
}


def functional(graph: fx.GraphModule, example: Inputs | None = None) -> fx.GraphModule:
    """Replace in-place ops by their out-of-place forms and arguments left out by their defaults, in `graph` itself.

    Args:
        graph: The graph.
        example: What it is called with; None: with all that have no default.
    """
    _fix_defaults(graph.graph, example)
    _without_checks(graph.graph)
    for module in graph.modules():
        module.training = False  # fx and torch.export make containers in training mode
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target) or _LAYOUTS.get(node.target) or _twin(node.target)
            _by_number(node)
            _plainly_told(node)
            if isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - the public name of ATen overloads
                node.target = _functional_overload(node.target)
        elif node.op == "call_method":
            _out_of_place(node)
            _plainly_told(node)
    if source_of(graph) is None:
        spell_cells(graph)
        shape = shapes(graph, example)
        pair_einsums(graph.graph)
        flatten_weights(graph)
        compute_weights(graph)
        hold_constants(graph)
        expand_fills(graph.graph)
        expand_repeats(graph.graph, shape)
        size_by_rows(graph.graph)
        spell_indices(graph)
        spell_squeezes(graph.graph, shape)
        mark(graph)
        mark_routed(graph, shape)
        mark_recurrent(graph)
    _without_empty(graph.graph)
    shallow_first(graph.graph)
    _broadcast(graph)
    graph.recompile()
    return graph


def _without_checks(graph: fx.Graph) -> None:
    """What a forward asserts of its sizes holds for the network before, as torch.export has it too.

    What was computed for that alone goes with it, but no layer: a user's class calls those that nothing reads, too.
    """
    alone = {node for node in graph.nodes if node.target is torch._assert}  # noqa: SLF001 - as fx spells `assert`
    for node in reversed(list(graph.nodes)):
        if node in alone and not node.users:
            alone.update(used for used in node.all_input_nodes if used.op in ("call_function", "call_method"))
            graph.erase_node(node)


def _out_of_place(node: fx.Node) -> None:
    """`x.relu_()` -> `x.relu()`."""
    if node.target in _UNCHANGED:
        node.target, node.args, node.kwargs = "contiguous", node.args[:1], {}
    elif str(node.target).endswith("_") and not str(node.target).endswith("__"):
        node.target = str(node.target)[:-1]


def _twin(target: Any) -> Any:
    """`torch.relu_` -> `torch.relu`, where the latter exists."""
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    homes = [home for home in (torch, nn.functional) if getattr(home, name, None) is target]
    return next((getattr(home, name[:-1]) for home in homes if hasattr(home, name[:-1])), target)


def _by_number(node: fx.Node) -> None:
    """`x.max(1).values` is `x.max(1)[0]`."""
    if node.target is getattr and node.args[1] in _FIELDS:
        node.target, node.args = operator.getitem, (node.args[0], _FIELDS.index(node.args[1]))


def _plainly_told(node: fx.Node) -> None:
    """How many chunks stands where it usually does; nothing is written in place; a size that is a hint is not given."""
    told = dict(node.kwargs)
    if "chunks" in told:
        node.args = (*node.args, told.pop("chunks"))
    if told.get("inplace"):
        told["inplace"] = False
    if "repeat_interleave" in str(node.target):
        told.pop("output_size", None)
    node.kwargs = told


def _without_empty(graph: fx.Graph) -> None:
    """What is joined without having elements (the part of a head that is not rotated) is left out where it is known."""
    for node in [node for node in graph.nodes if node.target in (torch.ops.aten.cat.default, torch.cat)]:
        joined = node.args[0] if node.args and isinstance(node.args[0], (tuple, list)) else ()
        left = [part for part in joined if not _is_empty(part)]
        if 0 < len(left) < len(joined):
            node.args = (left, *node.args[1:])
            graph.eliminate_dead_code()


def _is_empty(node: fx.Node) -> bool:
    known = any(isinstance(size, int) and size == 0 for size in getattr(node.meta.get("val"), "shape", ()))
    index = node.args[1] if node.target is operator.getitem else ()
    return known or any(_is_nothing(item) for item in (index if isinstance(index, tuple) else (index,)))


def _is_nothing(item: object) -> bool:
    """Whether it is a range that ends where it starts."""
    return isinstance(item, slice) and isinstance(item.stop, int) and item.stop == (item.start or 0)


def _broadcast(graph: fx.GraphModule) -> None:
    """Drop `x.expand_as(y)` where the result meets y in elementwise ops: they broadcast by themselves.

    A tensor that is spelled out over y's channels would otherwise need to lose the ones that y loses.
    """
    for node in [node for node in graph.graph.nodes if node.op in ("call_method", "call_function")]:
        if bind(node, graph).name != "expand_as" or len(node.args) != 2:
            continue
        small, large = node.args
        for user in list(node.users):
            row = bind(user, graph).row if user.op in ("call_method", "call_function") else None
            if row is not None and row.kind is Kind.ELEMENTWISE and large in user.all_input_nodes:
                user.replace_input_with(node, small)
        if not node.users:
            graph.graph.erase_node(node)


def _fix_defaults(graph: fx.Graph, example: Inputs | None) -> None:
    """Arguments that are not given are not inputs of the network: it is analysed with their defaults."""
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    given: set[str] = set()
    if isinstance(example, Bundle):
        given = set(example.names or (str(node.target) for node in holders[: len(example.parts)]))
    for node in holders:
        if not node.args or str(node.target) in given or isinstance(node.args[0], fx.Node):
            continue
        (default,) = node.args
        for user in list(node.users):
            user.args, user.kwargs = _replaced((user.args, user.kwargs), node, default)
        graph.erase_node(node)


def _replaced(arguments: Any, node: fx.Node, value: Any) -> Any:
    return fx.node.map_arg(arguments, lambda n: value if n is node else n)


def _functional_overload(overload: Any) -> Any:
    """`aten.relu_.default` -> `aten.relu.default`, where the latter exists."""
    name = overload.overloadpacket.__name__
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if overload.namespace != "aten" or not name.endswith("_") or packet is None:
        return overload
    return getattr(packet, overload._overloadname, overload)  # noqa: SLF001
