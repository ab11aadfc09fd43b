"""Other programs on the same networks: Torch-Pruning 1.6 and onnxsim 0.8, at the least pruning that meets the ratio.

    pip install torch-pruning==1.6.* onnxsim==0.8.* --no-deps

Both take one fraction for all layers; it is raised until the parameters are few enough. onnxsim prunes only what its
patterns match (no channels that are flattened into a linear layer), so it may not get there.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from subprune_fx.passes.summary import cost

STEPS = 12
"""Bisections of the fraction: to 1 / 4096."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What a rival made.

    Attributes:
        run: From inputs to class scores.
        ratio: Parameters before over after.
        speedup: Multiply-adds before over after; NaN where it was not counted.
        module: The network, where it is PyTorch's.
    """

    run: Callable[[Tensor], Tensor]
    ratio: float
    speedup: float
    module: nn.Module | None = None


def torch_pruning(network: nn.Module, calibration: Tensor, ratio: float) -> Pruned:
    """Group L2 norms, the same fraction of every layer (the library's default), the classifier's outputs kept."""
    import torch_pruning as tp  # noqa: PLC0415 - an optional rival

    example = calibration[:1]
    before = cost(network, example)

    def at(fraction: float) -> nn.Module:
        smaller = copy.deepcopy(network)
        last = [module for module in smaller.modules() if isinstance(module, nn.Linear)][-1]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.BasePruner(smaller, example, importance, pruning_ratio=fraction, ignored_layers=[last]).step()
        return smaller.eval()

    smaller = least(at, lambda module: cost(module, example).parameters, before.parameters / ratio)
    after = cost(smaller, example)
    return Pruned(smaller, before.parameters / after.parameters, before.flops / after.flops, smaller)


def torch_pruning_bn(network: nn.Module, calibration: Tensor, ratio: float) -> Pruned:
    """The same, with the BatchNorm statistics taken anew on the calibration inputs."""
    pruned = torch_pruning(network, calibration, ratio)
    assert pruned.module is not None
    recalibrate(pruned.module, calibration)
    return pruned


def recalibrate(network: nn.Module, inputs: Tensor) -> None:
    """Running means and variances of every BatchNorm over `inputs`, the batches averaged."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in torch.split(inputs, 128):
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def onnxsim_l2(network: nn.Module, calibration: Tensor, ratio: float) -> Pruned:
    """`onnxsim.apply_structured_pruning` on the exported network."""
    from onnxsim import pruning  # noqa: PLC0415 - an optional rival

    return _onnx(network, calibration, ratio, pruning.apply_structured_pruning)


def onnxsim_wanda(network: nn.Module, calibration: Tensor, ratio: float) -> Pruned:
    """`onnxsim.apply_structured_wanda_pruning`, calibrated on the same inputs."""
    from onnxsim import pruning  # noqa: PLC0415 - an optional rival

    def prune(model: onnx.ModelProto, fraction: float) -> onnx.ModelProto:
        batches = [{model.graph.input[0].name: batch.numpy()} for batch in torch.split(calibration, 128)]
        pruned: onnx.ModelProto = pruning.apply_structured_wanda_pruning(model, batches, sparsity=fraction)
        return pruned

    return _onnx(network, calibration, ratio, prune)


def _onnx(
    network: nn.Module, calibration: Tensor, ratio: float, prune: Callable[[onnx.ModelProto, float], onnx.ModelProto]
) -> Pruned:
    first = next(iter(inspect.signature(network.forward).parameters))
    dynamic = {first: {0: torch.export.Dim("n")}}
    program = torch.onnx.export(network, (calibration[:2],), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    exported = program.model_proto

    def at(fraction: float) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(exported)
        return prune(model, fraction)

    smaller = least(at, weights, weights(exported) / ratio)
    session = onnxruntime.InferenceSession(smaller.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))

    return Pruned(run, weights(exported) / weights(smaller), float("nan"))


def weights(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initialisers."""
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def least(at: Callable[[float], Any], size: Callable[[Any], int], target: float) -> Any:
    """What the least fraction gives that is small enough; what the largest gives where none is."""
    low, high = 0.0, 1 - 2.0**-STEPS
    found = at(high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        tried = at(middle)
        if size(tried) <= target:
            high, found = middle, tried
        else:
            low = middle
    return found


RIVALS: dict[str, Callable[[nn.Module, Tensor, float], Pruned]] = {
    "torch-pruning": torch_pruning,
    "torch-pruning-bn": torch_pruning_bn,
    "onnxsim": onnxsim_l2,
    "onnxsim-wanda": onnxsim_wanda,
}
