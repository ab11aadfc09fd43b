"""Sizes that an ONNX graph computes become numbers in the calls that use them, except those that depend on the batch.

Exporters spell sizes as `Shape` - `Gather` - `Concat` arithmetic. Evaluated for two batch sizes, what comes out equal
is a number; what differs stays computed. After this the sizes in a call are read and changed like any torch call's.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Bundle, Inputs, joined, one_more
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.fx_inputs import PACKED
from subprune_fx.frontends.onnx_narrow import narrowed
from subprune_fx.frontends.onnx_op import OnnxOp, item
from subprune_fx.frontends.onnx_source import META, source_of

LARGEST = 4096
"""Elements of the largest tensor that is spelled out in a call."""

SPELLED = frozenset({
    "Reshape", "Expand", "Slice", "Split", "Pad", "Resize", "Tile", "Gather", "Squeeze", "Unsqueeze", "ConstantOfShape",
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp", "CumSum", "TopK", "CenterCropPad", "GatherND",
})  # fmt: skip
"""Ops that take integer operands (after the first) as sizes, positions or axes: they are written as lists."""

SIZES = frozenset({"Shape", "Size"})
"""Ops that yield sizes."""
STAYS = frozenset({
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
    "DequantizeLinear",
})  # fmt: skip
"""Ops whose result is not computed ahead: a new one at each call, or much larger than what it is computed from."""
Values = Mapping[fx.Node, Any]


def specialise(module: fx.GraphModule, example: Inputs) -> fx.GraphModule:
    """Write computed sizes into the calls of an imported ONNX graph, in place.

    Args:
        module: From `onnx_graph.import_graph`.
        example: Input that it accepts; where the batch is free, of at least one sample.

    Returns:
        The same module.
    """
    source = source_of(module)
    assert source is not None
    first = record(module, example)
    second = first if source.batch is not None else record(module, one_more(example))
    narrow = narrowed(module, source, (first, second))
    writer = _Writer(module, _static(module), first, second)
    for node in list(module.graph.nodes):
        operand = first.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        node.meta["shape"] = tuple(operand.shape) if isinstance(operand, Tensor) else None
        if not isinstance(node.target, OnnxOp) or (node in writer.static and not _is_filled(first[node])):
            continue
        rank = (2 if node.target.op_type == "GatherND" else 1) if node.target.op_type in SPELLED else -1
        with module.graph.inserting_before(node):
            node.args = tuple(writer.written(arg, rank if k else -1) for k, arg in enumerate(node.args))
        _DEFAULTS.get(node.target.op_type, _nothing)(node, first)
    module.graph.eliminate_dead_code()
    module.recompile()
    names = {node.name: dict(node.kwargs) for node in module.graph.nodes}
    module.meta[META] = dataclasses.replace(source, attributes=names, narrow=narrow)
    return module


def record(module: fx.GraphModule, example: Inputs) -> dict[fx.Node, Any]:
    """The value of every node for one input; of large tensors only the shape and type, on memory that is not theirs."""
    interpreter = _Recorder(module)
    with torch.no_grad():
        interpreter.run(*operands(module, example))
    return interpreter.found


def operands(module: fx.GraphModule, example: Inputs) -> list[Inputs]:
    """Inputs in the order of a graph's placeholders; of a packed graph, which has a single one, as they are."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    if not isinstance(example, Bundle) or names == [PACKED]:
        return [example]
    given = dict(zip(example.names or names, example.parts, strict=True))
    return [given[name] for name in names]


def ordered(module: nn.Module, inputs: Inputs) -> Inputs:
    """Several inputs of an imported ONNX graph in its own order, under the names that its placeholders have.

    Args:
        module: Any module; inputs of all but imported graphs are returned as they are.
        inputs: Names, if there are any, are the file's or the placeholders'.

    Raises:
        SubpruneError: They are not the inputs that the graph takes.
    """
    source = source_of(module)
    if source is None or not isinstance(inputs, Bundle) or not isinstance(module, fx.GraphModule):
        return inputs
    holders = {node.name: str(node.target) for node in module.graph.nodes if node.op == "placeholder"}
    takes = {holders[node]: name for name, node in source.values.items() if isinstance(node, str) and node in holders}
    named = dict(zip(inputs.names or takes, inputs.parts, strict=False))
    given = {holder: named.get(name, named.get(holder)) for holder, name in takes.items()}
    found = {holder: tensor for holder, tensor in given.items() if tensor is not None}
    if not len(takes) == len(found) == len(inputs.parts):
        what = f"takes {len(takes)} inputs ({', '.join(takes.values())})"
        told = f", given are {', '.join(inputs.names)}" if inputs.names else f", given are {len(inputs.parts)}"
        raise SubpruneError(what + told, where="calibration", remedy="give a dict by the names of the file's inputs")
    return Bundle(tuple(found.values()), tuple(found))


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = value if n.op == "get_attr" else pytree.tree_map_only(Tensor, _light, value)
        return value


def _light(tensor: Tensor) -> Tensor:
    return tensor if tensor.numel() <= LARGEST else tensor.new_zeros(()).expand(tensor.shape)


def fixed_batch(module: nn.Module) -> int | None:
    """The only batch size that an imported ONNX graph runs with; None for any, and for other modules."""
    source = source_of(module)
    return None if source is None else source.batch


def file_batch(module: nn.Module) -> int | None:
    """The only batch size that the file of an imported graph takes: one that it states counts, bound to it or not."""
    source = source_of(module)
    return None if source is None else stated_batch(source.model) or source.batch


def trial_sizes(module: nn.Module) -> tuple[int, ...]:
    """Numbers of samples of which a network that is not settled runs with one: two, or the one that is built in."""
    source = source_of(module)
    return (2,) if source is None else (2, stated_batch(source.model) or 1)


def _static(module: fx.GraphModule) -> set[fx.Node]:
    """Nodes that read nothing but sizes and small constants."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(module, str(node.target))
            small = not value.is_floating_point() or value.numel() == 1
        elif isinstance(node.target, OnnxOp):
            inherits = all(used in found for used in node.all_input_nodes) and node.target.op_type not in STAYS
            small = node.target.op_type in SIZES or inherits
        else:
            small = node.target is operator.getitem and node.args[0] in found
        if small:
            found.add(node)
    return found


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes sizes into the arguments of calls.

    Attributes:
        module: The graph.
        static: Its nodes that compute sizes.
        first: Values for one batch size.
        second: Values for another.
    """

    module: fx.GraphModule
    static: set[fx.Node]
    first: Values
    second: Values

    def written(self, arg: Any, rank: int) -> Any:
        """An argument with the sizes in it as numbers: in lists up to a number of dimensions, else constant tensors."""
        if isinstance(arg, (list, tuple)):
            return [self.written(entry, rank) for entry in arg]
        if arg not in self.static or not isinstance(self.first[arg], Tensor) or self.first[arg].numel() > LARGEST:
            return arg
        one, two = self.first[arg], self.second[arg]
        same = one.shape == two.shape and torch.equal(one, two)
        if one.ndim <= rank and not one.is_floating_point():
            return one.tolist() if same else self._partly(arg, one, two)
        return self._constant(arg, one) if same and arg.op != "get_attr" else arg

    def _partly(self, arg: fx.Node, one: Tensor, two: Tensor) -> Any:
        """Sizes of which some depend on the batch."""
        if one.shape != two.shape or one.ndim != 1:
            return arg
        pairs = zip(one.tolist(), two.tolist(), strict=True)
        return [a if a == b else self.module.graph.call_function(item, (arg, i)) for i, (a, b) in enumerate(pairs)]

    def _constant(self, arg: fx.Node, value: Tensor) -> fx.Node:
        name = f"{arg.name}_value"
        if not hasattr(self.module, name):
            self.module.register_buffer(name, value.clone())
        return self.module.graph.get_attr(name)


def _is_filled(value: Any) -> bool:
    """Whether what sizes were computed into is a tensor of that size (zeros to begin with), not sizes."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


def _nothing(_node: fx.Node, _values: Values) -> None:
    return


def _spell_split(node: fx.Node, values: Values) -> None:
    """Split into equal parts: spell their sizes."""
    attributes: dict[str, Any] = dict(node.kwargs)
    if attributes.get("split") is not None or (len(node.args) > 1 and node.args[1] is not None):
        return
    assert isinstance(node.target, OnnxOp)
    total = values[node.args[0]].shape[attributes.get("axis", 0)]  # type: ignore[index]
    count = int(attributes.get("num_outputs") or len(node.target.outputs))
    part = -(-total // count)
    sizes = [max(0, min(part, total - part * k)) for k in range(count)]
    if node.target.opset < 13:
        node.kwargs = {**node.kwargs, "split": sizes}
    else:
        node.args = (node.args[0], sizes)
        node.kwargs = {**node.kwargs, "num_outputs": None}


def _spell_padding(node: fx.Node, values: Values) -> None:
    """`auto_pad` depends on the input's size: spell the padding that it means."""
    attributes: dict[str, Any] = dict(node.kwargs)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET" or not isinstance(node.target, OnnxOp):
        return
    shape, kernel = values[node.args[0]].shape[2:], values[node.args[1]].shape[2:]  # type: ignore[index]
    rank = len(kernel)
    stride = list(attributes.get("strides") or [1] * rank)
    gap = list(attributes.get("dilations") or [1] * rank)
    totals = [0] * rank
    if str(mode).startswith("SAME"):
        for d in range(rank):
            reach = (kernel[d] - 1) * gap[d] + 1
            totals[d] = max((-(-shape[d] // stride[d]) - 1) * stride[d] + reach - shape[d], 0)
            if node.target.op_type == "ConvTranspose":
                totals[d] = max(reach - stride[d], 0)
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    node.kwargs = {**node.kwargs, "auto_pad": None, "pads": pads}


_DEFAULTS = {"Split": _spell_split, "Conv": _spell_padding, "ConvTranspose": _spell_padding}


def resolve_batch(module: nn.Module, inputs: Inputs) -> nn.Module:
    """Find out whether an imported ONNX graph runs on any number of samples, and note it in its `Source`.

    A file may leave the batch open and have it built in, or state one and run with any.

    Args:
        module: Any module; all but graphs from `import_graph` are returned as they are.
        inputs: A few samples at least.
    """
    source = source_of(module)
    if source is None or source.settled:
        return module
    assert isinstance(module, fx.GraphModule)
    batch = None if _is_free(module, inputs) else stated_batch(source.model) or _smallest(module, inputs)
    twin = copy.copy(module)
    twin.meta = {**module.meta, META: dataclasses.replace(source, batch=batch, settled=True)}
    return twin


def stated_batch(model: onnx.ModelProto) -> int | None:
    """The batch size that a file states for its input; None where it leaves it open."""
    constants = {tensor.name for tensor in model.graph.initializer}
    first = next(value for value in model.graph.input if value.name not in constants)
    dims = first.type.tensor_type.shape.dim
    return dims[0].dim_value if dims and dims[0].dim_value > 0 else None


def _is_free(module: fx.GraphModule, example: Inputs) -> bool:
    """Whether two samples together give what each gives alone, or three what two give."""
    first, last = _parts(example[:1]), _parts(example[-1:])
    other = last.map(lambda part: part * 0.5 + 0.1 if part.is_floating_point() else part)
    samples = joined([first, other, first])
    try:
        with torch.no_grad():
            three, two = (_flat(module(*operands(module, some))) for some in (samples, samples[1:]))
    except Exception:  # noqa: BLE001 - a size that is built in makes some op fail, whichever
        return False
    return all(_is_longer(a, b) for a, b in zip(three, two, strict=True))


def _is_longer(three: Tensor, two: Tensor) -> bool:
    """Whether the last two of three samples are two others; samples may stand on any dimension (time first, say)."""
    axis = next((d for d, sizes in enumerate(zip(three.shape, two.shape, strict=False)) if sizes == (3, 2)), None)
    if axis is None:
        return False
    rest = three.narrow(axis, 1, 2)
    scale = float(two.abs().nan_to_num().max().clamp(min=1e-6)) if two.numel() else 1.0
    return rest.shape == two.shape and torch.allclose(rest, two, rtol=1e-3, atol=1e-4 * scale)


def _smallest(module: fx.GraphModule, inputs: Inputs) -> int:
    """Of some numbers of samples the first that a graph runs with; 1 where it is none of them."""
    for count in (1, 2, 4, 8, 16, 32, 64):
        try:
            with torch.no_grad():
                module(*operands(module, inputs[:count]))
        except Exception:  # noqa: BLE001, S112 - a size that is built in makes some op fail, whichever
            continue
        return count
    return 1


def _parts(inputs: Inputs) -> Bundle:
    return inputs if isinstance(inputs, Bundle) else Bundle((inputs,))


def _flat(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [tensor.float() for tensor in values if isinstance(tensor, Tensor)]
