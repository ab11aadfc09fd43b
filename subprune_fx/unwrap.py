"""The network inside of what a user gives (a compiled or parallel module), or the reason why it cannot be pruned."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from subprune_fx.errors import SubpruneError

WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Classes that only call another module, and the attribute that holds it."""

_OF_A_PROGRAM = "give its .module()"
_OF_A_SCRIPT = "give the module that it was made of, or export that to ONNX"


def network_of(model: object) -> nn.Module:
    """The network itself.

    Args:
        model: What a user gave: the network, perhaps compiled by `torch.compile` or made parallel.

    Raises:
        SubpruneError: It is no module, one whose layers cannot be changed, or has no numbers in its weights.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        remedy = _OF_A_PROGRAM if kind == "ExportedProgram" else "give one"  # torch.export takes long to import
        raise SubpruneError("is no torch.nn.Module", where=kind, remedy=remedy)
    network = model
    while (holder := WRAPPERS.get(f"{type(network).__module__}.{type(network).__qualname__}")) is not None:
        network = getattr(network, holder)
    if isinstance(network, torch.jit.ScriptModule):
        raise SubpruneError("is TorchScript, whose layers cannot be changed", where=kind, remedy=_OF_A_SCRIPT)
    script = next((name for name, part in network.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if script is not None:
        raise SubpruneError("is TorchScript, which no tracer looks into", where=script, remedy=_OF_A_SCRIPT)
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise SubpruneError("has no shape yet (a lazy module)", where=name, remedy="call the network once")
        if type(parameter) is nn.Parameter and parameter.is_meta:
            raise SubpruneError("holds no numbers (meta device)", where=name, remedy="load the weights first")
    return network
