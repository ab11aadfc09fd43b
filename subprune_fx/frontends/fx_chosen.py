"""Products with matrices that the data chooses, of which `fx_routed` makes products with the whole stack."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

from torch import Tensor, fx

from subprune_fx.frontends.calls import bind
from subprune_fx.frontends.fx_products import factors, is_scaled, letters
from subprune_fx.frontends.fx_shapes import Shapes
from subprune_fx.graph.kinds import Kind

_CALLS = ("call_function", "call_method", "call_module")
_GROUPED = ("grouped_mm", "grouped_mm_fallback")
"""Products of rows that are sorted by expert, told where the rows of each expert end."""

Ranks = Callable[[fx.Node], int]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A product of rows, each with the matrix that it is sent to.

    Attributes:
        node: The product.
        rows: What is multiplied; the first dimension counts rows.
        stack: The parameter that holds all matrices, perhaps with its dimensions in another order.
        ids: By row, which matrix; or, of rows that are sorted by it, where those of each matrix end.
        equation: Dimensions of rows, stack and result as an einsum of all rows with all matrices, `e`.
        count: How many matrices there are.
        ends: Which of the two `ids` is.
    """

    node: fx.Node
    rows: fx.Node
    stack: fx.Node
    ids: fx.Node
    equation: str
    count: int
    ends: bool


def chosen(graph: fx.GraphModule, shape: Shapes) -> list[Chosen]:
    """Those of a graph, in its order."""

    def ranks(node: fx.Node) -> int:
        found = shape(node)
        return -1 if found is None else len(found)

    nodes = [node for node in graph.graph.nodes if node.op in _CALLS]
    found = (_grouped(node, graph) or _taken_product(node, graph, ranks) for node in nodes)
    return [one for one in found if one is not None]


def _grouped(node: fx.Node, graph: fx.GraphModule) -> Chosen | None:
    """grouped_mm of rows (s, i) and a stack (e, i, o)."""
    call = bind(node, graph)
    if call.name not in _GROUPED or call.get("bias") is not None or len(node.args) < 2:
        return None
    rows, stack, *rest = node.args
    ends = node.kwargs.get("offs", rest[0] if rest else None)
    if not (isinstance(rows, fx.Node) and isinstance(stack, fx.Node) and isinstance(ends, fx.Node)):
        return None
    whole = stack_of(stack, graph)
    return None if whole is None else Chosen(node, rows, stack, ends, "sei,eio->seo", len(whole), ends=True)


def _taken_product(node: fx.Node, graph: fx.GraphModule, ranks: Ranks) -> Chosen | None:
    """A product with W[ids]."""
    call = bind(node, graph)
    if call.row is None or call.row.kind is not Kind.PRODUCT or is_scaled(call):
        return None
    left, right, added = factors(call)
    if added is not None or not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    for weight, other, order in ((right, left, (1, 0)), (left, right, (0, 1))):
        taken = _taken(weight, graph)
        found = None if taken is None else letters(call, (ranks(left), ranks(right)))
        if taken is None or found is None or ranks(taken[1]) != 1:
            continue
        spelled = _equation(found[order[0]], found[order[1]], found[2])
        return None if spelled is None else Chosen(node, other, *taken[:2], spelled, taken[2], ends=False)
    return None


def _equation(stack: str, rows: str, out: str) -> str | None:
    """sio,si->so is sei,eio->seo: the first dimension of all three counts rows, and of the stack then matrices."""
    names = dict(zip(dict.fromkeys(stack + rows + out), "sabcdfghijklmnopqrtuvwxyz", strict=False))
    stack, rows, out = ("".join(names[letter] for letter in part) for part in (stack, rows, out))
    if len(stack) != 3 or not stack[0] == rows[0] == out[0]:
        return None
    return f"se{rows[1:]},e{stack[1:]}->se{out[1:]}"


def _taken(node: fx.Node, graph: fx.GraphModule) -> tuple[fx.Node, fx.Node, int] | None:
    """W, ids and how many matrices W holds, where a node is W[ids]."""
    if node.op not in _CALLS:
        return None
    name, (stack, *rest) = bind(node, graph).name, node.args
    if name == "index_select":
        rest = rest[1:] if rest[0] == 0 else []
    elif name not in ("index", "getitem"):
        return None
    ids = rest[0] if rest else None
    ids = ids[0] if isinstance(ids, (list, tuple)) and len(ids) == 1 else ids
    whole = stack_of(stack, graph) if isinstance(stack, fx.Node) else None
    if whole is None or not isinstance(stack, fx.Node) or not isinstance(ids, fx.Node):
        return None
    return stack, ids, len(whole)


def stack_of(node: fx.Node, graph: fx.GraphModule) -> Tensor | None:
    """The parameter with three dimensions that a node is, perhaps with these in another order."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(graph)
        return value if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() else None
    row = bind(node, graph).row if node.op in _CALLS else None
    source = stack_of(node.all_input_nodes[0], graph) if row is not None and row.kind is Kind.PERMUTE else None
    if source is None:
        return None
    interpreter = fx.Interpreter(graph)
    interpreter.env = {node.all_input_nodes[0]: source}
    found = interpreter.run_node(node)
    return found if isinstance(found, Tensor) else None
