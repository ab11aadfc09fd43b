"""What a plan means, computed at full size: the original network with masks and the plan's weights.

The pruned network has to equal this one. Nothing of what makes a network smaller is used here (no slicing of
parameters, no changed sizes), so that the two check each other: every activation has its dropped channels set to zero,
and every new value stands at the places of a full-size parameter where it came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from subprune_fx.frontends.calls import bind
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.tensors import named_tensors, parameter
from subprune_fx.graph.kinds import Kind
from subprune_fx.graph.labels import Labels, compact, survivors
from subprune_fx.graph.step import Tree, leaves
from subprune_fx.passes.rewrite import apply
from subprune_fx.plan import Plan

Keep = NDArray[np.bool_]

COUNTING = (Kind.NORM, Kind.GROUP_NORM, Kind.STATISTIC)
"""Kinds that see how many channels there are: they are taken over the surviving ones, as the plan means them."""


class Masked(fx.Interpreter):
    """The masked and reweighted original; `run(*inputs)` gives what the pruned network must give."""

    def __init__(self, network: FxNetwork, plan: Plan, small: fx.GraphModule | None = None) -> None:
        """Set up.

        Args:
            network: The analysed network that the plan was made for.
            plan: The plan.
            small: What the plan makes of the network, where that is known.
        """
        channels = network.channels
        kept = [group.units[list(made.kept)] for group, made in zip(channels.groups, plan.decisions, strict=True)]
        self._network = network
        self._keep = channels.keep(kept, channels.groups)
        module = _copied(network.graph_module, plan)
        _scatter(network, plan, self._keep, module)
        super().__init__(module)
        small = apply(plan, network.graph_module) if small is None else small
        self._small = fx.Interpreter(small)
        self._twins = dict(zip(module.graph.nodes, small.graph.nodes, strict=True))
        self._biases = dict(_new_biases(network, plan))
        self._tensors = named_tensors(network.graph_module)
        self._names = {id(tensor): name for name, tensor in reversed(self._tensors.items())}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node at full size, its dropped channels zero."""
        if n.op == "output":
            return super().run_node(n)
        labels = self._network.channels.values.get(n.name)
        kind = self._kind(n)
        if kind is Kind.RECURRENT:
            self._mask_weights(n)
        value = self._counted(n, labels) if kind in COUNTING else super().run_node(n)
        if n.name in self._biases:
            value = value + self._bias(n.name, value)
        return value if labels is None else _zeroed(value, labels, self._keep)

    def _kind(self, node: fx.Node) -> Kind | None:
        if node.op not in ("call_module", "call_function", "call_method"):
            return None
        row = bind(node, self._network.graph_module).row
        return None if row is None else row.kind

    def _mask_weights(self, node: fx.Node) -> None:
        """What goes around inside of a node would not be zero with what comes out of it: its weights are."""
        for used in node.all_input_nodes:
            if used.op != "get_attr":
                continue
            name = self._names[id(self._tensors[str(used.target)])]
            value = self.env[used].clone()
            for axis, labels in self._network.channels.axes.get(name, {}).items():
                gone = torch.from_numpy(np.flatnonzero(~self._keep[labels]))
                value.index_fill_(axis, gone.to(value.device), 0)
            self.env[used] = value

    def _counted(self, node: fx.Node, labels: Tree) -> Any:
        """The pruned network's own op on the surviving channels, put back in their places."""
        twin = self._twins[node]
        environment = {self._twins[used]: self._cut(used) for used in node.all_input_nodes}
        self._small.env = environment
        found, spec = pytree.tree_flatten(self._small.run_node(twin))
        tensors = iter(leaves(labels))
        full = [
            _put(item.new_zeros(_size(item, one := next(tensors))), survivors(one, self._keep), item)
            if isinstance(item, Tensor)
            else item
            for item in found
        ]
        return pytree.tree_unflatten(full, spec)

    def _cut(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            self._small.env = {}
            return self._small.run_node(self._twins[node])
        labels, value = self._network.channels.values.get(node.name), self.env[node]
        if labels is None or not isinstance(value, Tensor):
            return value
        for axis, index in enumerate(survivors(labels, self._keep)):
            value = value if index is None else value.index_select(axis, torch.from_numpy(index).to(value.device))
        return value

    def _bias(self, name: str, value: Tensor) -> Tensor:
        consumer = self._network.channels.contractions[name]
        full = value.new_zeros(value.shape[consumer.axis])
        full[torch.from_numpy(np.flatnonzero(self._keep[consumer.outputs]))] = self._biases[name].to(value)
        axis = consumer.axis % value.ndim
        return full.reshape([-1 if d == axis else 1 for d in range(value.ndim)])


def _copied(module: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """A copy with tensors of its own only where the plan has values to write into them: they are most of a network."""
    named = named_tensors(module)
    written = {id(named[name]) for name in plan.values if name in named}
    return copy.deepcopy(module, {id(tensor): tensor for tensor in named.values() if id(tensor) not in written})


def _size(item: Tensor, labels: Labels) -> Sequence[int]:
    """Full size of a value; batch and positions are the value's own."""
    picked = compact(labels).shape
    return [new if old == 1 else full for new, old, full in zip(item.shape, picked, labels.shape, strict=True)]


def _put(full: Tensor, index: Sequence[NDArray[np.int64] | None], value: Tensor) -> Tensor:
    """`full` with `value` at the product of indices; None stands for all of a dimension."""
    picked = [
        torch.arange(size) if one is None else torch.from_numpy(one)
        for one, size in zip(index, full.shape, strict=True)
    ]
    full[torch.meshgrid(*picked, indexing="ij") if picked else ()] = value
    return full


def _zeroed(value: Any, labels: Tree, keep: Keep) -> Any:
    """Dropped channels set to zero, whatever they hold (a quotient of two dropped channels may be undefined)."""
    flat, spec = pytree.tree_flatten(value)
    tensors = iter(leaves(labels))
    done = []
    for item in flat:
        alive = keep[compact(next(tensors))] if isinstance(item, Tensor) else None
        if isinstance(item, Tensor) and alive is not None and not alive.all():
            item = torch.where(torch.from_numpy(alive).to(item.device), item, item.new_zeros(()))  # noqa: PLW2901
        done.append(item)
    return pytree.tree_unflatten(done, spec)


def _scatter(network: FxNetwork, plan: Plan, keep: Keep, module: nn.Module) -> None:
    """The plan's new values into full-size parameters of `module`."""
    channels = network.channels
    for name, value in plan.values.items():
        if plan.shapes[name] is None:
            continue
        full = parameter(module, name)
        if name in channels.elements:
            index = survivors(channels.elements[name], keep)
        else:
            axes = channels.axes.get(name, {})
            index = tuple(np.flatnonzero(keep[axes[d]]) if d in axes else None for d in range(full.ndim))
        with torch.no_grad():
            _put(full, index, value.to(full.dtype))


def _new_biases(network: FxNetwork, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """By consumer that had no bias, the one it gets."""
    for consumer, where in network.intercepts.items():
        if where.new and where.name in plan.values:
            yield consumer, plan.values[where.name]
