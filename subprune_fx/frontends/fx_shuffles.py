"""Channel shuffles that would keep channels from going, as lists of channels.

x.view(n, 2, c, ...).transpose(1, 2).reshape(n, 2 * c, ...)  ->  x[:, order]
x.view(n, c, 2, ...).unbind(2)                               ->  x[:, evens], x[:, odds]
torch.stack((x, y), 2).flatten(1, 2)                         ->  torch.cat((x, y), 1)[:, order]
x.chunk(2, 1)                                                ->  x.split((c, c), 1)

Written as reshapes, a channel can only go with its partners in the other parts. Where blocks that shuffle follow on
each other, partners have partners (ShuffleNet V2), up to all channels of a stage. A list may lose any of its entries.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from subprune_fx.bundle import Inputs, device_of
from subprune_fx.frontends.computed import duplicate
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.fx_edit import edit_node
from subprune_fx.frontends.fx_sites import Site
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.frontends.onnx_source import META, source_of
from subprune_fx.frontends.original import agree
from subprune_fx.graph.kinds import Kind
from subprune_fx.graph.labels import Labels, along, compact, distinct, varying, vector
from subprune_fx.graph.step import Tree, leaves
from subprune_fx.plan import Constant

_DEALING = (Kind.MOVE, Kind.PERMUTE, Kind.DEAL, Kind.CHUNK)
_SAME = ("contiguous", "clone")
_CHUNKS = ("args", 1)
"""Where `tracing` puts the number of chunks."""


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """A node whose value is that of another one, all or some of its channels in another order.

    Attributes:
        node: The node.
        sources: The other one; those that are joined along their channels, where a node stacks several.
        axis: Dimension of the channels.
        order: Which channel of the other one stands in each place, shape (channels,).
        shape: Of the value that has all channels.
    """

    node: fx.Node
    sources: tuple[fx.Node, ...]
    axis: int
    order: Labels
    shape: tuple[int, ...]


def freed(network: FxNetwork, example: Inputs) -> FxNetwork:
    """The network with its shuffles as lists if more channels can go then, else as it is.

    Args:
        network: An analysed network; its graph is not changed.
        example: What it was analysed with.
    """
    if not any(_deals(network, site) and _stay(network, site.after) for site in network.sites):
        return network
    found = [shuffle for shuffle in shuffles(network) if _is_writable(network, shuffle)]
    read = [network.channels.values[source.name] for shuffle in found for source in shuffle.sources]
    read += [site.before for site in network.sites if _chunked(site) is not None]
    if not any(_stay(network, labels) for labels in read):
        return network
    listed = _listed(network, found)
    if not agree(network.graph_module, listed, example):
        return network  # where samples lie among the channels, a list is of as many as there were
    other = describe(listed, example)
    return other if other.channels.loose > network.channels.loose else network


def shuffles(network: FxNetwork) -> Iterator[Shuffle]:
    """Those of a network, whatever they are made of: what ops move is known from running them on positions."""
    moved: dict[fx.Node, list[_Moved]] = {}
    for site in network.sites:
        if _deals(network, site):
            source = site.node.all_input_nodes[0]
            starts = moved.get(source, [])
            axes = varying(site.before) if len(site.operands) == 1 else ()
            if len(axes) == 1:
                shape = site.before.shape
                starts = [*starts, _Moved((source,), axes[0], shape, list[Tree](_positions(shape)))]
        else:
            starts = _stacked(network, site)
        ends = [start.by(site) for start in starts]
        found = [shuffle for end in ends if (shuffle := _shuffle(site.node, end)) is not None]
        if found:
            yield found[0]
        else:
            moved[site.node] = ends


@dataclasses.dataclass(frozen=True)
class _Moved:
    """Where the channels of a value are after some ops.

    Attributes:
        sources: The node of that value; those that it would be joined of.
        axis: Dimension of its channels.
        shape: Of that value.
        positions: By dimension of it, where in it each element comes from.
        dealt: Whether channels lay over several dimensions in between, where they have partners.
    """

    sources: tuple[fx.Node, ...]
    axis: int
    shape: tuple[int, ...]
    positions: list[Tree]
    dealt: bool = False

    def by(self, site: Site) -> _Moved:
        """After another one."""
        ends = [site.run(leaves(part)) for part in self.positions]
        dealt = self.dealt or any(len(varying(part)) > 1 for part in leaves(ends[self.axis]))
        return _Moved(self.sources, self.axis, self.shape, ends, dealt)


def _stacked(network: FxNetwork, site: Site) -> list[_Moved]:
    """What a node stacks, as if it were joined along its channels before; none for any other node."""
    given: Any = site.node.args[0] if site.node.args else site.node.kwargs.get("tensors")
    if site.call.name != "stack" or not isinstance(given, (tuple, list)):
        return []
    values = [network.channels.values.get(node.name) for node in given]
    axes = {axis for labels in site.operands for axis in varying(labels)}
    if len(axes) != 1 or not all(isinstance(value, np.ndarray) for value in values):
        return []
    (axis,), size = axes, site.before.shape
    shape = (*size[:axis], size[axis] * len(given), *size[axis + 1 :])
    positions: list[Tree] = [tuple(np.split(part, len(given), axis)) for part in _positions(shape)]
    return [_Moved(tuple(given), axis, shape, positions)]


def _deals(network: FxNetwork, site: Site) -> bool:
    """Whether a node moves what one other node yields; others make something of nothing, join, or read a parameter."""
    row, source = site.call.row, next(iter(site.node.all_input_nodes), None)
    deals = site.call.name in _SAME or (row is not None and row.kind in _DEALING)
    return deals and source is not None and len(leaves(network.channels.values.get(source.name))) == len(site.operands)


def _positions(shape: tuple[int, ...]) -> list[Labels]:
    """Where each element of a tensor is: one array for each dimension, its index there."""
    return [along(np.arange(size), axis, shape) for axis, size in enumerate(shape)]


def _shuffle(node: fx.Node, moved: _Moved) -> Shuffle | None:
    """What `node` is, if its value is channels of another one, each once, and else all is where it was."""
    shape = moved.shape
    parts = [part for part in moved.positions if isinstance(part, np.ndarray) and part.ndim == len(shape)]
    if len(parts) < len(shape) or not all(part.size for part in parts):
        return None
    if any(not {axis}.issuperset(varying(part)) for axis, part in enumerate(parts)):
        return None
    orders = {axis: vector(part, axis) for axis, part in enumerate(parts)}
    order = orders.pop(moved.axis)
    if any(not np.array_equal(other, np.arange(shape[axis])) for axis, other in orders.items()):
        return None
    if distinct(order).size < order.size or (bool((np.diff(order) == 1).all()) and not moved.dealt):
        return None  # some are repeated, or it is a slice
    return Shuffle(node, moved.sources, moved.axis, order, shape)


def _is_writable(network: FxNetwork, shuffle: Shuffle) -> bool:
    """Whether it can be written as a list: in a file, where it is a node and reads a tensor."""
    source = source_of(network.graph_module)
    if source is None:
        return True
    first, *others = shuffle.sources
    return not others and shuffle.node.name in source.nodes and bool(source.tensor(first.name))


def _chunked(site: Site) -> int | None:
    """Along which dimension a node cuts channels into a number of parts; of samples there may be any number."""
    if site.call.row is None or site.call.row.kind is not Kind.CHUNK:
        return None
    axis = int(site.call.get("dim", 0)) % site.before.ndim
    return axis if axis in varying(site.before) else None


def _stay(network: FxNetwork, tree: Tree) -> bool:
    """Whether channels in a value stay."""
    units = [network.channels.unit[compact(labels)] for labels in leaves(tree)]
    return any(part.any(where=~network.channels.prunable[part]) for part in units)


def _listed(network: FxNetwork, found: list[Shuffle]) -> fx.GraphModule:
    """A copy of the graph, on the same tensors, with these shuffles as lists and chunks of channels as given sizes."""
    module = network.graph_module
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = duplicate(module, tensors)
    nodes = {node.name: node for node in twin.graph.nodes}
    for shuffle in found:
        node, sources = nodes[shuffle.node.name], [nodes[source.name] for source in shuffle.sources]
        (_as_gather if isinstance(node.target, OnnxOp) else _as_index)(twin, node, sources, shuffle)
    for site in network.sites:
        axis = _chunked(site)
        if axis is not None:
            sizes = [part.shape[axis] for part in leaves(site.after)]
            edit_node(nodes[site.node.name], Constant("node", site.node.name, _CHUNKS, sizes))
    twin.graph.eliminate_dead_code()  # what reshaped them
    twin.recompile()
    return twin


def _as_index(twin: fx.GraphModule, node: fx.Node, sources: list[fx.Node], shuffle: Shuffle) -> None:
    """As `fx_index` spells what is picked by a list that the network holds."""
    name = f"{node.name}_order"
    twin.register_buffer(name, torch.tensor(shuffle.order, device=device_of(twin)), persistent=False)
    with twin.graph.inserting_before(node):
        order, source = twin.graph.get_attr(name), sources[0]
        if len(sources) > 1:
            source = twin.graph.call_function(torch.cat, (sources, shuffle.axis))
    node.op, node.target, node.kwargs = "call_function", operator.getitem, {}
    node.args = (source, (*(slice(None),) * shuffle.axis, order))


def _as_gather(twin: fx.GraphModule, node: fx.Node, sources: list[fx.Node], shuffle: Shuffle) -> None:
    """The same in an imported ONNX graph, whose file gets another node where anything is pruned."""
    assert isinstance(node.target, OnnxOp)
    node.target = OnnxOp("Gather", "", node.target.opset, (True,))
    node.args, node.kwargs = (sources[0], shuffle.order.tolist()), {"axis": shuffle.axis}
    node.meta["shape"] = shuffle.shape
    known = source_of(twin)
    assert known is not None
    twin.meta[META] = dataclasses.replace(known, lists=known.lists | {node.name})
