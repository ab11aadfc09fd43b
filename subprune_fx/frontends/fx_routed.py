"""Mixtures of experts: each row is multiplied with the matrix of the expert that it is sent to.

    y = W[ids] @ x      y = grouped_mm(x, W, ends)

Which rows a matrix reads depends on the data, so that no layer is to be seen. `mark` spells it as a product with the
whole stack, in which each matrix reads all rows, those that are sent elsewhere as zeros:

    y[s] = sum over e of routed(x[s] where ids[s] == e else 0, W[e])

That can be followed, and fitted by least squares. `unmark` brings back what does no more than is needed.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.frontends.fx_chosen import chosen, stack_of
from subprune_fx.frontends.fx_shapes import Shapes

_META = "grouped"


def routed(equation: str, *operands: Tensor, shuffled: bool) -> Tensor:
    """An einsum of rows and a stack of matrices, `e` being which of them; whether the data decides the rows' order."""
    del shuffled
    return torch.einsum(equation, *operands)


def sent(ids: Tensor, count: int, rank: int, rows: int | None = None) -> Tensor:
    """Whether a row is sent to an expert, (rows, count, 1, ...).

    Args:
        ids: By row, its expert; or, of rows that are sorted by it, where those of each expert end.
        count: How many experts there are.
        rank: How many dimensions to return.
        rows: How many there are, where `ids` is where they end.
    """
    if rows is not None:
        ids = torch.bucketize(torch.arange(rows, device=ids.device), ids, right=True)
    found = ids[:, None] == torch.arange(count, device=ids.device)
    return found.reshape(*found.shape, *[1] * (rank - 2))


def mark(graph: fx.GraphModule, shape: Shapes) -> None:
    """Spell such products as described, in `graph` itself."""
    create, marked = graph.graph.call_function, chosen(graph, shape)
    for found in marked:
        rank = len(found.equation.partition(",")[0])
        with graph.graph.inserting_before(found.node):
            rows = (create(torch.ops.aten.sym_size.int, (found.rows, 0)),) if found.ends else ()
            hot = create(sent, (found.ids, found.count, rank, *rows))
            wide = create(torch.mul, (create(torch.unsqueeze, (found.rows, 1)), hot))
            product = create(routed, (found.equation, wide, found.stack), {"shuffled": found.ends})
            total = create(torch.sum, (product, 1))
        product.meta[_META] = found.node.target if found.ends else None
        found.node.replace_all_uses_with(total)
    if marked:
        graph.graph.eliminate_dead_code()


def unmark(graph: fx.GraphModule) -> None:
    """The opposite, in `graph` itself."""
    marked = [node for node in graph.graph.nodes if node.target is routed]
    for node in marked:
        (total,) = node.users
        with graph.graph.inserting_before(node):
            total.replace_all_uses_with(_undone(node, graph))
    if marked:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _undone(node: fx.Node, graph: fx.GraphModule) -> fx.Node:
    """What the network had where the matrices that are left allow it, in torch's own ops."""
    create, equation, grouped = graph.graph.call_function, str(node.args[0]), node.meta.get(_META)
    wide, stack = node.all_input_nodes
    spread, hot = wide.all_input_nodes
    rows, ids = spread.all_input_nodes[0], hot.all_input_nodes[0]
    if grouped is None:
        return create(torch.einsum, (_plain(equation), rows, create(operator.getitem, (stack, ids))))
    if _takes(grouped, stack_of(stack, graph)):
        return create(grouped, (rows, stack, ids))
    every = create(torch.mul, (spread, _spelled(hot, graph.graph)))
    return create(torch.sum, (create(torch.einsum, (equation, every, stack)), 1))


def _takes(grouped: Any, stack: Tensor | None) -> bool:
    """Whether it is torch's own grouped_mm, which wants rows that start at multiples of 16 bytes.

    That of another package (transformers) would not be known to those who read a file.
    """
    if stack is None or getattr(grouped, "namespace", "aten") != "aten":
        return False
    steps = (stack.shape[1], *(step for step in stack.stride() if step != 1))
    return all(step * stack.element_size() % 16 == 0 for step in steps)


def _spelled(hot: fx.Node, graph: fx.Graph) -> fx.Node:
    """What `sent` does to rows that are sorted, in torch's own ops."""
    ends, count, _, rows = hot.args
    number, place = graph.call_function(torch.arange, (rows,)), graph.call_function(torch.arange, (count,))
    ids = graph.call_function(torch.bucketize, (number, ends), {"right": True})
    same = graph.call_function(torch.eq, (graph.call_function(torch.unsqueeze, (ids, 1)), place))
    return graph.call_function(torch.unsqueeze, (same, -1))


def _plain(equation: str) -> str:
    """sei,eoi->seo is si,soi->so: each row has the matrix that it is sent to."""
    rows, _, rest = equation.partition(",")
    stack, _, out = rest.partition("->")
    return f"{rows.replace('e', '')},{stack.replace('e', rows[0])}->{out.replace('e', '')}"
