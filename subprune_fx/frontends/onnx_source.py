"""The ONNX model that an fx graph was made of, and which of its tensors and nodes are where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx
from torch import Tensor, nn

META = "onnx"
"""Key in `GraphModule.meta` under which an imported graph keeps its `Source`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The ONNX model that an fx graph was made of.

    Attributes:
        model: The model, external data loaded.
        tensors: By parameter or buffer of the graph module, the name of the ONNX constant; several may share one.
        nodes: By fx node name, the position of the ONNX node; that of a fused one is the position of several.
        places: By fx node name, for those of a fused node, where their operands are among its own; -1: nowhere.
        values: By ONNX tensor name, the fx node that yields it, or (node, position) for one of several outputs.
        attributes: By fx node name, the attributes that the node had before anything was pruned.
        batch: The only batch size that the graph runs with; None for any.
        settled: Whether that has been found out.
        biases: Buffers, zeros at first, that nodes without a bias read as theirs: an intercept may go there.
        size: Bytes of the file that it was read from, external data included; 0: it was none.
        lists: Names of fx nodes that list channels where the file's nodes shuffle them.
        narrow: By fx node name and operand, the tensor that it reads where the file's node reads it expanded.
    """

    model: onnx.ModelProto
    tensors: dict[str, str]
    nodes: dict[str, int]
    values: dict[str, str | tuple[str, int]]
    attributes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    batch: int | None = None
    settled: bool = False
    biases: frozenset[str] = frozenset()
    size: int = 0
    places: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    narrow: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)

    def tensor(self, node: str) -> str:
        """The tensor of the file that an fx node yields; empty: none, it is a step of a fused node."""
        graph = self.model.graph
        own = {*(value.name for value in graph.input), *(name for step in graph.node for name in step.output)}
        return next((name for name, found in self.values.items() if found == node and name in own), "")

    def place(self, node: str, operand: int) -> int:
        """Where an operand of an fx node is among those of its ONNX node; -1: nowhere."""
        found = self.places.get(node)
        return operand if found is None or operand >= len(found) else found[operand]

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        """Itself: nobody changes it, and the model is as large as the network."""
        del memo
        return self


def source_of(module: nn.Module) -> Source | None:
    """The ONNX model that `module` came from, if it did."""
    found = getattr(module, "meta", {}).get(META)
    return found if isinstance(found, Source) else None


def tensor_of(source: Source, name: str, environment: Mapping[str, Any]) -> Any:
    """The value of an ONNX tensor, given the values of fx nodes by name."""
    found = source.values.get(name)
    if isinstance(found, tuple):
        value = environment.get(found[0])
        return None if value is None else value[found[1]]
    value = environment.get(found) if found is not None else None
    return value if isinstance(value, (Tensor, int, tuple)) else None
