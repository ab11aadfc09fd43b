"""The network with one group pruned at a time: what a budget rule measures.

One walk over the original network; at the first consumer of a group (or the recurrent layer that holds it, which reads
its own states) the walk branches, once per trial size, with the group's consumers reweighted, and only the rest of the
network is run. Dropped channels are not removed but given zero weights, so that activations keep their shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx.bundle import Inputs, parts
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_fused import fusable
from subprune_fx.frontends.tensors import parameter
from subprune_fx.graph.channels import Group
from subprune_fx.heap import trim
from subprune_fx.numerics.collect import Collected
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.packed import Waiting
from subprune_fx.passes.clock import Tick
from subprune_fx.passes.forward import Forward
from subprune_fx.passes.loops import Loop, held, loops
from subprune_fx.passes.memory import Store
from subprune_fx.passes.patches import Patches
from subprune_fx.passes.problems import Problem, Settings, column_units, pose
from subprune_fx.passes.segment import Segment, chains
from subprune_fx.sessions import give_back

IN_MEMORY = 1 << 24
"""Elements of moments that are kept for the next trial (128 MB, and as much again for what is posed)."""

Metric = Callable[[Sequence[Any]], float]
"""From the outputs of all batches to one number."""


def trials(
    network: FxNetwork,
    patches: Patches,
    orders: Mapping[str, NDArray[np.int64]],
    sizes: Mapping[str, Sequence[int]],
    batches: Sequence[Inputs],
    metric: Metric,
    tick: Tick | None = None,
    store: Store | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Measure `metric` for groups at every one of their `sizes`.

    Args:
        network: The analysed network.
        patches: New parameters of a group's consumers.
        orders: Nested order by group.
        sizes: Units to keep, by group; groups that are not in it are not measured.
        batches: Inputs to measure on.
        metric: From outputs to a number.
        tick: Told (trials done, trials).
        store: What keeps activations below a limit; None: no limit.
    """
    store = store or Store()
    store.exempt(part for batch in batches for part in parts(batch))
    interpreter, known = Forward(network), chains(network.graph_module.graph)
    nodes = list(network.graph_module.graph.nodes)
    starts: dict[str, list[Group]] = {}
    places, looping = {node.name: place for place, node in enumerate(nodes)}, loops(network)
    for group in network.channels.groups:
        if group.name in sizes:
            changed = group.consumers[0], *(loop.node for loop in held(group, network, looping))
            starts.setdefault(min(changed, key=places.__getitem__), []).append(group)
    inputs = [node for node in nodes if node.op == "placeholder"]
    environments: list[dict[fx.Node, Any]] = [dict.fromkeys(inputs, batch) for batch in batches]
    results: dict[str, NDArray[np.float64]] = {}
    total, done = sum(len(ks) for ks in sizes.values()), 0
    walked, pooled = 0, any(map(fusable, nodes))
    with torch.no_grad():
        for position, node in enumerate(nodes):
            if node.name not in starts:
                continue
            before = Segment(interpreter, nodes[walked:position], known)
            for number, environment in enumerate(environments):
                environments[number] = before(environment)
                store.trim(*environments)
            walked = position
            for group in starts[node.name]:
                values, rest = [], None
                for k in sizes[group.name]:
                    alive = network.channels.alive([group.units[orders[group.name][:k]]], [group])
                    patch = patches(group, alive)
                    rest = rest or Segment(interpreter, nodes[position:], known, patch)
                    with patched(network.graph_module, patch):
                        now = rest.parameters()
                        values.append(metric([rest(environment, now)[nodes[-1]] for environment in environments]))
                    done += 1
                    if tick is not None:
                        tick(done, total)
                results[group.name] = np.asarray(values)
            del rest
            if pooled:
                give_back()
            trim()  # the next least-squares problems want larger pieces
    return results


@contextmanager
def patched(module: fx.GraphModule, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters replaced for the length of a block; same shapes."""
    saved = {name: parameter(module, name).clone() for name in values}
    try:
        _copy(module, values)
        yield
    finally:
        _copy(module, saved)


def _copy(module: fx.GraphModule, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter(module, name).copy_(value)


class Reweighter:
    """Full-size parameters of consumers when some of their channels are gone, by the original network's moments."""

    def __init__(self, network: FxNetwork, moments: Waiting, settings: Settings) -> None:
        self.network = network
        self.settings = settings
        self._inputs = moments
        self._posed: dict[str, tuple[Collected, Problem]] = {}
        self._sizes: dict[str, int] = {}
        self._wholes: dict[str, tuple[float, Tensor]] = {}

    def posed(self, name: str) -> tuple[Collected, Problem]:
        """A consumer's moments with its own output as the target, and its least-squares problem.

        They take several times the room of the input's moments, so only the last few are kept.
        """
        if name not in self._posed:
            moments = self._inputs[name]
            while self._posed and _elements(moments) + sum(self._sizes[other] for other in self._posed) > IN_MEMORY:
                del self._posed[next(iter(self._posed))]
            self._sizes[name] = _elements(moments)
            self._posed[name] = self._pose(name, moments)
        return self._posed[name]

    def whole(self, name: str) -> tuple[float, Tensor]:
        """The `target` of a consumer's least-squares problem, and lambda."""
        if name not in self._wholes:
            problem = self.posed(name)[1]
            self._wholes[name] = problem.target, problem.ridge
        return self._wholes[name]

    def among(self, name: str, units: NDArray[np.bool_]) -> Problem:
        """The same problem for those columns whose unit is marked, when the others keep their weights.

        With the consumer's own output as the target, Y = B W_0, what these have to explain is what they give now.
        Where a consumer reads many groups, as behind a concatenation, that takes a small part of the moments.
        """
        unit = self._units(name)
        if len(unit) > 1 or units[unit].all():
            return self.posed(name)[1]
        kept = torch.from_numpy(np.flatnonzero(units[unit[0]]))[None]
        weight, settings = self._weight(name)[:, kept[0]], self.settings.of(name in self.network.intercepts)
        moments = self._inputs.only(name, kept).towards(weight)
        return pose(moments, weight, unit[:, kept[0].numpy()], settings, own=True, ridge=self.whole(name)[1])

    def looped(self, loop: Loop) -> Problem:
        """The problem of a recurrent layer, which reads its own states."""
        weight, unit = loop.whole(self.network)[None], self.network.channels.unit[loop.labels][None]
        settings = self.settings.of(takes_intercept=True)
        return pose(self._inputs[loop.node].towards(weight), weight, unit, settings)

    def _pose(self, name: str, inputs: Collected) -> tuple[Collected, Problem]:
        weight = self._weight(name)
        moments = inputs.towards(weight)
        problem = pose(moments, weight, self._units(name), self.settings.of(name in self.network.intercepts))
        return moments.means(), problem

    def _weight(self, name: str) -> Tensor:
        consumer = self.network.channels.contractions[name]
        return self.network.readers[name].matrix(parameter(self.network.graph_module, consumer.weight)).cpu()

    def _units(self, name: str) -> NDArray[np.int64]:
        channels = self.network.channels
        return column_units(channels.contractions[name], self.network.readers[name].taps, channels.unit)

    def patches(self, group: Group, alive: NDArray[np.bool_]) -> dict[str, Tensor]:
        """New parameters of the group's consumers, dropped columns zero."""
        found: dict[str, Tensor] = {}
        for name in self.network.layers(group.consumers):
            found.update(self.patch(name, alive))
        for loop in held(group, self.network, self.loops):
            found.update(self._own(loop, alive))
        return found

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """The network's recurrent layers."""
        return loops(self.network)

    def _own(self, loop: Loop, alive: NDArray[np.bool_]) -> dict[str, Tensor]:
        """New matrices that a recurrent layer's states meet, each fitted to the states of its direction."""
        network, found = self.network, dict[str, Tensor]()
        units = network.channels.unit[loop.labels].reshape(len(loop.matrices), 1, -1)
        for place, ((matrix, bias), unit) in enumerate(zip(loop.matrices, units, strict=True)):
            old = parameter(network.graph_module, matrix)
            whole, own = old.mT.cpu().double()[None], torch.arange(unit.size)[None] + place * unit.size
            moments = self._inputs.only(loop.node, own).towards(whole)
            full = pose(moments, whole, unit, self.settings.of(bias is not None)).refitted(alive)
            found[matrix] = full[0].mT.to(old)
            if bias is not None and self.settings.intercept:
                level = parameter(network.graph_module, bias)
                found[bias] = level + moments.intercept(full).reshape(-1).to(level)
        return found

    def patch(self, name: str, alive: NDArray[np.bool_], *, biases: bool = False) -> dict[str, Tensor]:
        """The same of one of them, which may get a bias that it has not had if `biases`."""
        (moments, problem), network = self.posed(name), self.network
        consumer = network.channels.contractions[name]
        solved = consumer.weight not in network.channels.shared or name in network.joint
        mask = torch.from_numpy(alive[problem.unit])[:, :, None]
        full = problem.refitted(alive) if solved else problem.weight.where(mask, 0)
        weight = parameter(network.graph_module, consumer.weight)
        patch = {consumer.weight: network.readers[name].weight(full, weight).to(weight)}
        where = network.intercepts.get(name)
        if solved and self.settings.intercept and where is not None and (biases or not where.new):
            shift = moments.intercept(full).reshape(-1).to(weight)
            current = torch.zeros_like(shift) if where.new else parameter(network.graph_module, where.name)
            patch[where.name] = current + where.sign * shift.reshape(current.shape)
        return patch


def _elements(moments: Collected) -> int:
    return moments.gram.numel() if isinstance(moments, Moments) else moments.inputs.numel()
