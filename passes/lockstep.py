"""Two networks interpreted side by side, stretch by stretch over all batches; what has not diverged is computed once.

A stretch is a node, or several that onnxruntime runs at once: from a consumer up to the next one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs, parts
from subprune_fx.frontends.onnx_fused import Fused, Stretch, stretches, together
from subprune_fx.graph.step import leaves
from subprune_fx.heap import trim
from subprune_fx.passes.forward import Forward
from subprune_fx.passes.memory import Store
from subprune_fx.passes.scratch import Live, Scratch
from subprune_fx.passes.segment import chains, evaluated, operand
from subprune_fx.sessions import give_back
from subprune_fx.team import ALONE, Team

Environment = dict[fx.Node, Any]


class Lockstep:
    """The original network and its pruned-so-far copy, with one environment per batch each.

    Attributes:
        stretches: All nodes, in the order in which they are run.
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
        heads = scratch.network.channels.contractions
        self._constant = chains(original.graph, heads)
        self.stretches = stretches(list(original.graph.nodes), heads, self._constant)
        self._originals: list[Environment] = [{} for _ in batches]
        self._pruned: list[Environment] = [{} for _ in batches]
        self._held: dict[Any, Any] = {}
        self._store.exempt(part for batch in batches for part in parts(batch))
        self._pooled = any(len(stretch) > 1 for stretch in self.stretches)
        self._most, self._ahead = self._needs()
        self.outputs: list[Any] = []

    def original(self, stretch: Stretch) -> None:
        """Run a stretch of the original network on every batch."""
        wanted = [stretch[0], *(node for node in stretch[1:] if self._read_behind(node, stretch))]
        known = self._originals[0]
        constants = {used: known[used] for node in stretch for used in self._parameters(node)}
        run = Fused(stretch, wanted, constants, known) if together(stretch) else None
        for batch, environment in zip(self._batches, self._originals, strict=True):
            if run is None:
                environment[stretch[0]] = _run(self._first, stretch[0], environment, batch)
            else:
                environment.update(run(environment))
            self._trim()

    def hold(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same, kept until the next call or node, in files as far as they do not fit into memory."""
        self._held = dict(enumerate(tensors))
        self._trim()
        return list(self._held.values())

    def _trim(self) -> None:
        self._store.trim(*self._originals, *self._pruned, self._held)

    def pruned(self, stretch: Stretch) -> None:
        """Run its twin, or take over the original's values where nothing differs; free what nobody reads again.

        Parameters that are nodes of the graph, and what is computed from them alone, are read when they are used:
        until then the sweep may change them.
        """
        if stretch[0] in self._constant:
            return
        apart = self._diverged(stretch)
        read = {node: None for node in stretch if self._read_behind(node, stretch)} or {stretch[0]: None}
        same = [node for node in self._originals[0] if node in stretch and node not in apart]
        for before, after in zip(self._originals, self._pruned, strict=True):
            after.update({self._twin[node]: before[node] for node in same})
        if apart:
            self._rerun(self._needed(stretch, apart), [node for node in read if node in apart])
        if stretch[0].op == "output":
            self.outputs = [environment[self._twin[stretch[0]]] for environment in self._pruned]
        self._held = {}
        ended = self._ended(stretch)
        for before, after in zip(self._originals, self._pruned, strict=True):
            for used in ended:
                before.pop(used, None)
                after.pop(self._twin[used], None)
        self._release(stretch)

    def _ended(self, stretch: Stretch) -> set[fx.Node]:
        """What nobody reads behind a stretch."""
        return {used for node in stretch for used in self._first.user_to_last_uses.get(node, [])}

    def _needs(self) -> tuple[int, dict[Stretch, int]]:
        """Elements of the most values that are kept at a time, of few inputs: of all, and behind each stretch."""
        values, alive, needs = self._scratch.network.channels.values, dict[fx.Node, int](), list[int]()
        for stretch in self.stretches:
            kept = [node for node in stretch if node not in self._constant and self._read_behind(node, stretch)]
            alive.update({node: sum(labels.size for labels in leaves(values[node.name])) for node in kept})
            needs.append(sum(alive.values()))
            for used in self._ended(stretch):
                alive.pop(used, None)
        ahead = list(itertools.accumulate(reversed([*needs[1:], 0]), max))[::-1]
        return max(needs), dict(zip(self.stretches, ahead, strict=True))

    def _release(self, stretch: Stretch) -> None:
        """Give memory back once what is to come needs less than half of it: least squares want it in larger pieces."""
        ahead = self._ahead[stretch]
        if 2 * ahead < self._most or self.outputs:
            if self._pooled:
                give_back()
            trim()
            self._most = ahead

    def _rerun(self, nodes: Stretch, wanted: Sequence[fx.Node]) -> None:
        """Run nodes of the pruned network on every batch."""
        twins = tuple(self._twin[node] for node in nodes)
        parameters = {self._twin[used]: self._parameter(used) for node in nodes for used in self._parameters(node)}
        run = None
        if together(twins):
            run = Fused(twins, [self._twin[node] for node in wanted], parameters, self._pruned[0])
        for batch, after in zip(self._batches, self._pruned, strict=True):
            if run is None:
                after.update(parameters)
                after[twins[0]] = _run(self._second, twins[0], after, batch)
            else:
                after.update(run(after))
            self._trim()

    def _diverged(self, stretch: Stretch) -> set[fx.Node]:
        """The nodes at which the pruned network computes something else than the original."""
        found: set[fx.Node] = set()
        for node in stretch:
            if self._edited(node) or any(
                used in found if used in stretch else self._apart(used) for used in node.all_input_nodes
            ):
                found.add(node)
        return found

    def _edited(self, node: fx.Node) -> bool:
        """Whether a size or parameter of the node itself is another."""
        if node.name in self._scratch.edited:
            return True
        return node.op == "call_module" and self._scratch.changed(str(node.target))

    def _needed(self, stretch: Stretch, apart: Collection[fx.Node]) -> Stretch:
        """These nodes and those before them in the stretch whose values are known nowhere."""
        found = set(apart)
        for node in reversed(stretch):
            if node in found:
                known = self._originals[0].keys() - set(apart)
                known = set() if node.target is operator.getitem else known
                found.update(used for used in node.all_input_nodes if used in stretch and used not in known)
        return tuple(node for node in stretch if node in found)

    def _read_behind(self, node: fx.Node, stretch: Stretch) -> bool:
        return any(user not in stretch for user in node.users)

    def reads_other(self, node: fx.Node, source: str) -> bool:
        """Whether the input `source` of `node` differs between the two networks."""
        return self._apart(operand(node, source))

    def differs(self, node: fx.Node, source: str, axis: int) -> bool:
        """Whether that input has another size in the two networks, but for its channels on dimension `axis`."""
        used = operand(node, source)
        if used in self._constant:
            return False
        pairs = zip(self._originals, self._pruned, strict=True)
        return any(_others(before[used], axis) != _others(after[self._twin[used]], axis) for before, after in pairs)

    def _apart(self, used: fx.Node) -> bool:
        if used in self._constant:
            return not _equal(self._originals[0][used], self._parameter(used))
        return self._originals[0][used] is not self._pruned[0][self._twin[used]]

    def _parameters(self, node: fx.Node) -> list[fx.Node]:
        return [used for used in node.all_input_nodes if used in self._constant]

    def _parameter(self, node: fx.Node) -> Any:
        """A parameter of the pruned network, or what is computed from its parameters, as they are now."""
        return evaluated([self._twin[step] for step in self._constant[node]], self._second)

    def inputs(self, node: fx.Node, source: str) -> Iterator[Tensor]:
        """The pruned network's input `source` to `node`, batch by batch."""
        used = operand(node, source)
        if used in self._constant:
            return (self._parameter(used) for _ in self._batches)
        return self._store.passed(environment[self._twin[used]] for environment in self._pruned)

    def original_inputs(self, node: fx.Node, source: str) -> Iterator[Tensor]:
        """The original network's input `source` to `node`, batch by batch."""
        used = operand(node, source)
        return self._store.passed(environment[used] for environment in self._originals)

    def originals(self, node: fx.Node) -> Iterator[Tensor]:
        """The original network's value at `node`, batch by batch."""
        return self._store.passed(environment[node] for environment in self._originals)

    def given(self, node: fx.Node) -> Iterator[tuple[Any, Any, Any]]:
        """The original network's value at `node`, and what both networks give it, batch by batch.

        For the pruned one with parameters as they are when a batch is asked for.
        """

        def of(before: Environment, after: Environment) -> tuple[Any, Any, Any]:
            values = {used: after.get(self._twin[used]) for used in node.all_input_nodes}
            values |= {used: self._parameter(used) for used in self._parameters(node)}
            return before[node], fx.map_arg(node.args, before.__getitem__), fx.map_arg(node.args, values.__getitem__)

        return self._store.passed(map(of, self._originals, self._pruned))

    def completed(self, node: fx.Node, source: str, axis: int, kept: Tensor) -> Iterator[Tensor]:
        """The original `node` run on the pruned network's input, channels it has no more taken from the original.

        Args:
            node: A contraction.
            source: Name of its input.
            axis: Channel dimension of that input.
            kept: Which channels of the original input the pruned network still has.
        """
        used = operand(node, source)
        for environment, x in zip(self._originals, self.inputs(node, source), strict=True):
            whole = environment[used].index_copy(axis, kept.to(x.device), x)
            yield _run(self._first, node, {**environment, used: whole}, None)

    def both(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]] | None:
        """The original network's value at `node` and the pruned one's, batch by batch; None if not yet known."""
        twin = self._twin[node]
        if node not in self._originals[0] or twin not in self._pruned[0]:
            return None
        pairs = zip(self._originals, self._pruned, strict=True)
        return self._store.passed((before[node], after[twin]) for before, after in pairs)

    def live(self) -> list[Live]:
        """Activations of the pruned network that are still needed."""
        constant = {self._twin[node] for node in self._constant}
        return [Live(node, self._pruned) for node in self._pruned[0] if node not in constant]


def _others(value: Tensor, axis: int) -> list[int]:
    """Sizes of all dimensions but one."""
    sizes = list(value.shape)
    del sizes[axis]
    return sizes


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, Tensor) and left.shape == right.shape and torch.equal(left, right)


def _run(interpreter: fx.Interpreter, node: fx.Node, environment: Environment, batch: Inputs | None) -> Any:
    if node.op == "placeholder":
        return batch
    interpreter.env = environment
    return interpreter.run_node(node)
