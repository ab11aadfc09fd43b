"""Operators that torch runs in place of onnxruntime, because a node of its own is slow there.

onnxruntime is fast on a whole model, where it rearranges weights that never change. A grouped convolution alone, with
weights that do change, it runs group by group: measured on MobileNetV3, five sixths of the time went there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


def convolution(operands: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor | None:
    """A grouped convolution; None where onnxruntime does as well, or its padding is not spelled out.

    Args:
        operands: Input, weight, and perhaps a bias.
        attributes: As ONNX names them.
    """
    groups = int(attributes.get("group") or 1)
    x, weight, bias = (*operands, None)[:3]
    if groups == 1 or attributes.get("auto_pad") not in (None, "NOTSET") or x.dtype is not torch.float32:
        return None
    rank = x.ndim - 2
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    if pads[:rank] != pads[rank:]:
        x = functional.pad(x, [amount for d in reversed(range(rank)) for amount in (pads[d], pads[rank + d])])
        pads = [0] * rank
    stride, dilation = (list(attributes.get(name) or [1] * rank) for name in ("strides", "dilations"))
    return _CONVOLUTIONS[rank](x, weight, bias, stride, pads[:rank], dilation, groups)


NATIVE: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any]], Tensor | None]] = {"Conv": convolution}
"""By op type: a function that runs it, or says None and leaves it to onnxruntime."""
