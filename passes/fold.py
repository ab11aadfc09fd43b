"""Merge BatchNorm layers into the convolutions before them.

    y = gamma (W * x + b - mean) / sqrt(var + eps) + beta   ->   y = W' * x + b'

ONNX files hold them merged either way: the exporter's optimiser does it at the end. Merged before, there is less to
capture, decompose and optimise, which is most of the time that an export takes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from subprune_fx.frontends.calls import is_hooked

CONVOLUTIONS: dict[type[nn.Module], bool] = {
    nn.Conv1d: False,
    nn.Conv2d: False,
    nn.Conv3d: False,
    nn.ConvTranspose1d: True,
    nn.ConvTranspose2d: True,
    nn.ConvTranspose3d: True,
}
"""Whether the weight's output channels come second."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(module: nn.Module) -> nn.Module:
    """The network with BatchNorm merged into convolutions whose only reader it is.

    Args:
        module: In eval mode; unchanged.

    Returns:
        A graph module that shares the other layers with `module`; `module` itself where it cannot be traced or has
        nothing to merge.
    """
    traced = _traced(module)
    if traced is None:
        return module
    before = len(traced.graph.nodes)
    modules = dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in traced.graph.nodes if node.op == "call_module")
    for norm in list(traced.graph.nodes):
        convolution = norm.args[0] if norm.op == "call_module" and norm.args else None
        if not isinstance(convolution, fx.Node) or convolution.op != "call_module" or len(convolution.users) > 1:
            continue
        pair = modules[str(convolution.target)], modules[str(norm.target)]
        if not _fit(*pair) or any(calls[id(one)] > 1 for one in pair):
            continue
        traced.set_submodule(str(convolution.target), _merged(*pair))
        norm.replace_all_uses_with(convolution)
        traced.graph.erase_node(norm)
    if len(traced.graph.nodes) == before:
        return module
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _traced(module: nn.Module) -> fx.GraphModule | None:
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule(module, copy.deepcopy(module.graph))
    try:
        return fx.symbolic_trace(module)
    except Exception:  # noqa: BLE001 - whatever the author's code raises
        return None


def _fit(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether they are plain layers of torch, without hooks, that its own merging can do."""
    if type(convolution) not in CONVOLUTIONS or type(norm) not in NORMS:
        return False
    if CONVOLUTIONS[type(convolution)] and convolution.groups != 1:  # torch takes the weight for an ungrouped one
        return False
    hooked = is_hooked(convolution) or is_hooked(norm)
    return not norm.training and getattr(norm, "running_mean", None) is not None and not hooked


def _merged(convolution: nn.Module, norm: nn.Module) -> nn.Module:
    fuse: Callable[..., nn.Module] = fuse_conv_bn_eval
    return fuse(convolution, norm, transpose=CONVOLUTIONS[type(convolution)])
