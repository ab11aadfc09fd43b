"""Graphs inside of ONNX nodes: the branches of an If, the bodies of a Loop or a Scan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def inner(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """Graphs that an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all inside of its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for held in inner(attribute):
                yield from graphs(held)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers, and tensors that are attributes (Constant nodes), of `graphs`."""
    for part in graphs(graph):
        yield from part.initializer
        yield from (a.t for node in part.node for a in node.attribute if a.HasField("t"))
