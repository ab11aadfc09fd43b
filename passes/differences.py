"""How much two evaluations of a network differ, output by output, and how much they may.

Each output is compared on a scale of its own: a detector's scores go from 0 to 1, the boxes beside them to 640.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs, arguments, call, in_double

Array = npt.NDArray[Any]

FLOOR, CEILING = 1e-4, 1e-2
"""Least and largest difference that may be allowed, as a fraction of the output's scale."""
SAFETY = 10.0
"""How many times the rounding that was measured is allowed, see `tolerances_of`."""
LEAST = 1e-2
"""An output counts as at least this fraction of the largest one: what is left where large values cancel (zeros, say)
has no scale but theirs. At `FLOOR` that allows 1e-6 of the largest output, about ten roundings of float32."""
UNIT = 4 * float(np.finfo(np.float32).eps)
"""What probabilities may differ by, however small they are: onnxruntime approximates a sigmoid to a rounding or two of
the 1 that it is a part of, so that a rare event's 1e-4 is off by a thousandth."""


@dataclasses.dataclass
class Difference:
    """How much one output differs, over all batches. Integers (classes, positions) agree or not: their share counts.

    Attributes:
        whole: Whether it holds integers or flags.
        worst: The largest absolute difference; of integers the largest share of a batch that differs.
        scale: The largest absolute value; of integers 1.
        unit: Whether all values are numbers between 0 and 1, as those of probabilities are.
    """

    whole: bool
    worst: float = 0.0
    scale: float = 0.0
    unit: bool = True

    def add(self, got: Array, wanted: Array) -> None:
        """Another batch, in the same shape."""
        self.worst = max(self.worst, _share(got, wanted) if self.whole else _difference(got, wanted))
        self.scale = 1.0 if self.whole else max(self.scale, _largest(wanted))
        self.unit &= not self.whole and bool(((wanted >= 0) & (wanted <= 1)).all())


def differences(outputs: Sequence[Array]) -> list[Difference]:
    """A difference for each output; nothing is compared yet."""
    return [Difference(output.dtype.kind in "biu") for output in outputs]


def scales(found: Sequence[Difference]) -> list[float]:
    """By output, what differences are relative to."""
    largest = max((one.scale for one in found if not one.whole), default=0.0)
    return [one.scale if one.whole else max(one.scale, LEAST * largest) for one in found]


def limits(found: Sequence[Difference], tolerances: Sequence[float]) -> list[float]:
    """By output, what it may differ by, from what it may as a fraction of its scale."""
    each = zip(found, tolerances, scales(found), strict=True)
    return [max(tolerance * scale, UNIT if one.unit else 0.0) for one, tolerance, scale in each]


def tolerances_of(module: nn.Module, inputs: Inputs) -> list[float]:
    """By output, how far two correct float32 evaluations of a network may differ, as a fraction of its scale.

    Runtimes sum in different orders and fold BatchNorm. A sum of n terms is then off by about sqrt(n) *
    2**-24 of its scale (n at worst), and L layers add up: sqrt(56 * 4608) * 6e-8 = 3e-5 for the deepest and
    widest networks at hand. `FLOOR`, 1e-4, is above that. A network may amplify rounding (saturated softmax,
    tiny variances, logarithms); how much is measured, as the distance of torch's float32 from its float64, times
    `SAFETY`. Operators of ONNX have no float64: there it is the distance from the same graph with every value off by a
    rounding. A wiring fault moves the output by its own scale, hence `CEILING`.

    Args:
        module: The network.
        inputs: A few inputs.

    Returns:
        Each between `FLOOR` and `CEILING`; none where this cannot be measured.
    """
    try:
        with torch.no_grad():
            exact, plain = arrays(_reference(module, inputs)), arrays(call(module, inputs))
    except Exception:  # noqa: BLE001 - a constant that stays float32 in what is no graph: no such measure
        return []
    found = differences(plain)
    for one, a, b in zip(found, plain, exact, strict=True):
        if a.shape != b.shape:
            return []
        one.add(a, b)
    return [_clipped(one.worst / scale) if scale else FLOOR for one, scale in zip(found, scales(found), strict=True)]


def _reference(module: nn.Module, inputs: Inputs) -> Any:
    """Outputs in float64; where there is none, those of other roundings."""
    try:
        return call(copy.deepcopy(module).double(), in_double(inputs))
    except Exception:  # noqa: BLE001 - a constant that stays float32, an op without float64
        return _rounded_otherwise(module, inputs)


def _rounded_otherwise(module: nn.Module, inputs: Inputs) -> Any:
    """Outputs of a graph with all that it computes, and is given, off by up to one place of float32.

    Raises:
        TypeError: It is no graph.
    """
    if not isinstance(module, fx.GraphModule):
        message = f"{type(module).__name__} is no graph"
        raise TypeError(message)
    positional, named = arguments(inputs)
    holders = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    return _Rounding(module).run(*positional, *(named[name] for name in holders[len(positional) :]))


class _Rounding(fx.Interpreter):
    """Moves every value that depends on the inputs; lists (the scales of a Resize) say what is computed, and stay."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return value if n.op in ("get_attr", "output") else pytree.tree_map_only(Tensor, self._off, value)

    def _off(self, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or not tensor.is_floating_point():
            return tensor
        share = 2 * torch.rand(tensor.shape, generator=self._generator) - 1
        return tensor * (1 + share * torch.finfo(torch.float32).eps).to(tensor)


def _clipped(rounding: float) -> float:
    return float(np.clip(SAFETY * rounding, FLOOR, CEILING)) if np.isfinite(rounding) else FLOOR


def arrays(value: Any) -> list[Array]:
    """The tensors of a network's output, of a run without gradients."""
    return [leaf.numpy() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _share(a: Array, b: Array) -> float:
    return float(np.mean(a != b)) if b.size else 0.0


def _difference(a: Array, b: Array) -> float:
    left, right = a.astype(np.float64), b.astype(np.float64)
    apart = left != right  # equal infinities (masked scores) differ by nothing
    difference = float(np.max(np.abs(left[apart] - right[apart]), initial=0.0))
    return difference if np.isfinite(difference) else np.inf  # max() would pass over a NaN


def _largest(array: Array) -> float:
    return max(float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0)), float(np.finfo(np.float32).tiny))
