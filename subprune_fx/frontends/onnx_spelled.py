"""Operators into which onnxruntime fuses several, spelled out: for the import alone, the file keeps its own nodes.

Its optimiser writes a convolution and the activation behind it as one node. What is fitted, and to what, is the
convolution; so the graph has them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

MICROSOFT = "com.microsoft"
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
    ranks = _ranks(model.graph)
    spellings = [_spell(node, opset, ranks) for node in model.graph.node]
    if not any(spellings):
        return model, [Origin(position) for position in range(len(spellings))]
    nodes: list[onnx.NodeProto] = []
    origins: list[Origin] = []
    for position, (node, steps) in enumerate(zip(model.graph.node, spellings, strict=True)):
        places = {name: place for place, name in reversed(list(enumerate(node.input))) if name}
        nodes += steps or [node]
        origins += [Origin(position, tuple(places.get(name, -1) for name in step.input)) for step in steps]
        origins += [] if steps else [Origin(position)]
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin, origins


_NAMED = ("Conv", "Gemm", "MatMul")


class Steps:
    """Nodes that take the place of one."""

    def __init__(self, node: onnx.NodeProto, opset: int, ranks: Mapping[str, int]) -> None:
        self.node = node
        self.opset = opset
        self.ranks = ranks
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes: list[onnx.NodeProto] = []

    def input(self, place: int) -> str:
        """Name of an operand; empty: left out."""
        return self.node.input[place] if len(self.node.input) > place else ""

    def output(self, place: int) -> str:
        """Name of a result; empty: left out."""
        return self.node.output[place] if len(self.node.output) > place else ""

    def add(
        self, op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any], result: str = "", domain: str = ""
    ) -> str:
        """One more node; a contraction is called like the one that is spelled."""
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        own = op_type in _NAMED or not self.node.name
        name = self.node.name if own else f"{self.node.name}_{op_type}"
        result = result or f"{self.node.output[0]}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, given, [result], name=name, domain=domain, **attributes))
        return result

    def constant(self, value: float) -> str:
        """A number as a tensor."""
        result = f"{self.node.output[0]}/{len(self.nodes)}"
        self.nodes.append(helper.make_node("Constant", [], [result], value_float=value))
        return result

    def activated(self, x: str, kind: str, numbers: Sequence[float]) -> bool:
        """An activation as the last node; whether it is known."""
        if kind == "Clip" and len(numbers) == 2 and self.opset >= _CLIP:
            self.add("Clip", [x, *map(self.constant, numbers)], {}, self.node.output[0])
            return True
        if kind not in _ACTIVATIONS:
            return False
        self.add(kind, [x], dict(zip(_ACTIVATIONS[kind], numbers, strict=False)), self.node.output[0])
        return True


_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
}
"""What they are called in fused nodes: their attributes, in the order of a node's parameters."""


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """Numbers of dimensions, as far as they are stated."""
    stated = [value for value in (*graph.input, *graph.value_info) if value.type.tensor_type.HasField("shape")]
    found = {value.name: len(value.type.tensor_type.shape.dim) for value in stated}
    return found | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _spell(node: onnx.NodeProto, opset: int, ranks: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Nodes in place of one; none where it stays."""
    rule = _RULES.get(node.op_type) if node.domain == MICROSOFT else None
    steps = Steps(node, opset, ranks)
    return steps.nodes if rule is not None and rule(steps) else []


def _conv(steps: Steps) -> bool:
    """A convolution, perhaps plus another tensor, and an activation."""
    own = ("activation", "activation_params")
    rest = {name: value for name, value in steps.attributes.items() if name not in own}
    x, other = steps.add("Conv", steps.node.input[:3], rest), steps.input(3)
    if other:
        x = steps.add("Add", [x, other], {})
    kind = steps.attributes.get("activation", b"").decode()
    return steps.activated(x, kind, steps.attributes.get("activation_params", ()))


def _gemm(steps: Steps) -> bool:
    rest = {name: value for name, value in steps.attributes.items() if not name.startswith("activation")}
    numbers = [steps.attributes.get(f"activation_{name}") for name in ("alpha", "beta")]
    x = steps.add("Gemm", steps.node.input, rest)
    kind = steps.attributes.get("activation", b"").decode()
    return steps.activated(x, kind, [value for value in numbers if value is not None])


def _matmul(steps: Steps) -> bool:
    """A scaled product, the last two dimensions of either factor swapped; not one that moves the batch too."""
    given, factors = steps.attributes, list(steps.node.input)
    swapped = [place for place, name in enumerate(("transA", "transB")) if given.get(name)]
    if any(given.get(name) for name in ("transBatchA", "transBatchB")):
        return False
    if any(steps.ranks.get(factors[place], 0) < 2 for place in swapped):
        return False
    for place in swapped:
        rank = steps.ranks[factors[place]]
        factors[place] = steps.add("Transpose", [factors[place]], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
    scale = given.get("alpha", 1.0)
    x = steps.add("MatMul", factors, {}, "" if scale != 1 else steps.node.output[0])
    if scale != 1:
        steps.add("Mul", [x, steps.constant(scale)], {}, steps.node.output[0])
    return True


def _biased(steps: Steps) -> bool:
    """An activation of a sum with a bias."""
    if not steps.input(1):
        return False
    x = steps.add("Add", steps.node.input[:2], {})
    kind = {"BiasGelu": "Gelu"}.get(steps.node.op_type, steps.node.op_type)
    steps.add(kind, [x], {}, steps.node.output[0], MICROSOFT)
    return True


def _skip(steps: Steps) -> bool:
    """A normalised sum; its statistics are no results that can be spelled, the sum is."""
    centred = steps.node.op_type == "SkipLayerNormalization"
    x, other, scale, shift = (steps.input(place) for place in range(4))
    bias = steps.input(4) if centred else shift
    if steps.output(1) or steps.output(2):
        return False
    if bias:
        x = steps.add("Add", [x, bias], {})
    x = steps.add("Add", [x, other], {}, steps.output(3))
    norm = "LayerNormalization" if centred else "SimplifiedLayerNormalization"
    attributes = {"axis": -1, "epsilon": steps.attributes.get("epsilon", 1e-5)}
    steps.add(norm, [x, scale, shift if centred else ""], attributes, steps.node.output[0])
    return True


_RULES: Mapping[str, Callable[[Steps], bool]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), _matmul),
    **dict.fromkeys(("BiasGelu", "FastGelu"), _biased),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip),
}
"""By operator: what adds the steps, and says whether it could."""
