"""Two networks interpreted side by side, node by node over all batches; what has not diverged is computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs, parts
from subprune_fx.passes.forward import Forward
from subprune_fx.passes.memory import Store
from subprune_fx.passes.scratch import Live, Scratch
from subprune_fx.team import ALONE, Team

Environment = dict[fx.Node, Any]


class Lockstep:
    """The original network and its pruned-so-far copy, with one environment per batch each.

    Attributes:
        outputs: The pruned network's outputs, one per batch, once the walk is over.
        team: Who walks with other batches.
        share: How many batches as large as the first all of them have.
    """

    def __init__(
        self,
        original: fx.GraphModule,
        scratch: Scratch,
        batches: Sequence[Inputs],
        store: Store | None = None,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.share = team.batches(batches)
        self._scratch = scratch
        self._store = store or Store()
        self._batches = batches
        self._first = Forward(scratch.network, original)
        self._second = Forward(scratch.network, scratch.module)
        self._twin = dict(zip(original.graph.nodes, scratch.module.graph.nodes, strict=True))
        self._constant = _constants(original.graph, scratch.network.channels.contractions)
        self._originals: list[Environment] = [{} for _ in batches]
        self._pruned: list[Environment] = [{} for _ in batches]
        self._held: dict[Any, Any] = {}
        self._store.exempt(part for batch in batches for part in parts(batch))
        self.outputs: list[Any] = []

    def original(self, node: fx.Node) -> None:
        """Run a node of the original network on every batch."""
        for batch, environment in zip(self._batches, self._originals, strict=True):
            environment[node] = _run(self._first, node, environment, batch)
            self._trim()

    def hold(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same, kept until the next call or node, in files as far as they do not fit into memory."""
        self._held = dict(enumerate(tensors))
        self._trim()
        return list(self._held.values())

    def _trim(self) -> None:
        self._store.trim(*self._originals, *self._pruned, self._held)

    def pruned(self, node: fx.Node) -> None:
        """Run its twin, or take over the original's value where nothing differs; free what nobody reads again.

        Parameters that are nodes of the graph, and what is computed from them alone, are read when they are used:
        until then the sweep may change them.
        """
        if node in self._constant:
            return
        twin = self._twin[node]
        apart = self.diverged(node)
        parameters = {self._twin[used]: self._parameter(used) for used in self._parameters(node)} if apart else {}
        for batch, before, after in zip(self._batches, self._originals, self._pruned, strict=True):
            if apart:
                after.update(parameters)
            after[twin] = _run(self._second, twin, after, batch) if apart else before[node]
            self._trim()
        if node.op == "output":
            self.outputs = [environment[twin] for environment in self._pruned]
        self._held = {}
        for used in self._first.user_to_last_uses.get(node, []):
            for before, after in zip(self._originals, self._pruned, strict=True):
                before.pop(used, None)
                after.pop(self._twin[used], None)

    def diverged(self, node: fx.Node) -> bool:
        """Whether the pruned network computes something else at `node` than the original."""
        if node.op == "placeholder":
            return False
        if node.name in self._scratch.edited:
            return True
        if node.op == "call_module" and self._scratch.changed(str(node.target)):
            return True
        return any(self._apart(used) for used in node.all_input_nodes)

    def reads_other(self, node: fx.Node, source: str) -> bool:
        """Whether the input `source` of `node` differs between the two networks."""
        return self._apart(_input(node, source))

    def _apart(self, used: fx.Node) -> bool:
        if used in self._constant:
            return not _equal(self._originals[0][used], self._parameter(used))
        return self._originals[0][used] is not self._pruned[0][self._twin[used]]

    def _parameters(self, node: fx.Node) -> list[fx.Node]:
        return [used for used in node.all_input_nodes if used in self._constant]

    def _parameter(self, node: fx.Node) -> Any:
        """A parameter of the pruned network, or what is computed from its parameters, as they are now."""
        environment: Environment = {}
        for step in self._constant[node]:
            environment[self._twin[step]] = _run(self._second, self._twin[step], environment, None)
        return environment[self._twin[node]]

    def inputs(self, node: fx.Node, source: str) -> Iterator[Tensor]:
        """The pruned network's input `source` to `node`, batch by batch."""
        used = _input(node, source)
        if used in self._constant:
            return (self._parameter(used) for _ in self._batches)
        return (environment[self._twin[used]] for environment in self._pruned)

    def original_inputs(self, node: fx.Node, source: str) -> Iterator[Tensor]:
        """The original network's input `source` to `node`, batch by batch."""
        used = _input(node, source)
        return (environment[used] for environment in self._originals)

    def originals(self, node: fx.Node) -> Iterator[Tensor]:
        """The original network's value at `node`, batch by batch."""
        return (environment[node] for environment in self._originals)

    def completed(self, node: fx.Node, source: str, axis: int, kept: Tensor) -> Iterator[Tensor]:
        """The original `node` run on the pruned network's input, channels it has no more taken from the original.

        Args:
            node: A contraction.
            source: Name of its input.
            axis: Channel dimension of that input.
            kept: Which channels of the original input the pruned network still has.
        """
        used = _input(node, source)
        for environment, x in zip(self._originals, self.inputs(node, source), strict=True):
            whole = environment[used].index_copy(axis, kept.to(x.device), x)
            yield _run(self._first, node, {**environment, used: whole}, None)

    def both(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The original network's value at `node` and the pruned one's, batch by batch; None if not yet known."""
        twin = self._twin[node]
        if node not in self._originals[0] or twin not in self._pruned[0]:
            return None
        return ((a[node], b[twin]) for a, b in zip(self._originals, self._pruned, strict=True))

    def live(self) -> list[Live]:
        """Activations of the pruned network that are still needed."""
        constant = {self._twin[node] for node in self._constant}
        return [Live(node, self._pruned) for node in self._pruned[0] if node not in constant]


def _constants(graph: fx.Graph, apart: Collection[str]) -> dict[fx.Node, list[fx.Node]]:
    """Nodes other than `apart` that depend on no input, each with the nodes to run for its value, in order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        varies = node.op in ("placeholder", "output", "call_module") or node.name in apart
        if varies or any(used not in found for used in node.all_input_nodes):
            continue
        needed = {step: None for used in node.all_input_nodes for step in found[used]}
        found[node] = [*needed, node]
    return found


def _input(node: fx.Node, source: str) -> fx.Node:
    return next(used for used in node.all_input_nodes if used.name == source)


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, Tensor) and left.shape == right.shape and torch.equal(left, right)


def _run(interpreter: fx.Interpreter, node: fx.Node, environment: Environment, batch: Inputs | None) -> Any:
    if node.op == "placeholder":
        return batch
    interpreter.env = environment
    return interpreter.run_node(node)
