"""An fx graph's dependency graph: one interpreted forward pass, with labels travelling beside the activations."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.calls import Call, bind, dims, is_tensor, pads, still
from subprune_fx.frontends.fx_batch import numbers_of_more
from subprune_fx.frontends.fx_edit import edited, retargeted
from subprune_fx.frontends.fx_products import attention_operands, factors, is_scaled, is_stack, is_weight, letters
from subprune_fx.frontends.fx_readers import product_reader, reader
from subprune_fx.frontends.fx_recurrent import facts as recurrent_facts
from subprune_fx.frontends.fx_resize import Site, survives, survivor_shapes
from subprune_fx.frontends.fx_tails import Tail, normalisable, tail
from subprune_fx.frontends.onnx_calls import row_of
from subprune_fx.frontends.onnx_op import OnnxOp, item
from subprune_fx.graph.channels import ChannelGraph, close, stuck
from subprune_fx.graph.kinds import MOVING, Kind, Resize
from subprune_fx.graph.labels import Labels, compact, constant, tighten, varying
from subprune_fx.graph.propagation import Consumer, Propagation
from subprune_fx.graph.rules import propagate
from subprune_fx.graph.step import Param, Step, Tree, leaves
from subprune_fx.numerics.readers import Reader
from subprune_fx.option_values import DEFAULT_PRECISION
from subprune_fx.plan import Constant

_READS = ("item", "tolist", "_local_scalar_dense")
"""Ops whose numbers depend on what a tensor holds, and not on its shape alone."""

_LABEL_METHODS = {"view": "reshape", "view_as": "reshape_as"}


@dataclasses.dataclass(frozen=True)
class Intercept:
    """The parameter that takes a constant added to a consumer's output.

    Attributes:
        name: Its name.
        sign: +1 for a bias, -1 for the running mean of a BatchNorm that alone reads the output.
        new: True where the consumer has no bias yet and gets one.
    """

    name: str
    sign: int
    new: bool = False


@dataclasses.dataclass(frozen=True)
class FxNetwork:
    """A traced network with its dependency graph.

    Attributes:
        graph_module: The network.
        channels: Its dependency graph.
        readers: Geometry of every contraction, by node name.
        places: Where a contraction's intercept would go, by node name; absent where it has no place.
        sites: Nodes whose arguments may spell sizes.
        tails: What follows each contraction, by node name.
        precision: What its forward passes are computed in, see `subprune_fx.option_values.PRECISIONS`.
    """

    graph_module: fx.GraphModule
    channels: ChannelGraph
    readers: dict[str, Reader]
    places: dict[str, Intercept]
    sites: tuple[Site, ...]
    tails: dict[str, Tail]
    precision: str = DEFAULT_PRECISION

    @functools.cached_property
    def intercepts(self) -> dict[str, Intercept]:
        """The places in use: a bias of its own is new to a layer, and worth it only where channels are lost."""
        consumers = set(self.channels.consumers)
        return {name: place for name, place in self.places.items() if name in consumers or not place.new}


def describe(graph_module: fx.GraphModule, example: Inputs) -> FxNetwork:
    """Analyse `graph_module` by running it on `example` (first dimension = sample)."""
    walker, channels = _freest(graph_module, example)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    readers = {name: walker.readers[name] for name in channels.contractions}
    places = {
        name: found
        for name in channels.contractions
        if (found := _intercept(nodes[name], walker.calls[name], walker, channels)) is not None
    }
    shapes = {node: getattr(channels.values.get(node.name), "shape", None) for node in graph_module.graph.nodes}
    tails = {
        name: tail(nodes[name], walker.calls, walker.roles, shapes, consumer.axis, _added(consumer, places.get(name)))
        for name, consumer in channels.contractions.items()
    }
    # Sites know the walker, for numbers that depend on what is kept: were it to know them, all labels would outlive the
    # network until Python next looks for cycles.
    sites, walker.sites = tuple(walker.sites), []
    return FxNetwork(graph_module, channels, readers, places, sites, tails)


def _freest(graph_module: fx.GraphModule, example: Inputs) -> tuple[_Walker, ChannelGraph]:
    """Grouped convolutions whose channels would all stay lose whole groups, if then more can go."""
    more = numbers_of_more(graph_module, example)
    walker, channels = _walked(graph_module, example, more, frozenset())
    again = stuck(walker.state, channels)
    if again:
        other, found = _walked(graph_module, example, more, again)
        if found.loose > channels.loose:
            walker, other, channels = other, walker, found
        other.sites.clear()  # they know it, see above
    return walker, channels


def _walked(
    graph_module: fx.GraphModule, example: Inputs, more: Mapping[str, Any], by_group: frozenset[str]
) -> tuple[_Walker, ChannelGraph]:
    walker = _Walker(graph_module, more, by_group)
    with torch.no_grad():
        walker.run(example)
    return walker, _verified(walker)


def _verified(walker: _Walker) -> ChannelGraph:
    """Close the propagation; channels that some op cannot carry once others are gone are frozen, and all is redone."""
    while True:
        channels = close(walker.state)
        samples = channels.samples()
        broken = [site for site in walker.sites if not survives(site, channels, samples)]
        if not broken:
            return channels
        for site in broken:
            for labels in (*site.operands, *leaves(site.after)):
                walker.state.freeze(labels, f"{site.call.label} cannot be written for fewer channels")


class _Walker(fx.Interpreter):
    """Runs each node on real values, then the op table's rule on its labels."""

    def __init__(
        self, graph_module: fx.GraphModule, numbers_of_more: Mapping[str, Any], by_group: frozenset[str]
    ) -> None:
        super().__init__(graph_module)
        self.numbers_of_more = numbers_of_more
        self.varying: set[fx.Node] = set()
        self.constants: dict[fx.Node, Any] = {}
        self.root = graph_module
        self.state = Propagation(by_group)
        self.readers: dict[str, Reader] = {}
        self.calls: dict[str, Call] = {}
        self.roles: dict[str, dict[str, Param]] = {}
        self.params = _first_names(graph_module)
        self.trees: dict[fx.Node, Tree | Param] = {}
        self.sites: list[Site] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, (int, torch.Size)) and self.numbers_of_more.get(n.name, value) != value:
            self.varying.add(n)
        tree = self._label(n, value)
        self.trees[n] = tree
        if not isinstance(tree, Param):
            self.state.values[n.name] = tree
        return value

    def _label(self, node: fx.Node, value: Any) -> Tree | Param:
        if node.op == "get_attr" and is_tensor(value) and not _is_count(value):
            return self._param(str(node.target), value)
        if node.op == "output":
            for labels in self._operands(node.args):
                for leaf in leaves(self.state.of(labels)):
                    self.state.freeze(leaf, "it is an output of the network")
            return None
        blank = _blank(value)
        if node.op in ("placeholder", "get_attr") or node.target is item:
            self.constants[node] = value
            return blank
        return self._call(node, value, blank)

    def _call(self, node: fx.Node, value: Any, blank: Tree) -> Tree:
        call = bind(node, self.root)
        self.calls[node.name] = call
        if call.name in _READS:
            self.constants[node] = value
        tensors = self._tensors((node.args, node.kwargs))
        if call.row is not None and call.row.kind is Kind.PERMUTE and isinstance(self.trees[tensors[0]], Param):
            return self._permuted(node, self.trees[tensors[0]])
        roles, tensors, attrs = self._facts(call, tensors)
        self.roles[node.name] = roles
        bound = {param.name for param in roles.values()}
        operands = tuple(
            operand
            for operand in (self.trees[n] for n in tensors)
            if not (isinstance(operand, Param) and operand.name in bound)
        )
        read = [n.name for n in tensors if not isinstance(self.trees[n], Param)] or [n.name for n in tensors]
        bias = call.get("bias")
        step = Step(
            name=node.name,
            op=call.label,
            row=call.row,
            operands=operands,
            roles=roles,
            attrs={**self._attrs(node, call, operands), **attrs},
            shape=tuple(value.shape) if is_tensor(value) else None,
            blank=blank,
            run=self._runner(node),
            module=call.path,
            source=next(iter(read), ""),
            offset=bias.name if isinstance(bias, fx.Node) and "bias" not in roles else None,
        )
        if call.row is not None and "weight" in roles:
            if call.row.kind is Kind.CONTRACT:
                self.readers[node.name] = reader(self._told(call), roles["weight"])
            elif call.row.kind is Kind.PRODUCT:
                self.readers[node.name] = product_reader(attrs["letters"], roles["weight"])
        out = propagate(self.state, step)
        unread = _unread(node, value)
        if any(unread) and isinstance(out, (tuple, list)):
            out = tuple(constant(v.shape) if left else tree for left, tree, v in zip(unread, out, value, strict=True))
        out = self._places(out, value, call.label)
        inputs = self._site_inputs(call, operands)
        if inputs:
            rest = pytree.tree_map_only(Tensor, _without_values, self._value(node.args[1:]))
            numbers = frozenset(filter(self._is_number, node.all_input_nodes))
            self.sites.append(Site(node, call, inputs, out, rest, step.run, numbers, self.varying, self._number))
        return out

    def _places(self, tree: Tree, value: Any, op: str) -> Tree:
        """The labels of a value; where integers say all alike where something is, in one channel, that one stays."""
        if isinstance(value, (tuple, list)) and isinstance(tree, (tuple, list)):
            return type(tree)(self._places(*pair, op) for pair in zip(tree, value, strict=True))
        if not is_tensor(value) or not _is_count(value) or varying(tree) or not compact(tree).any():
            return tree
        self.state.freeze(tree, f"{op} finds places in it")
        return constant(value.shape)

    def _site_inputs(self, call: Call, operands: Sequence[Tree | Param]) -> tuple[Labels, ...]:
        """Labels that the sizes spelled by a node may depend on; parameters count where moved or normalised."""
        if call.row is None:
            return ()
        counts = call.row.kind in (*MOVING, Kind.NORM)
        read = [self.state.of(operand) for operand in operands if counts or not isinstance(operand, Param)]
        return tuple(leaf for tree in read for leaf in leaves(tree))

    def _permuted(self, node: fx.Node, param: Param) -> Param:
        """A parameter read with its dimensions in another order is still that parameter."""
        sizes = list(range(1, len(param.shape) + 1))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: torch.empty(sizes))
        out = _invoke(node, self.root, args, kwargs, ())
        return param.permuted([sizes.index(size) for size in out.shape])

    def _facts(self, call: Call, tensors: list[fx.Node]) -> tuple[dict[str, Param], list[fx.Node], dict[str, Any]]:
        """Parameters by role, tensor operands in the order that the rule expects them, and what else it reads."""
        roles = self._roles(call)
        kind = None if call.row is None else call.row.kind
        if kind is Kind.ATTENTION:
            return roles, self._tensors(attention_operands(call)), {"grouped": bool(call.get("enable_gqa", False))}
        if kind is not Kind.PRODUCT:
            return roles, tensors, {}
        left, right, added = factors(call)
        if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            return roles, tensors, {"letters": None}
        found = letters(call, (len(self._shape(left)), len(self._shape(right))))
        rest = [added] if isinstance(added, fx.Node) else []
        if found is None:
            return roles, tensors, {"letters": None}
        for weight, other, (a, b) in ((right, left, (1, 0)), (left, right, (0, 1))):
            param, bias = self.trees[weight], self.trees[rest[0]] if rest else None
            if not isinstance(param, Param) or isinstance(self.trees[other], Param) or is_scaled(call):
                continue
            if not any(fits(found[a], found[b], found[2]) for fits in (is_weight, is_stack)):
                continue
            if not (bias is None or _is_vector(bias)):
                continue
            roles = {"weight": param} if bias is None else {"weight": param, "bias": bias}
            return roles, [other], {"letters": (found[b], found[a], found[2]), "shuffled": bool(call.get("shuffled"))}
        return roles, [left, right, *rest], {"letters": found}

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.env[node].shape)

    def _tensors(self, arguments: Any) -> list[fx.Node]:
        """Nodes in `arguments` that hold tensors, in order."""
        found: list[fx.Node] = []
        fx.node.map_arg(arguments, found.append)
        return [n for n in found if isinstance(self.trees[n], Param) or leaves(self.trees[n])]

    def _operands(self, arguments: Any) -> list[Tree | Param]:
        """Labels or parameter of every tensor-valued node in `arguments`, in order."""
        return [self.trees[n] for n in self._tensors(arguments)]

    def _roles(self, call: Call) -> dict[str, Param]:
        if call.row is None:
            return {}
        roles = {}
        for role in call.row.roles:
            value = call.get(role)
            if isinstance(value, fx.Node):
                value = self.trees[value]
            if isinstance(value, Tensor):
                value = self._param(f"{call.path}.{role}", value)
            if isinstance(value, Param):
                roles[role] = value
        return roles

    def _param(self, name: str, value: Tensor) -> Param:
        """Tied parameters go by the first of their names; what has none (a computed weight) by its own."""
        return Param(self.params.get(id(value), name), tuple(value.shape))

    def _attrs(self, node: fx.Node, call: Call, operands: Sequence[Tree | Param]) -> dict[str, Any]:
        shapes = [operand.shape for operand in operands if isinstance(operand, Param) or hasattr(operand, "shape")]
        rank = len(shapes[0]) if shapes else 0
        attrs: dict[str, Any] = {
            "dims": self._value(dims(call, rank)),
            "groups": self._value(call.get("groups", 1)),
            "still": still(call, rank),
        }
        if call.row is None:
            attrs["opaque"] = call.module is not None and any(True for _ in call.module.parameters())
            attrs["known"] = isinstance(node.target, OnnxOp) and row_of(node.target) is not None
            return attrs
        if call.row.kind is Kind.PAD:
            attrs["pads"] = pads(self._value(call.get("pad", call.get("padding"))), rank)
        if call.row.kind is Kind.NORM and call.get("normalized_shape") is not None:
            attrs["shape"] = self._value(call.get("normalized_shape"))
        if call.row.kind is Kind.GROUP_NORM:
            attrs["groups"] = self._value(call.get("num_groups"))
        if call.row.kind is Kind.SCATTER:
            attrs["range"] = (int(call.get("dim", 0)), self._value(self._range(call)))
        if call.row.kind is Kind.PUT:
            attrs["indexed"] = _indexed(self._value(call.get("indices")))
        if call.row.kind is Kind.RECURRENT:
            attrs.update(recurrent_facts(node))
        if call.row.kind is Kind.SPREAD:
            attrs["samples"] = self._over_samples(node)
        if call.row.kind in MOVING:
            where, key = _first_tensors(node, self.trees)
            first = None if where is None else getattr(node, where)[key]
            attrs["moved"] = sum(len(leaves(self.state.of(tree))) for tree in self._operands(first))
        return attrs

    def _range(self, call: Call) -> slice:
        """Where it writes along a dimension."""
        place = self._value(call.get("index"))
        if isinstance(place, int):
            return slice(place, place + 1 or None)
        return slice(call.get("start"), call.get("end"), call.get("step"))

    def _over_samples(self, node: fx.Node) -> set[int]:
        """Dimensions of the output that are as large as there are samples, by the sizes that the node is told."""
        sizes = node.args[1] if len(node.args) == 2 else node.args[1:]
        if isinstance(sizes, (tuple, list)):
            return {d for d, size in enumerate(sizes) if size in self.varying and not self._is_cut(size)}
        return {0} if sizes in self.varying else set()

    def _is_cut(self, size: fx.Node) -> bool:
        """Whether a size is that of a dimension that may lose channels: it then comes out right by itself."""
        if size.target is not torch.ops.aten.sym_size.int:
            return False
        tree, d = self.trees[size.all_input_nodes[0]], int(size.args[1])  # type: ignore[arg-type]
        return not isinstance(tree, Param) and d % tree.ndim in varying(tree)

    def _is_number(self, node: fx.Node) -> bool:
        return not isinstance(self.trees[node], Param) and not leaves(self.trees[node])

    def _number(self, node: fx.Node, keep: NDArray[np.bool_]) -> Any:
        """What a node computes when only the labels in `keep` survive; of tensors, only the shape is right."""
        tree = self.trees[node]
        if isinstance(tree, Param):
            return torch.empty(tree.shape, device="meta")
        if leaves(tree):
            return _refill(tree, [torch.empty(sizes, device="meta") for sizes in survivor_shapes(tree, keep)])
        if node in self.constants:
            return self.constants[node]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._number(n, keep))
        return _invoke(node, self.root, args, kwargs, ())

    def _told(self, call: Call) -> Call:
        """A call with the numbers that the graph computes for it (`groups=x.shape[1]`)."""
        numbers = {
            name: self._value(value)
            for name, value in call.arguments.items()
            if not isinstance(value, fx.Node) or self._is_number(value)
        }
        return dataclasses.replace(call, arguments={**call.arguments, **numbers})

    def _value(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: self.env[n])

    def _runner(self, node: fx.Node) -> Callable[..., Tree]:
        """The node's own op on labels: those of its first tensor argument replaced, everything else as it was."""
        where, key = _first_tensors(node, self.trees)
        row = self.calls[node.name].row
        like = row is not None and row.resize is Resize.LIKE and not node.kwargs
        argument = None if where is None else getattr(node, where)[key]
        # Activations would stay until the analysis is over: labels take their place.
        values = {n: pytree.tree_map_only(Tensor, _without_values, self.env[n]) for n in node.all_input_nodes}

        def run(
            labels: Sequence[Labels], constants: Sequence[Constant] = (), keep: NDArray[np.bool_] | None = None
        ) -> Tree:
            queue = [torch.from_numpy(array) for array in labels]
            numbers = {} if keep is None else {n: self._number(n, keep) for n in values if like or self._is_number(n)}
            now = {**values, **numbers}
            call = {part: fx.node.map_arg(getattr(node, part), lambda n: now[n]) for part in ("args", "kwargs")}
            if like:
                call["args"] = fx.node.map_arg(node.args, lambda n: _refill(self.trees[n], queue))
            elif where is not None:
                first = fx.node.map_arg(argument, lambda n: _refill(self.trees[n], queue))
                call[where] = edited(call[where], [key], first)
            for change in constants:
                field, *path = change.path
                if field in call:
                    call[str(field)] = edited(call[str(field)], path, change.value)
            out = _invoke(node, self.root, call["args"], call["kwargs"], constants)
            return pytree.tree_map_only(Tensor, lambda t: tighten(t.numpy()), out)

        return run


def _first_tensors(node: fx.Node, trees: Mapping[fx.Node, Tree | Param]) -> tuple[str | None, str | int]:
    """Which argument of a node holds its first tensors: ("args", position) or ("kwargs", name)."""
    places: list[tuple[str, str | int, Any]] = [
        *(("args", position, argument) for position, argument in enumerate(node.args)),
        *(("kwargs", name, argument) for name, argument in node.kwargs.items()),
    ]
    for where, key, argument in places:
        used: list[fx.Node] = []
        fx.node.map_arg(argument, used.append)
        if any(isinstance(trees[n], Param) or leaves(trees[n]) for n in used):
            return where, key
    return None, 0


def _is_vector(operand: Tree | Param) -> bool:
    return isinstance(operand, Param) and len(operand.shape) == 1


def _refill(tree: Tree | Param, queue: list[Tensor]) -> Any:
    """A value shaped like `tree`, its tensors taken from the front of `queue`."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_refill(item, queue) for item in tree)
    if isinstance(tree, Mapping):
        return {name: _refill(item, queue) for name, item in tree.items()}
    return None if tree is None else queue.pop(0)


def _invoke(node: fx.Node, root: fx.GraphModule, args: Any, kwargs: Any, constants: Sequence[Constant]) -> Any:
    """Run a node's op on labels: `view` as `reshape`, since expanded labels have no contiguous memory."""
    if node.op == "call_module":
        module = copy.copy(root.get_submodule(str(node.target)))
        for change in constants:
            module.__dict__[str(change.path[0])] = (
                tuple(change.value) if isinstance(change.value, list) else change.value
            )
        return module(*args, **kwargs)
    target = node.target
    for change in constants:
        target = retargeted(target, change.value)
    if node.op == "call_method":
        first, *rest = args
        name = _LABEL_METHODS.get(str(target), str(target))
        return getattr(first, name)(*rest, **kwargs)
    name = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
    if name in ("view", "_unsafe_view"):
        return args[0].reshape(*args[1:])
    assert callable(target)
    return target(*args, **kwargs)


def _indexed(places: Any) -> int | None:
    """How many dimensions are given places for: by one tensor each, by a mask, or by the last dimension of a tensor."""
    if isinstance(places, Tensor):
        return int(places.shape[-1])
    if not isinstance(places, (tuple, list)) or not all(isinstance(place, Tensor) for place in places):
        return None
    return sum(place.ndim if place.dtype in (torch.bool, torch.uint8) else 1 for place in places)


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


def _without_values(tensor: Tensor) -> Tensor:
    """Of an activation the sizes; an index, or a single number, is what it holds."""
    return tensor.to("meta") if tensor.is_floating_point() and tensor.numel() > 1 else tensor


def _blank(value: Any) -> Tree:
    if isinstance(value, Tensor):
        return constant(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(_blank(item) for item in value)
    if isinstance(value, dict):
        return {key: _blank(item) for key, item in value.items()}
    return None


def _first_names(graph_module: fx.GraphModule) -> dict[int, str]:
    """First qualified name of every parameter and buffer, by identity."""
    named = [*graph_module.named_buffers(), *graph_module.named_parameters()]
    return {id(tensor): name for name, tensor in named}


def _intercept(node: fx.Node, call: Call, walker: _Walker, channels: ChannelGraph) -> Intercept | None:
    consumer = channels.contractions[node.name]
    if consumer.offset is not None or consumer.blocks > 1:  # each matrix of a stack would want one of its own
        return None
    if consumer.bias is not None:
        return None if consumer.bias in channels.shared else Intercept(consumer.bias, 1)
    users = list(node.users)
    norm, rank = walker.calls.get(users[0].name) if len(users) == 1 else None, channels.values[node.name].ndim
    settled = norm is not None and "batch" in norm.name and not norm.get("training", False)
    if settled and normalisable(consumer.axis, rank):
        mean = walker.roles[users[0].name].get("running_mean")
        if mean is not None and mean.name not in channels.shared:
            return Intercept(mean.name, -1)
    if norm is not None and norm.name == "add" and not is_scaled(norm):
        vector = _own_vector(users[0], walker, consumer)
        if vector is not None:
            return Intercept(vector, 1)
    return Intercept(f"{call.path}.bias", 1, new=True) if call.module is not None else None


def _added(consumer: Consumer, found: Intercept | None) -> str | None:
    """The parameter that the reader of a consumer adds, where it takes the intercept."""
    bias = found is None or found.new or found.sign < 0 or found.name == consumer.bias
    return None if found is None or bias else found.name


def _own_vector(node: fx.Node, walker: _Walker, consumer: Consumer) -> str | None:
    """The parameter along the consumer's outputs, read nowhere else, that a node adds: a bias by another name."""
    rank = walker.state.values[consumer.name].ndim
    wanted = tuple(consumer.outputs.size if d == consumer.axis % rank else 1 for d in range(rank))
    for used in node.all_input_nodes:
        param = walker.trees[used]
        if not isinstance(param, Param) or walker.state.reads.get(param.name) != {node.name}:
            continue
        if param.order is None and wanted == (1,) * (rank - len(param.shape)) + param.shape:
            return param.name
    return None
