"""A copy of the network that shrinks while the sweep decides, and the plan that repeats what was done to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.fx_edit import edited_over, set_constant
from subprune_fx.frontends.fx_resize import resize
from subprune_fx.frontends.tensors import copied, named_tensors, owners, parameter, put
from subprune_fx.graph.labels import Labels, relative, shrink
from subprune_fx.graph.step import Tree, leaves
from subprune_fx.passes.rewrite import refresh
from subprune_fx.plan import Constant, Decision, Plan, Slice

Index = NDArray[np.int64]
Axes = dict[str, dict[int, Labels]]


@dataclasses.dataclass(frozen=True)
class Live:
    """An activation that is still needed: its node in the pruned graph, and one environment per batch."""

    node: fx.Node
    environments: Sequence[dict[fx.Node, Any]]


class Scratch:
    """The pruned-so-far network.

    Attributes:
        module: A copy of the traced network, smaller with every `shrink`.
        alive: By unit, whether it is still there.
        edited: Nodes and modules in which a size was changed.
    """

    def __init__(self, network: FxNetwork) -> None:
        self.network = network
        # Tensors are replaced, never written to: until then they are the network's own.
        self.module = copied(network.graph_module, named_tensors(network.graph_module))
        self.alive = np.ones(network.channels.prunable.size, dtype=bool)
        self._owners = owners(self.module)
        self._changed: dict[str, None] = {}
        # Biases that a layer may get, with the labels that they will have.
        self._biases: Axes = {
            where.name: {0: network.channels.contractions[name].outputs}
            for name, where in network.intercepts.items()
            if where.new
        }
        self._written: dict[tuple[str, tuple[str | int, ...]], Constant] = {}
        self.edited: set[str] = set()
        self._nodes = {node.name: node for node in network.graph_module.graph.nodes}

    def get(self, name: str) -> Tensor:
        """A parameter or buffer as it is now."""
        return parameter(self.module, name)

    def set(self, name: str, value: Tensor) -> None:
        """Give a parameter or buffer a new value, which the plan will hold."""
        put(self.module, self._owners, name, value)
        self._changed[name] = None

    def set_whole(self, name: str, value: Tensor, labels: Labels | None = None) -> None:
        """The same for a value as large as it is in the original network; `labels` of a bias that this has not."""
        unit = self.network.channels.unit
        added = {} if labels is None else {name: {0: labels}}
        cuts = _parameter_cuts(self.network, np.ones_like(self.alive)[unit], self.alive[unit], added)
        self.set(name, cut(value, cuts[name]) if name in cuts else value)

    def changed(self, path: str) -> bool:
        """Whether a parameter or buffer of the module at `path` differs from the original network's."""
        old, new = (named_tensors(module.get_submodule(path)) for module in (self.network.graph_module, self.module))
        return old.keys() != new.keys() or any(
            old[name] is not new[name] and (old[name].shape != new[name].shape or not torch.equal(old[name], new[name]))
            for name in old
        )

    def shrink(self, alive: NDArray[np.bool_], values: Iterable[Live] = ()) -> None:
        """Drop the units that are not in `alive`: from parameters, sizes, and the live activations.

        Args:
            alive: By unit; a subset of what is alive now.
            values: Live activations, cut in place.
        """
        unit = self.network.channels.unit
        before, after = self.alive[unit], alive[unit]
        added = {name: labels for name, labels in self._biases.items() if name in self._changed}
        for name, per_axis in _parameter_cuts(self.network, before, after, added).items():
            put(self.module, self._owners, name, cut(self.get(name), per_axis))
        constants = self.constants(alive)
        written = {(constant.name, constant.path) for constant in constants}
        for where, constant in self._written.items():
            if where not in written:  # the graph computes it right by itself again
                set_constant(self.module, edited_over(self.network.graph_module, self.module, constant))
        for constant in constants:
            set_constant(self.module, constant)
            self._written[constant.name, constant.path] = constant
            self.edited.add(constant.name)
        for child in self.module.modules():
            refresh(child)
        for live in values:
            labels = self.network.channels.values.get(live.node.name)
            sizes = [self._number(live, keep) for keep in (before, after)]
            for environment in live.environments:
                value, stays = environment[live.node], sizes[0] == sizes[1]
                environment[live.node] = _cut_tree(value, labels, before, after) if stays else _resized(value, *sizes)
        self.alive = alive

    def _number(self, live: Live, keep: NDArray[np.bool_]) -> Any:
        """What a size that is live was computed to be for the example that the network was analysed with; else None."""
        if not self.network.sites or not isinstance(next(iter(live.environments))[live.node], (int, torch.Size)):
            return None
        return self.network.sites[0].number(self._nodes[live.node.name], keep)

    def constants(self, alive: NDArray[np.bool_]) -> tuple[Constant, ...]:
        """Sizes written in the network that change when only `alive` units are left."""
        keep = alive[self.network.channels.unit]
        return tuple(constant for site in self.network.sites for constant in resize(site, keep))

    def plan(self, decisions: tuple[Decision, ...]) -> Plan:
        """What turns the original network into this one."""
        original = self.network.graph_module
        everything = np.ones(self.alive.size, dtype=bool)[self.network.channels.unit]
        cuts = _parameter_cuts(self.network, everything, self.alive[self.network.channels.unit], {})
        slices = tuple(
            Slice(name, axis, tuple(index.tolist()))
            for name, per_axis in cuts.items()
            for axis, index in enumerate(per_axis)
            if index is not None and name not in self._changed
        )
        values = {name: self.get(name).clone().cpu() for name in self._changed}
        known = named_tensors(original)
        named = dict.fromkeys([*(item.parameter for item in slices), *values])
        shapes = {name: tuple(known[name].shape) if name in known else None for name in named}
        return Plan(shapes, slices, values, self.constants(self.alive), decisions)


def _parameter_cuts(
    network: FxNetwork, before: NDArray[np.bool_], after: NDArray[np.bool_], added: Axes
) -> dict[str, tuple[Index | None, ...]]:
    """By parameter that loses something, `added` ones included, what is left of each dimension."""
    cuts: dict[str, tuple[Index | None, ...]] = {}
    for name, by_axis in (network.channels.axes | added).items():
        rank = max(by_axis) + 1
        per_axis: list[Index | None] = [None] * rank
        for axis, labels in by_axis.items():
            per_axis[axis] = relative(np.flatnonzero(before[labels]), np.flatnonzero(after[labels]), labels.size)
        cuts[name] = tuple(per_axis)
    for name, labels in network.channels.elements.items():
        cuts[name] = shrink(labels, before, after)
    return {name: per_axis for name, per_axis in cuts.items() if any(index is not None for index in per_axis)}


def cut(tensor: Tensor, per_axis: tuple[Index | None, ...]) -> Tensor:
    """Keep the given indices of each dimension."""
    for axis, index in enumerate(per_axis):
        tensor = tensor if index is None else tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def _resized(value: Any, old: Any, new: Any) -> Any:
    """A size, or several, that went from `old` to `new` for an example of another number of samples."""
    if isinstance(value, torch.Size):
        return torch.Size(_resized(*each) for each in zip(value, old, new, strict=True))
    return value * new // old if old else new


def _cut_tree(value: Any, labels: Tree, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Any:
    if labels is None:
        return value
    flat, spec = pytree.tree_flatten(value)
    tensors = iter(leaves(labels))
    wanted = [shrink(next(tensors), before, after) if isinstance(item, Tensor) else () for item in flat]
    if not any(index is not None for per_axis in wanted for index in per_axis):
        return value
    cuts = [cut(item, per_axis) if per_axis else item for item, per_axis in zip(flat, wanted, strict=True)]
    return pytree.tree_unflatten(cuts, spec)
