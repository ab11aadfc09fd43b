"""Channel shuffles that would keep channels from going, as lists of channels.

x.view(n, 2, c, ...).transpose(1, 2).reshape(n, 2 * c, ...)  ->  x[:, order]
x.chunk(2, 1)                                                ->  x.split((c, c), 1)

Written as reshapes, a channel can only go with its partners in the other parts. Where blocks that shuffle follow on
each other, partners have partners (ShuffleNet V2), up to all channels of a stage. A list may lose any of its entries.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator

import numpy as np
import torch
from torch import fx

from subprune_fx.bundle import Inputs, device_of
from subprune_fx.frontends.computed import duplicate
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.fx_edit import edit_node
from subprune_fx.frontends.fx_resize import Site
from subprune_fx.frontends.onnx_graph import META, source_of
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.graph.labels import Labels, along, compact, varying, vector
from subprune_fx.graph.optable import Kind
from subprune_fx.graph.step import Tree, leaves
from subprune_fx.plan import Constant

_DEALING = (Kind.MOVE, Kind.PERMUTE, Kind.DEAL)
_SAME = ("contiguous", "clone")
_CHUNKS = ("args", 1)
"""Where `tracing` puts the number of chunks."""


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """A node whose value is that of another one, its channels in another order.

    Attributes:
        node: The node.
        source: The other one.
        axis: Dimension of the channels.
        order: Which channel of the other one stands in each place, shape (channels,).
        shape: Of both values.
    """

    node: fx.Node
    source: fx.Node
    axis: int
    order: Labels
    shape: tuple[int, ...]


def freed(network: FxNetwork, example: Inputs) -> FxNetwork:
    """The network with its shuffles as lists if more channels can go then, else as it is.

    Args:
        network: An analysed network; its graph is not changed.
        example: What it was analysed with.
    """
    if not any(_reorders(site) and _stay(network, site.after) for site in network.sites):
        return network
    found = [shuffle for shuffle in shuffles(network) if _is_writable(network, shuffle)]
    if not any(_stay(network, network.channels.values[shuffle.source.name]) for shuffle in found):
        return network
    other = describe(_listed(network, found), example)
    return other if other.channels.loose > network.channels.loose else network


def shuffles(network: FxNetwork) -> Iterator[Shuffle]:
    """Those of a network, whatever they are made of: what ops move is known from running them on positions."""
    moved: dict[fx.Node, list[tuple[fx.Node, int, list[Labels]]]] = {}
    for site in network.sites:
        source = next(iter(site.node.all_input_nodes), None)
        if source is None or not _deals(site) or not isinstance(network.channels.values.get(source.name), np.ndarray):
            continue  # it makes something of nothing, joins, or reads a parameter
        axes = varying(site.before)
        starts = moved.get(source, [])
        if len(axes) == 1:
            starts = [*starts, (source, axes[0], _positions(site.before.shape))]
        ends = [(start, axis, [site.run([part]) for part in positions]) for start, axis, positions in starts]
        found = [shuffle for end in ends if (shuffle := _shuffle(network, site.node, *end)) is not None]
        if found:
            yield found[0]
        else:
            moved[site.node] = ends


def _deals(site: Site) -> bool:
    row = site.call.row
    deals = site.call.name in _SAME or (row is not None and row.kind in _DEALING)
    return deals and len(site.operands) == 1 and isinstance(site.after, np.ndarray)


def _positions(shape: tuple[int, ...]) -> list[Labels]:
    """Where each element of a tensor is: one array for each dimension, its index there."""
    return [along(np.arange(size), axis, shape) for axis, size in enumerate(shape)]


def _shuffle(network: FxNetwork, node: fx.Node, source: fx.Node, axis: int, positions: list[Labels]) -> Shuffle | None:
    """What `node` is, if these positions in `source` are another order of its channels and else where they were."""
    shape = network.channels.values[source.name].shape
    if any(part.shape != shape or not {axis}.issuperset(varying(part)) for axis, part in enumerate(positions)):
        return None
    orders = [vector(part, axis) for axis, part in enumerate(positions)]
    moves = [not np.array_equal(order, np.arange(order.size)) for order in orders]
    order = orders.pop(axis)
    deals = moves.pop(axis) and not any(moves) and np.array_equal(np.sort(order), np.arange(order.size))
    return Shuffle(node, source, axis, order, shape) if deals else None


def _is_writable(network: FxNetwork, shuffle: Shuffle) -> bool:
    """Whether it can be written as a list: in a file, where both values have a name."""
    source = source_of(network.graph_module)
    return source is None or all(source.tensor(node.name) for node in (shuffle.node, shuffle.source))


def _reorders(site: Site) -> bool:
    return site.call.row is not None and site.call.row.kind in (Kind.PERMUTE, Kind.DEAL)


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
        node, source = nodes[shuffle.node.name], nodes[shuffle.source.name]
        (_as_gather if isinstance(node.target, OnnxOp) else _as_index)(twin, node, source, shuffle)
    for site in network.sites:
        axis = int(site.call.get("dim", 0)) if site.call.row is not None and site.call.row.kind is Kind.CHUNK else None
        if axis is not None and axis % site.before.ndim in varying(site.before):  # how many samples there are may vary
            sizes = [part.shape[axis] for part in leaves(site.after)]
            edit_node(nodes[site.node.name], Constant("node", site.node.name, _CHUNKS, sizes))
    twin.graph.eliminate_dead_code()  # what reshaped them
    twin.recompile()
    return twin


def _as_index(twin: fx.GraphModule, node: fx.Node, source: fx.Node, shuffle: Shuffle) -> None:
    """As `fx_index` spells what is picked by a list that the network holds."""
    name = f"{node.name}_order"
    twin.register_buffer(name, torch.tensor(shuffle.order, device=device_of(twin)), persistent=False)
    with twin.graph.inserting_before(node):
        order = twin.graph.get_attr(name)
    node.op, node.target, node.kwargs = "call_function", operator.getitem, {}
    node.args = (source, (*(slice(None),) * shuffle.axis, order))


def _as_gather(twin: fx.GraphModule, node: fx.Node, source: fx.Node, shuffle: Shuffle) -> None:
    """The same in an imported ONNX graph, whose file gets another node where anything is pruned."""
    assert isinstance(node.target, OnnxOp)
    node.target = OnnxOp("Gather", "", node.target.opset, (True,))
    node.args, node.kwargs = (source, shuffle.order.tolist()), {"axis": shuffle.axis}
    node.meta["shape"] = shuffle.shape
    known = source_of(twin)
    assert known is not None
    twin.meta[META] = dataclasses.replace(known, lists=known.lists | {node.name})
