"""Weights that a graph computes from parameters alone (weight standardisation, gains), turned into parameters.

`computed` does the same for those that torch itself computes (parametrizations), whose names stay what they were. These
get names of their own: what a layer of the user's class computes from its parameters is not one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from subprune_fx.frontends.calls import COMPUTED, bind
from subprune_fx.graph.kinds import Kind

_CALLS = ("call_function", "call_method", "call_module")


def compute_weights(graph: fx.GraphModule) -> None:
    """Replace weights that are computed from parameters alone by parameters, in `graph` itself.

    One whose parameters something else reads too stays computed: it would no longer change with them.
    """
    fixed = _fixed(graph)
    for node in reversed(list(fixed)):
        if not node.users:
            graph.graph.erase_node(node)
            del fixed[node]
    weights = ((node, role) for node, role in _weights(graph, fixed) if _is_number(fixed.get(node)))
    wanted = {node: role for node, role in weights if not _is_plain(node, graph)}
    cones = {node: _cone(node) for node in wanted}
    inside = {node for cone in cones.values() for node in cone}
    outside = _read_outside(graph, inside, wanted, fixed)
    made: dict[str, Tensor] = {}
    for node, cone in cones.items():
        leaves = [part for part in cone if part.op == "get_attr"]
        if any(id(fixed[leaf]) in outside for leaf in leaves) or not _repeats(graph, cone, fixed):
            continue
        trained = any(getattr(fixed[leaf], "requires_grad", False) for leaf in leaves)
        target = _place(graph, made, leaves, wanted[node], fixed[node], trained=trained)
        with graph.graph.inserting_before(node):
            parameter = graph.graph.get_attr(target)
        node.replace_all_uses_with(parameter)
    if made:
        _clear(graph, [node for node in graph.graph.nodes if node in inside])


def _fixed(graph: fx.GraphModule) -> dict[fx.Node, object]:
    """Nodes whose values depend on parameters and buffers alone, with these values."""
    interpreter = fx.Interpreter(graph)
    values: dict[fx.Node, object] = {}
    interpreter.env = values
    with torch.no_grad():
        for node in graph.graph.nodes:
            made = node.op in _CALLS and node.all_input_nodes and all(used in values for used in node.all_input_nodes)
            bare = node.op != "call_module" or not _tensors(graph.get_submodule(str(node.target)))
            if node.op == "get_attr" or (made and bare):
                values[node] = interpreter.run_node(node)
    return values


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _weights(graph: fx.GraphModule, fixed: Mapping[fx.Node, object]) -> Iterator[tuple[fx.Node, str]]:
    """What stands where the op table knows a parameter of an op on activations, and its role."""
    for node in graph.graph.nodes:
        if node in fixed or node.op not in ("call_function", "call_method"):
            continue
        call = bind(node, graph)
        for role in () if call.row is None else call.row.roles:
            if isinstance(value := call.get(role), fx.Node):
                yield value, role


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_plain(node: fx.Node, graph: fx.GraphModule) -> bool:
    """A parameter, perhaps transposed: the analysis follows that to the parameter itself."""
    while node.op != "get_attr":
        row = bind(node, graph).row if node.op in _CALLS else None
        if row is None or row.kind is not Kind.PERMUTE:
            return False
        node = node.all_input_nodes[0]
    return True


def _cone(node: fx.Node) -> list[fx.Node]:
    """All that a node is computed from, itself included."""
    found, pending = dict.fromkeys([node]), [node]
    while pending:
        new = [used for used in pending.pop().all_input_nodes if used not in found]
        found.update(dict.fromkeys(new))
        pending += new
    return list(found)


def _read_outside(
    graph: fx.GraphModule, inside: set[fx.Node], wanted: Mapping[fx.Node, str], fixed: Mapping[fx.Node, object]
) -> set[int]:
    """Identities of tensors of which something is computed, among the nodes `inside` or not, that is no weight."""
    found: set[int] = set()
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found |= {id(tensor) for tensor in _tensors(graph.get_submodule(str(node.target)))}
        if node in fixed and node not in wanted and not (node in inside and inside.issuperset(node.users)):
            found |= {id(fixed[part]) for part in _cone(node) if part.op == "get_attr"}
    return found


def _repeats(graph: fx.GraphModule, cone: list[fx.Node], fixed: Mapping[fx.Node, object]) -> bool:
    """Whether the first node of a cone has one value, not a new one at each call."""
    again = fx.Interpreter(graph)
    values: dict[fx.Node, object] = {}
    again.env = values
    members = set(cone)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node in members:
                values[node] = again.run_node(node)
    first, second = fixed[cone[0]], values[cone[0]]
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return torch.equal(first, second)


def _place(
    graph: fx.GraphModule, made: dict[str, Tensor], leaves: list[fx.Node], role: str, value: object, *, trained: bool
) -> str:
    """Hang a computed weight where the parameters it is computed from hang; the name of an equal one, if there is."""
    assert isinstance(value, Tensor)
    owner = _common(str(leaf.target).rpartition(".")[0] for leaf in leaves)
    stem = f"{owner}.{COMPUTED}{role}".removeprefix(".")
    place = graph.get_submodule(owner)
    for number in itertools.count():
        name = f"{stem}_{number}" if number else stem
        if name in made and torch.equal(made[name], value):
            break
        if not hasattr(place, leaf := name.rpartition(".")[2]):
            place.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=trained))
            made[name] = value
            break
    return name


def _common(paths: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _clear(graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Remove nodes that nothing reads any more, and the parameters that only they read."""
    for node in reversed(nodes):
        if not node.users:
            graph.graph.erase_node(node)
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for target in {str(node.target) for node in nodes if node.op == "get_attr"} - read:
        owner, _, leaf = target.rpartition(".")
        delattr(graph.get_submodule(owner), leaf)
