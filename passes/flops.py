"""Multiply-adds node by node."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from subprune_fx.bundle import Inputs
from subprune_fx.frontends.onnx_flops import multiply_adds
from subprune_fx.frontends.onnx_op import OnnxOp

T = TypeVar("T")

Counts = dict[str, tuple[int, tuple[int, ...]]]
"""By node name: multiply-adds for one sample, and the shape of its value."""


def flops(graph_module: fx.GraphModule, example: Inputs) -> Counts:
    """Nodes that multiply and add, by PyTorch's own count (a multiply-add is two of its operations)."""
    counter = _Counter(graph_module, len(example))
    with torch.no_grad():
        counter.run(example)
    return counter.found


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and its multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - imports triton: a second

    with FlopCounterMode(display=False) as mode:
        value = run()
    return value, mode.get_total_flops() // 2


class _Counter(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, samples: int) -> None:
        super().__init__(graph_module)
        self.samples = samples
        self.found: Counts = {}

    def run_node(self, n: fx.Node) -> Any:
        operands = fx.node.map_arg(n.args, lambda used: self.env[used])
        value, total = counted(functools.partial(super().run_node, n))
        if isinstance(n.target, OnnxOp):
            total = multiply_adds(n.target.op_type, operands, value)
        count = total // self.samples
        if count and isinstance(value, Tensor):
            self.found[n.name] = (count, tuple(value.shape))
        return value
