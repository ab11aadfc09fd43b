"""Operators that stand for several, spelled out: for the import alone, the file keeps its own nodes.

onnxruntime's optimiser writes a convolution and the activation behind it as one node. What is fitted, and to what, is
the convolution; so the graph has them apart. The same goes for the scales of a Gemm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from subprune_fx.frontends.einsum import pairs, single

MICROSOFT = "com.microsoft"
_EPSILON = 1e-12
"""What is added to variances where a node says nothing."""
_CLIP = 11
"""Opset from which Clip takes its bounds as operands."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a node comes from.

    Attributes:
        position: Of the file's node.
        operands: For each operand its place among those of that node, -1 for none; None: all where they were.
    """

    position: int
    operands: tuple[int, ...] | None = None


def spelled(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Origin]]:
    """A model without fused nodes that computes the same, and where each of its nodes comes from.

    Args:
        model: Stays as it is; it is returned where nothing in it is fused.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    shapes = _shapes(model.graph)
    spellings = [_spell(node, opset, shapes) for node in model.graph.node]
    if not any(spellings):
        return model, [Origin(position) for position in range(len(spellings))]
    nodes: list[onnx.NodeProto] = []
    origins: list[Origin] = []
    for position, (node, steps) in enumerate(zip(model.graph.node, spellings, strict=True)):
        nodes += [node] if steps is None else steps.nodes
        origins += [Origin(position)] if steps is None else [Origin(position, places) for places in steps.places]
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin, origins


Shape = tuple[int, ...]
_NAMED = ("Conv", "Gemm", "MatMul")


Operand = int | str
"""What a step reads: an operand of the node that is spelled, by its place, or the result of an earlier step."""


class Steps:
    """Nodes that take the place of one.

    Attributes:
        node: The one.
        opset: Of ONNX's own operators.
        shapes: Of tensors, as far as they are stated.
        attributes: The node's.
        nodes: Those that take its place.
        places: For each of them, where its operands are among those of the one; -1: nowhere.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, shapes: Mapping[str, Shape]) -> None:
        self.node = node
        self.opset = opset
        self.shapes = shapes
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes: list[onnx.NodeProto] = []
        self.places: list[tuple[int, ...]] = []

    def name(self, operand: Operand) -> str:
        """Of an operand; empty: left out."""
        if isinstance(operand, str):
            return operand
        return self.node.input[operand] if len(self.node.input) > operand else ""

    def output(self, place: int) -> str:
        """Name of a result; empty: left out."""
        return self.node.output[place] if len(self.node.output) > place else ""

    def add(
        self, op_type: str, inputs: Sequence[Operand], domain: str = "", result: str = "", **attributes: Any
    ) -> str:
        """One more node; a contraction is called like the one that is spelled."""
        given = list(inputs)
        while given and not self.name(given[-1]):
            given.pop()
        own = op_type in _NAMED or not self.node.name
        name = self.node.name if own else f"{self.node.name}_{op_type}"
        result = result or f"{self.node.output[0]}/{len(self.nodes)}"
        names = [self.name(operand) for operand in given]
        self.nodes.append(helper.make_node(op_type, names, [result], name, domain=domain, **attributes))
        self.places.append(tuple(operand if isinstance(operand, int) else -1 for operand in given))
        return result

    def constant(self, value: float) -> str:
        """A number as a tensor."""
        return self.add("Constant", [], value_float=value)

    def scaled(self, x: Operand, factor: float) -> Operand:
        """A tensor times a number."""
        return x if factor == 1 else self.add("Mul", [x, self.constant(factor)])

    def activated(self, x: Operand, kind: str, numbers: Sequence[float]) -> bool:
        """An activation; whether it is known."""
        if kind == "Clip" and len(numbers) == 2 and self.opset >= _CLIP:
            self.add("Clip", [x, *map(self.constant, numbers)])
        elif kind in _ACTIVATIONS:
            given: dict[str, Any] = dict(zip(_ACTIVATIONS[kind], numbers, strict=False))
            self.add(kind, [x], **given)
        else:
            return False
        return True


_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
}
"""What they are called in fused nodes: their attributes, in the order of a node's parameters."""


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Of tensors, as far as they are stated; a size that is none is 0."""
    stated = [value for value in (*graph.input, *graph.value_info) if value.type.tensor_type.HasField("shape")]
    found = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in stated}
    held = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute}
    tensors = held | {tensor.name: tensor for tensor in graph.initializer}
    return found | {name: tuple(tensor.dims) for name, tensor in tensors.items()}


def _spell(node: onnx.NodeProto, opset: int, shapes: Mapping[str, Shape]) -> Steps | None:
    """Nodes in place of one; None where it stays."""
    rule = _RULES.get(node.domain, {}).get(node.op_type)
    steps = Steps(node, opset, shapes)
    if rule is None or not rule(steps):
        return None
    steps.nodes[-1].output[0] = node.output[0]
    return steps


def _conv(steps: Steps) -> bool:
    """A convolution, perhaps plus another tensor, and an activation."""
    own = ("activation", "activation_params")
    rest = {name: value for name, value in steps.attributes.items() if name not in own}
    x = steps.add("Conv", [0, 1, 2], **rest)
    x = steps.add("Add", [x, 3]) if steps.name(3) else x
    kind = steps.attributes.get("activation", b"").decode()
    return steps.activated(x, kind, steps.attributes.get("activation_params", ()))


def _fused_gemm(steps: Steps) -> bool:
    """A Gemm and an activation."""
    numbers = [steps.attributes.get(f"activation_{name}") for name in ("alpha", "beta")]
    kind = steps.attributes.get("activation", b"").decode()
    return steps.activated(_gemm(steps), kind, [value for value in numbers if value is not None])


def _scaled_gemm(steps: Steps) -> bool:
    """A Gemm that is more than a layer."""
    if _is_layer(steps) and not steps.attributes.get("transA"):
        return False
    _gemm(steps)
    return True


def _gemm(steps: Steps) -> Operand:
    """A Gemm as a layer, its scales and what it adds apart where they are more than a bias."""
    given = steps.attributes
    left: Operand = steps.add("Transpose", [0], perm=[1, 0]) if given.get("transA") else 0
    if _is_layer(steps):
        return steps.add("Gemm", [left, 1, 2], transB=given.get("transB", 0))
    right: Operand = steps.add("Transpose", [1], perm=[1, 0]) if given.get("transB") else 1
    x = steps.scaled(steps.add("MatMul", [left, right]), given.get("alpha", 1.0))
    return steps.add("Add", [x, steps.scaled(2, given.get("beta", 1.0))]) if steps.name(2) else x


def _is_layer(steps: Steps) -> bool:
    """Whether a Gemm scales nothing, and adds one number for each neuron or nothing."""
    given, added = steps.attributes, steps.shapes.get(steps.name(2))
    if given.get("alpha", 1.0) != 1 or (steps.name(2) and given.get("beta", 1.0) != 1):
        return False
    neurons = steps.shapes.get(steps.name(1), (0, 0))[0 if given.get("transB") else 1]
    return added is None or (added[-1:] == (neurons,) and all(size == 1 for size in added[:-1]))


def _matmul(steps: Steps) -> bool:
    """A scaled product, the last two dimensions of either factor swapped; not one that moves the batch too."""
    given = steps.attributes
    if given.get("transBatchA") or given.get("transBatchB"):
        return False
    factors: list[Operand] = [0, 1]
    for place, name in enumerate(("transA", "transB")):
        rank = len(steps.shapes.get(steps.name(place), ()))
        if given.get(name) and rank < 2:
            return False
        if given.get(name):
            factors[place] = steps.add("Transpose", [place], perm=[*range(rank - 2), rank - 1, rank - 2])
    steps.scaled(steps.add("MatMul", factors), given.get("alpha", 1.0))
    return True


def _biased(steps: Steps) -> bool:
    """An activation of a sum with a bias."""
    if not steps.name(1):
        return False
    steps.add(steps.node.op_type.removeprefix("Bias"), [steps.add("Add", [0, 1])], MICROSOFT)
    return True


def _skip(steps: Steps) -> bool:
    """A normalised sum; its statistics are no results that can be spelled, the sum is."""
    centred = steps.node.op_type == "SkipLayerNormalization"
    bias = 4 if centred else 3
    if steps.output(1) or steps.output(2):
        return False
    x: Operand = steps.add("Add", [0, bias]) if steps.name(bias) else 0
    x = steps.add("Add", [x, 1], result=steps.output(3))
    norm, parameters = ("LayerNormalization", [2, 3]) if centred else ("SimplifiedLayerNormalization", [2])
    steps.add(norm, [x, *parameters], axis=-1, epsilon=steps.attributes.get("epsilon", _EPSILON))
    return True


def _filled(steps: Steps) -> bool:
    """Floating-point numbers that are all the same: one of them, repeated."""
    given = steps.attributes.get("value")
    one = np.zeros((), np.float32) if given is None else numpy_helper.to_array(given).reshape(())
    if one.dtype.kind != "f":
        return False
    value = steps.add("Constant", [], value=numpy_helper.from_array(one))
    steps.add("Expand", [value, 0])
    return True


def _einsum(steps: Steps) -> bool:
    """A product of three tensors and more, or one in another order."""
    equation = steps.attributes["equation"].decode()
    summed, order = single(equation) or ([], [])
    if order and not summed:
        steps.add("Transpose", [0], perm=order)
        return True
    products = pairs(equation)
    found: Operand = 0
    for factor, equation in enumerate(products, 1):
        found = steps.add("Einsum", [found, factor], equation=equation)
    return bool(products)


_RULES: Mapping[str, Mapping[str, Callable[[Steps], bool]]] = {
    "": {"Gemm": _scaled_gemm, "ConstantOfShape": _filled, "Einsum": _einsum},
    MICROSOFT: {
        "FusedConv": _conv,
        "FusedGemm": _fused_gemm,
        **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), _matmul),
        **dict.fromkeys(("BiasGelu", "FastGelu"), _biased),
        **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip),
    },
}
"""By domain and operator: what adds the steps, and says whether it could."""
