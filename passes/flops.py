"""Multiply-adds node by node."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from subprune_fx.bundle import Inputs
from subprune_fx.frontends import fx_recurrent
from subprune_fx.frontends.onnx_flops import multiply_adds
from subprune_fx.frontends.onnx_op import OnnxOp

T = TypeVar("T")

Counts = dict[str, tuple[int, tuple[int, ...]]]
"""By node name: multiply-adds for one sample, and the shape of its value, or of the first of several."""


def flops(graph_module: fx.GraphModule, example: Inputs) -> Counts:
    """Nodes that multiply and add, by PyTorch's own count (two of its operations each), and recurrent layers."""
    counter = _Counter(graph_module, len(example))
    with torch.no_grad():
        counter.run(example)
    return counter.found


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and its multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - imports triton: a second

    mode = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    mode.mod_tracker = _Anywhere()  # type: ignore[assignment]
    with mode:
        value = run()
    return value, mode.get_total_flops() // 2


class _Anywhere(contextlib.nullcontext[None]):
    """In place of what tells torch's counter in which module it is, and fails where a layer is given a parameter."""

    parents = frozenset({"Global"})


def _one_library_call(x: torch.Size, inputs: torch.Size, state: torch.Size, *_: Any, **__: Any) -> int:
    """Operations of a recurrent layer in one direction: each step of each sample meets both of its weights."""
    return 2 * math.prod(x[:-1]) * (inputs.numel() + state.numel())


def _all_layers(x: torch.Size, weights: list[torch.Size], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * sum(weight.numel() for weight in weights if len(weight) == 2)


_UNCOUNTED = {torch.ops.aten.mkldnn_rnn_layer: _one_library_call, torch.ops.aten._cudnn_rnn: _all_layers}  # noqa: SLF001
"""Operators that torch's counter does not know, and what they cost, in its operations."""


class _Counter(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, samples: int) -> None:
        super().__init__(graph_module)
        self.samples = samples
        self.found: Counts = {}

    def run_node(self, n: fx.Node) -> Any:
        operands: Any = fx.node.map_arg(n.args, lambda used: self.env[used])
        value, total = counted(functools.partial(super().run_node, n))
        if n.target is fx_recurrent.recurrent:
            total = fx_recurrent.multiply_adds(operands[0], operands[2])
        elif isinstance(n.target, OnnxOp):
            total = multiply_adds(n.target.op_type, operands, value, str(n.kwargs.get("equation", "")))
        count = total // self.samples
        made = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        if count and made:
            self.found[n.name] = (count, tuple(made[0].shape))
        return value
