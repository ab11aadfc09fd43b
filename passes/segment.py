"""Consecutive nodes of a network, run again and again: of an ONNX graph in as few onnxruntime sessions as can be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import fx

from subprune_fx.frontends.onnx_fused import Fused, Stretch, stretches, together

Environment = Mapping[fx.Node, Any]
Chains = Mapping[fx.Node, Sequence[fx.Node]]
"""Nodes that depend on no input, each with the nodes to run for its value, in order."""


def chains(graph: fx.Graph, apart: Collection[str] = ()) -> dict[fx.Node, list[fx.Node]]:
    """All nodes of a graph that depend on no input, those called as in `apart` and what follows from them left out."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        varies = node.op in ("placeholder", "output", "call_module") or node.name in apart
        if varies or any(used not in found for used in node.all_input_nodes):
            continue
        needed = {step: None for used in node.all_input_nodes for step in found[used]}
        found[node] = [*needed, node]
    return found


def operand(node: fx.Node, source: str) -> fx.Node:
    """The input of `node` that is called `source`."""
    return next(used for used in node.all_input_nodes if used.name == source)


def evaluated(chain: Sequence[fx.Node], interpreter: fx.Interpreter) -> Any:
    """The value of the last node of a chain, with the interpreted module's parameters as they are now."""
    interpreter.env = {}
    for step in chain:
        interpreter.env[step] = interpreter.run_node(step)
    return interpreter.env[chain[-1]]


class Segment:
    """Nodes from one on, up to another.

    A session has the weights in it, which onnxruntime has then rearranged for its kernels; those that change from run
    to run are handed over instead. So it is built once, and runs several times as fast as its nodes one by one.
    """

    def __init__(
        self,
        interpreter: fx.Interpreter,
        nodes: Sequence[fx.Node],
        known: Chains,
        changing: Collection[str] = (),
        kept: Collection[fx.Node] = (),
    ) -> None:
        """Set up.

        Args:
            interpreter: Of the network.
            nodes: In order. What is read behind the last of them is kept.
            known: The network's `chains`.
            changing: Names of parameters that may differ from run to run.
            kept: Nodes whose values are kept too, whoever reads them.
        """
        self._interpreter, self._known, self._kept = interpreter, known, frozenset(kept)
        self._stretches = [one for one in stretches(nodes, (), known) if one[0] not in known]
        read = {used for node in nodes for used in node.all_input_nodes if used in known}
        self._changing = {used for used in read if any(step.target in changing for step in known[used])}
        self._fixed = {used: evaluated(known[used], interpreter) for used in read - self._changing}
        self._sessions: dict[fx.Node, Fused] = {}

    def parameters(self) -> Environment:
        """Values of what may have changed, as they are now."""
        return {used: evaluated(self._known[used], self._interpreter) for used in self._changing}

    def __call__(self, environment: Environment, parameters: Environment | None = None) -> dict[fx.Node, Any]:
        """Run the nodes.

        Args:
            environment: Values of nodes before the segment, and of placeholders.
            parameters: What `parameters` gives; None: nothing changes.

        Returns:
            The environment after it: values that are read there or kept, and the network's output.
        """
        constants = {**self._fixed, **(parameters or {})}
        found = {**environment, **constants}
        for stretch in self._stretches:
            first = stretch[0]
            if together(stretch):
                found.update(self._session(stretch, found)(found))
            elif first.op != "placeholder":
                self._interpreter.env = found
                found[first] = self._interpreter.run_node(first)
            for node in stretch:
                for used in self._interpreter.user_to_last_uses.get(node, []):
                    if used not in self._kept:
                        found.pop(used, None)
        return {node: value for node, value in found.items() if node not in constants}

    def _session(self, stretch: Stretch, environment: Environment) -> Fused:
        if stretch[0] not in self._sessions:
            inside = set(stretch)
            wanted = [node for node in stretch if node in self._kept or not inside.issuperset(node.users)]
            self._sessions[stretch[0]] = Fused(stretch, wanted, self._fixed, environment)
        return self._sessions[stretch[0]]
