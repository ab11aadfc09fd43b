"""Networks with several inputs as networks with one, a `Bundle`: every pass then sees a single placeholder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Bundle, Inputs, parts
from subprune_fx.frontends.fx_across import unmark
from subprune_fx.frontends.fx_recurrent_calls import unmark as unmark_recurrent
from subprune_fx.frontends.fx_routed import unmark as unmark_routed

PACKED = "inputs"
META = "subprune_fx.inputs"


def part(bundle: Bundle, index: int) -> Tensor:
    """One tensor of a bundle; in a packed graph it stands where the placeholder stood."""
    return bundle.parts[index]


def pack(module: fx.GraphModule, bundle: Bundle) -> fx.GraphModule:
    """Replace the placeholders of `module`, in place, by the parts of a single one.

    Args:
        module: A graph that takes what is in `bundle`, and nothing else.
        bundle: Example inputs.

    Raises:
        ValueError: It takes other inputs.
    """
    graph = module.graph
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    names = [str(node.target) for node in holders]
    wanted = list(bundle.names or names)
    if len(holders) != len(bundle.parts) or sorted(names) != sorted(wanted):
        message = f"the graph takes {', '.join(names)}, given are {len(bundle.parts)} inputs"
        raise ValueError(message)
    with graph.inserting_before(holders[0]):
        packed = graph.placeholder(PACKED)
    for holder in holders:
        with graph.inserting_before(holder):
            taken = graph.call_function(part, (packed, wanted.index(str(holder.target))))
        holder.replace_all_uses_with(taken)
        graph.erase_node(holder)
    codegen = graph._codegen  # noqa: SLF001 - fx has no public name for it
    module.meta[META] = (names, wanted, getattr(codegen, "pytree_info", None))
    if isinstance(codegen, _PyTreeCodeGen):
        spec = pytree.tree_structure(((0,), {}))
        graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(orig_args=[PACKED], in_spec=spec)))
    module.recompile()
    return module


def spread(module: fx.GraphModule) -> fx.GraphModule:
    """Undo `pack`, and what else the passes need of a graph (`fx_across`), in place; returns the module."""
    unmark(module)
    unmark_routed(module)
    unmark_recurrent(module)
    if META not in module.meta:
        return module
    names, wanted, info = module.meta.pop(META)
    graph = module.graph
    packed = next(node for node in graph.nodes if node.op == "placeholder")
    taken: dict[int, fx.Node] = {int(node.args[1]): node for node in list(packed.users)}
    for name in names:
        with graph.inserting_before(packed):
            holder = graph.placeholder(name)
        node = taken.get(wanted.index(name))
        if node is not None:
            node.replace_all_uses_with(holder)
            graph.erase_node(node)
    graph.erase_node(packed)
    if info is not None:
        graph.set_codegen(_PyTreeCodeGen(info))
    module.recompile()
    return module


def free_samples(inputs: Inputs, name: Any = torch.export.Dim.AUTO) -> Any:
    """What torch.export is to know of the inputs' shapes: how many samples there are, is free."""
    if isinstance(inputs, Bundle) and inputs.names is not None:
        return {argument: {0: name} for argument in inputs.names}
    return tuple({0: name} for _ in parts(inputs))
