"""One interpreted forward pass, with labels travelling beside the activations."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.calls import Call, bind, is_tensor
from subprune_fx.frontends.fx_on_labels import number, permuted, runner, without_values
from subprune_fx.frontends.fx_operands import attributes, facts
from subprune_fx.frontends.fx_readers import product_reader, reader
from subprune_fx.frontends.fx_seen import Seen
from subprune_fx.frontends.fx_sites import Site
from subprune_fx.frontends.onnx_op import item
from subprune_fx.graph.kinds import MOVING, Kind
from subprune_fx.graph.labels import Labels, compact, constant, varying
from subprune_fx.graph.propagation import Propagation
from subprune_fx.graph.rules import propagate
from subprune_fx.graph.step import Param, Step, Tree, leaves
from subprune_fx.numerics.readers import Reader

_READS = ("item", "tolist", "_local_scalar_dense")
"""Ops whose numbers depend on what a tensor holds, and not on its shape alone."""


class Walker(fx.Interpreter):
    """Runs each node on real values, then the op table's rule on its labels.

    Attributes:
        seen: The nodes that have been run.
        state: What the rules have found.
        readers: Geometry of each contraction, by node name.
        calls: Each call, by node name.
        roles: Its parameters by role.
        sites: Nodes whose arguments may spell sizes.
    """

    def __init__(
        self, graph_module: fx.GraphModule, numbers_of_more: Mapping[str, Any], by_group: frozenset[str]
    ) -> None:
        super().__init__(graph_module)
        self.numbers_of_more = numbers_of_more
        self.seen = Seen(graph_module)
        self.state = Propagation(by_group)
        self.readers: dict[str, Reader] = {}
        self.calls: dict[str, Call] = {}
        self.roles: dict[str, dict[str, Param]] = {}
        self.sites: list[Site] = []

    def walk(self, example: Inputs) -> None:
        """Run the network; a value is there until the last node that reads it has run."""
        with torch.no_grad():
            self.run(example, initial_env=self.seen.values)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and label its value."""
        value = super().run_node(n)
        if isinstance(value, (int, torch.Size)) and self.numbers_of_more.get(n.name, value) != value:
            self.seen.varying.add(n)
        tree = self._label(n, value)
        self.seen.trees[n] = tree
        if not isinstance(tree, Param):
            self.state.values[n.name] = tree
        return value

    def _label(self, node: fx.Node, value: Any) -> Tree | Param:
        if node.op == "get_attr" and is_tensor(value) and not _is_count(value):
            return self.seen.param(str(node.target), value)
        if node.op == "output":
            for labels in self.seen.operands(node.args):
                for leaf in leaves(self.state.of(labels)):
                    self.state.freeze(leaf, "it is an output of the network")
            return None
        blank = _blank(value)
        if node.op in ("placeholder", "get_attr") or node.target is item:
            self.seen.constants[node] = value
            return blank
        return self._call(node, value, blank)

    def _call(self, node: fx.Node, value: Any, blank: Tree) -> Tree:
        call = bind(node, self.seen.root)
        self.calls[node.name] = call
        if call.name in _READS:
            self.seen.constants[node] = value
        tensors = self.seen.tensors((node.args, node.kwargs))
        if call.row is not None and call.row.kind is Kind.PERMUTE and isinstance(self.seen.trees[tensors[0]], Param):
            return permuted(self.seen, node, self.seen.trees[tensors[0]])
        roles, tensors, attrs = facts(call, tensors, self.seen)
        self.roles[node.name] = roles
        bound = {param.name for param in roles.values()}
        operands = tuple(
            operand
            for operand in (self.seen.trees[n] for n in tensors)
            if not (isinstance(operand, Param) and operand.name in bound)
        )
        read = [n.name for n in tensors if not isinstance(self.seen.trees[n], Param)] or [n.name for n in tensors]
        bias = call.get("bias")
        step = Step(
            name=node.name,
            op=call.label,
            row=call.row,
            operands=operands,
            roles=roles,
            attrs={**attributes(node, call, operands, self.seen, self.state), **attrs},
            shape=tuple(value.shape) if is_tensor(value) else None,
            blank=blank,
            run=runner(self.seen, node, call.row),
            module=call.path,
            source=next(iter(read), ""),
            offset=bias.name if isinstance(bias, fx.Node) and "bias" not in roles else None,
        )
        if call.row is not None and "weight" in roles:
            if call.row.kind is Kind.CONTRACT:
                self.readers[node.name] = reader(self.seen.told(call), roles["weight"])
            elif call.row.kind is Kind.PRODUCT:
                self.readers[node.name] = product_reader(attrs["letters"], roles["weight"])
        out = propagate(self.state, step)
        unread = _unread(node, value)
        if any(unread) and isinstance(out, (tuple, list)):
            out = tuple(constant(v.shape) if left else tree for left, tree, v in zip(unread, out, value, strict=True))
        out = self._places(out, value, call.label)
        self._note_site(node, call, self._site_inputs(call, operands), out, step.run)
        return out

    def _places(self, tree: Tree, value: Any, op: str) -> Tree:
        """The labels of a value; where integers say all alike where something is, in one channel, that one stays."""
        if isinstance(value, (tuple, list)) and isinstance(tree, (tuple, list)):
            return type(tree)(self._places(*pair, op) for pair in zip(tree, value, strict=True))
        if not is_tensor(value) or not _is_count(value) or varying(tree) or not compact(tree).any():
            return tree
        self.state.freeze(tree, f"{op} finds places in it")
        return constant(value.shape)

    def _note_site(
        self, node: fx.Node, call: Call, inputs: tuple[Labels, ...], out: Tree, run: Callable[..., Tree]
    ) -> None:
        if not inputs:
            return
        rest = pytree.tree_map_only(Tensor, without_values, self.seen.value(node.args[1:]))
        numbers = frozenset(filter(self.seen.is_number, node.all_input_nodes))
        now = functools.partial(number, self.seen)
        self.sites.append(Site(node, call, inputs, out, rest, run, numbers, self.seen.varying, now))

    def _site_inputs(self, call: Call, operands: Sequence[Tree | Param]) -> tuple[Labels, ...]:
        """Labels that the sizes spelled by a node may depend on; parameters count where moved or normalised."""
        if call.row is None:
            return ()
        counts = call.row.kind in (*MOVING, Kind.NORM)
        read = [self.state.of(operand) for operand in operands if counts or not isinstance(operand, Param)]
        return tuple(leaf for tree in read for leaf in leaves(tree))


def _blank(value: Any) -> Tree:
    if isinstance(value, Tensor):
        return constant(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(_blank(item) for item in value)
    if isinstance(value, dict):
        return {key: _blank(item) for key, item in value.items()}
    return None


def _unread(node: fx.Node, value: Any) -> list[bool]:
    """Of each entry of a value, whether it is integers that nothing reads (where the largest are, say)."""
    takes: list[Any] = [user.args[1] if user.target is operator.getitem else None for user in node.users]
    if not isinstance(value, (tuple, list)) or not all(isinstance(place, int) for place in takes):
        return []
    taken = [value[place] for place in takes]
    return [is_tensor(entry) and _is_count(entry) and not any(entry is one for one in taken) for entry in value]


def _is_count(value: Tensor) -> bool:
    """Integers say where something is, and no channel has one of them."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
