"""Forward passes in a lower precision; what they compute is handed on in float32, and moments stay what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from subprune_fx.bundle import device_of
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.frontends.onnx_source import source_of
from subprune_fx.option_values import DEFAULT_PRECISION


def _bf16(kind: str) -> AbstractContextManager[Any]:
    return torch.autocast(kind, torch.bfloat16)


@contextlib.contextmanager
def _tf32(kind: str) -> Iterator[None]:
    del kind
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


WITHIN: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "float32": lambda _: contextlib.nullcontext(),
    "bf16": _bf16,
    "tf32": _tf32,
}
"""By precision: in what nodes run, given the kind of device; keys as `subprune_fx.option_values.PRECISIONS`."""


class Forward(fx.Interpreter):
    """Runs a network's nodes in the precision that it is to be run in."""

    def __init__(self, network: FxNetwork, module: fx.GraphModule | None = None) -> None:
        """Set up.

        Args:
            network: The analysed network.
            module: What to run in its place.
        """
        super().__init__(network.graph_module if module is None else module)
        self._plain = network.precision == DEFAULT_PRECISION
        self._within, self._kind = WITHIN[network.precision], device_of(network.graph_module).type

    def run_node(self, n: fx.Node) -> Any:
        """Run one node.

        Returns:
            Its value; bfloat16 becomes float32.
        """
        if self._plain:
            return super().run_node(n)
        with self._within(self._kind):
            found = super().run_node(n)
        return pytree.tree_map_only(Tensor, _wide, found)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


def check_precision(precision: str, module: fx.GraphModule) -> None:
    """Refuse a precision that the network cannot be run in.

    Raises:
        SubpruneError: It cannot.
    """
    if precision == DEFAULT_PRECISION:
        return
    if source_of(module) is not None:
        what = f"onnxruntime runs the network as it is, and not in {precision}"
        raise SubpruneError(what, remedy="leave the precision out, or start from the PyTorch network")
    if precision == "tf32" and device_of(module).type != "cuda":
        raise SubpruneError("TF32 is a precision of NVIDIA GPUs, and the network is not on one", remedy="use bf16")
