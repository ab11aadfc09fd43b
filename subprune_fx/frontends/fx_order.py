"""The order in which a graph's nodes are interpreted."""

from __future__ import annotations

from torch import fx


def shallow_first(graph: fx.Graph) -> None:
    """Put the nodes of a graph in a topological order in which short branches come before long ones, else as it was.

    Where a shortcut and a residual branch meet, the shortcut's value is then known when the branch is fitted, so that
    the branch can make up for what the shortcut has lost.

    Args:
        graph: Changed in place; its placeholders stay in front, and it computes what it did.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        depth[node] = 1 + max((depth[used] for used in node.all_input_nodes), default=0)
    last = next(node for node in reversed(graph.nodes) if node.op == "output")
    done = {node for node in graph.nodes if node.op == "placeholder"}
    for root in [*(node for node in graph.nodes if not node.users and node is not last), last]:
        pending = [root]
        while pending:
            node = pending[-1]
            missing = [used for used in node.all_input_nodes if used not in done]
            if missing:
                pending += sorted(missing, key=lambda used: (-depth[used], -place[used]))
                continue
            pending.pop()
            if node in done:
                continue
            done.add(node)
            if node is not last:
                last.prepend(node)
