"""ONNX in, ONNX out: what comes out equals the masked-and-reweighted original, and is the user's own file otherwise."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_conv_bn_eval

import subprune_fx
from subprune_fx.formats.load import load_model
from subprune_fx.formats.onnx_file import load_onnx
from subprune_fx.frontends.onnx_static import resolve_batch
from subprune_fx.graph.labels import survivors
from subprune_fx.numerics.transposed_reader import TransposedConvReader
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.lockstep import Lockstep
from subprune_fx.passes.onnx_rewrite import write_back
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.proof import difference
from subprune_fx.passes.scratch import Scratch

LENET = Path(__file__).parents[1] / "examples" / "lenet"


def exported(module: nn.Module, example: Tensor, *, opset: int = 17, free: bool = True, dynamo: bool = False) -> bytes:
    """A module as an ONNX file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if free else None
            program = torch.onnx.export(
                module.eval(), (example,), dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False
            )
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
        axes = {"x": {0: "batch"}, "y": {0: "batch"}} if free else None
        torch.onnx.export(
            module.eval(),
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            opset_version=opset,
            do_constant_folding=False,
        )
    return buffer.getvalue()


def prune(
    data: bytes, inputs: Tensor, ratio: float = 2.0, **options: Any
) -> tuple[Any, onnx.ModelProto, fx.GraphModule]:
    """The result, the smaller model, and the masked full-size network that it must equal."""
    module = resolve_batch(load_onnx(data, "model.onnx").module, inputs)
    pruned = subprune_fx.prune(module, inputs, ratio=ratio, budget="uniform", **options)
    model = write_back(pruned.module, inputs)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < len(data)
    return pruned, model, masked(module, inputs, pruned)


def masked(module: nn.Module, inputs: Tensor, pruned: Any) -> fx.GraphModule:
    """The original network with the plan's weights, and zeros where consumers read dropped channels."""
    network = analyse(module, inputs)
    channels, groups = network.channels, network.channels.groups
    kept = [group.units[list(made.kept)] for group, made in zip(groups, pruned.plan.decisions, strict=True)]
    alive = channels.keep(kept, groups)
    readers = {consumer.weight: consumer for consumer in channels.contractions.values()}
    new = dict(pruned.module.state_dict())
    for name, tensor in network.graph_module.state_dict().items():
        if name not in new or tensor.shape == new[name].shape:
            tensor.copy_(new.get(name, tensor))
            continue
        labels = channels.axes.get(name)
        if labels is None:
            index = survivors(channels.elements[name], alive)
        else:
            index = tuple(np.flatnonzero(alive[labels[d]]) if d in labels else None for d in range(tensor.ndim))
        if name in readers:
            reader = network.readers[readers[name].name]
            summed = 0 if isinstance(reader, TransposedConvReader) or getattr(reader, "transposed", False) else 1
            kept_inputs = index[summed]
            if kept_inputs is not None:
                dropped = np.setdiff1d(np.arange(tensor.shape[summed]), kept_inputs)
                tensor.index_fill_(summed, torch.from_numpy(dropped), 0)
        picked = [
            torch.arange(n) if i is None else torch.from_numpy(i) for i, n in zip(index, tensor.shape, strict=True)
        ]
        tensor[torch.meshgrid(*picked, indexing="ij")] = new[name]
    return network.graph_module


def run(model: onnx.ModelProto | bytes, x: Tensor) -> list[Any]:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x.numpy()}))


def test_both_roads_keep_the_same_channels() -> None:
    net = load_model(LENET / "lenet_mnist.pt", arch=f"{LENET / 'lenet.py'}:LeNet").module
    digits = torch.from_numpy(np.load(LENET / "calibration.npz")["x"])
    plain = subprune_fx.prune(net, digits, ratio=8)
    with torch.no_grad():
        want = plain.module(digits[:16]).numpy()
    for dynamo in (False, True):
        module = load_onnx(exported(net, digits[:2], dynamo=dynamo, opset=18), "lenet.onnx").module
        found = subprune_fx.prune(module, digits, ratio=8)
        assert [d.kept for d in found.plan.decisions] == [d.kept for d in plain.plan.decisions]
        assert found.report.after == plain.report.after
        model = write_back(found.module, digits[:2])
        (got,) = run(model, digits[:16])
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.depth = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)
        self.point = nn.Conv2d(12, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.up = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.head = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = F.relu(x + self.b(x))
        x = F.hardswish(self.point(self.depth(x)))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        y = F.interpolate(torch.relu(self.up(x)), scale_factor=2, mode="nearest")
        return self.head(torch.cat([x.mean((2, 3)), y.amax((2, 3))], 1))


class Shuffle(nn.Module):
    """Sizes from the input's shape, a channel shuffle, a split, a slice and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(24 * 16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.one(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        y = torch.cat([F.relu(self.two(left)), right], 1)
        y = F.avg_pool2d(y, 2)
        return self.head(y.view(y.size(0), -1))


class Stage(nn.Module):
    """Blocks that shuffle, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(block(right))], 1)
            n, c, h, w = x.shape
            x = self.turned(x.view(n, 2, c // 2, h, w)).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))

    def turned(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Einsums(Stage):
    """The same by einsum."""

    def turned(self, x: Tensor) -> Tensor:
        return torch.einsum("npchw->ncphw", x)


@pytest.mark.parametrize("net", [Residual, Shuffle, Stage, Einsums])
@pytest.mark.parametrize("dynamo", [False, True])
def test_equals_the_masked_original(net: Callable[[], nn.Module], dynamo: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8)
    pruned, model, full = prune(exported(net(), x[:2], dynamo=dynamo, opset=18), x)
    assert pruned.report.achieved >= 2
    with torch.no_grad():
        want = full(x).numpy()
    for count in (1, 3, 24):
        (got,) = run(model, x[:count])
        np.testing.assert_allclose(got, want[:count], atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("net", [Stage, Einsums])
@pytest.mark.parametrize("dynamo", [False, True])
def test_lists_take_the_place_of_shuffles_that_keep_channels(net: Callable[[], nn.Module], dynamo: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8)
    data = exported(net(), x[:2], dynamo=dynamo, opset=18)
    pruned, model, _ = prune(data, x)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("Gather") >= 4
    assert not {"Transpose", "Einsum"}.intersection(ops)
    assert [v.name for v in model.graph.output] == [v.name for v in onnx.load_from_string(data).graph.output]
    again = subprune_fx.repeat(resolve_batch(load_onnx(data, "model.onnx").module, x), pruned.plan, x)
    assert write_back(again.module, x) == model


@pytest.mark.parametrize("opset", [9, 10, 13, 20])
def test_opsets(opset: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8)
    _, model, full = prune(exported(Residual(), x[:2], opset=opset), x)
    with torch.no_grad():
        want = full(x).numpy()
    np.testing.assert_allclose(run(model, x)[0], want, atol=1e-4 * np.abs(want).max())
    assert model.opset_import[0].version == opset


@pytest.mark.parametrize("wide", [False, True])
def test_half_precision(*, wide: bool) -> None:
    """As onnxruntime's own converter leaves it: casts behind all other nodes, wherever they are read."""
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8)
    half = convert_float_to_float16(onnx.load_from_string(exported(Residual(), x[:2])), keep_io_types=wide)
    data = half.SerializeToString()
    found = subprune_fx.prune(resolve_batch(load_onnx(data, "model.onnx").module, x), x, ratio=2, budget="uniform")
    model = write_back(found.module, x)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < len(data)
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    with torch.no_grad():
        want = found.module(x).numpy()
    (got,) = run(model, x if wide else x.half())
    np.testing.assert_allclose(got, want, atol=5e-3 * np.abs(want).max())  # halves are off by 5e-4 each


class Split(Residual):
    """Branches that the sweep does not change beside some that it does, and one tensor that is split."""

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        left, right = torch.split(torch.relu(x) * 2, [5, 7], 1)
        both = torch.cat([torch.sigmoid(left), torch.tanh(right)], 1) + self.b(F.hardswish(x))
        return super().forward(x.new_ones(1) * both[:, :3]) + both.mean((2, 3))[:, :5]


@pytest.mark.parametrize("net", [Residual, Shuffle, Split, Stage])
def test_a_sweep_in_sessions_of_many_nodes_ends_with_what_single_nodes_give(net: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    module = resolve_batch(load_onnx(exported(net(), x[:2]), "model.onnx").module, x)
    last = analyse(module, x).channels.groups[-1].name
    for only in ((), (last,)):  # the rest of the network stays what it is, up to where it meets this group
        compiler = Compiler(module, x, Options(budget="uniform", batch=16, only=only))
        found, graph = compiler.compile(1.1), compiler.network.graph_module
        runs = Lockstep(graph, Scratch(compiler.network), compiler.cut(x)).stretches
        assert max(map(len, runs)) > 2
        assert sum(map(len, runs)) == len(graph.graph.nodes)
        for swept, batch in zip(found.outputs, compiler.cut(x), strict=True):
            assert difference(swept, found.module(batch)) < 1e-5


class Halves(Shuffle):
    """Halves that need not stay equal, as in the ONNX file; `chunk` in torch's code keeps them so."""

    def forward(self, x: Tensor) -> Any:
        left, right = torch.split(F.relu(self.one(x)), [8, 8], 1)
        return self.head(F.avg_pool2d(torch.cat([F.relu(self.two(left)), right], 1), 2).flatten(1))


def unfolded(net: nn.Module) -> nn.Module:
    """The same with BatchNorms that do something."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in ((module.running_var, 0.5, 2), (module.weight, 0.5, 2), (module.bias, -1, 1)):
                nn.init.uniform_(value, low, high)  # type: ignore[arg-type]
    return net.eval()


def folded(net: nn.Module) -> nn.Module:
    """BatchNorms as part of the convolution before them."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential) and isinstance(module[1], nn.BatchNorm2d):
            assert isinstance(module[0], nn.Conv2d)
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
    return net


@pytest.mark.parametrize("budget", ["output", "uniform"])
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("net", [Residual, Halves])
def test_both_roads_through_additions_and_splits(net: Callable[[], nn.Module], budget: str, *, dynamo: bool) -> None:
    """torch.export's exporter folds BatchNorm: the errors of a layer are then weighed by its scales, by either road.

    Folded weights are rounded differently, which changes what single ReLUs let through: no refits to that, then.
    """
    torch.manual_seed(0)
    made, x = unfolded(net()), torch.randn(96, 3, 8, 8)
    how: dict[str, Any] = {"ratio": 2, "budget": budget, "rounds": 0 if dynamo else 2}
    plain = subprune_fx.prune(folded(made) if dynamo else made, x, **how)
    found = subprune_fx.prune(load_onnx(exported(made, x[:2], dynamo=dynamo, opset=18), "a.onnx").module, x, **how)
    assert [d.kept for d in found.plan.decisions] == [d.kept for d in plain.plan.decisions]
    assert found.report.before.flops == plain.report.before.flops
    if dynamo:  # torch's older exporter leaves a Resize's scales to a Concat of constants
        assert found.report.before == plain.report.before
    (got,) = run(write_back(found.module, x[:2]), x)
    with torch.no_grad():
        want = plain.module(x).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


class Block(nn.Module):
    """Attention with heads on a dimension of their own, and a two-layer perceptron, each after a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * 8**-0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 32, 4, 4), Block()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 5, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


@pytest.mark.parametrize(("opset", "dynamo"), [(13, False), (17, False), (18, True)])
def test_a_transformer_by_both_roads(opset: int, dynamo: bool) -> None:
    """Opset 13 spells LayerNorm out, 17 has it as one operator."""
    torch.manual_seed(0)
    net, x = Transformer(), torch.randn(48, 3, 8, 8)
    plain = subprune_fx.prune(net, x, ratio=1.5, budget="uniform")
    module = load_onnx(exported(net, x[:2], opset=opset, dynamo=dynamo), "net.onnx").module
    found = subprune_fx.prune(module, x, ratio=1.5, budget="uniform")
    assert [d.kept for d in found.plan.decisions] == [d.kept for d in plain.plan.decisions]
    model = write_back(found.module, x[:2])
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        want = plain.module(x).numpy()
    for count in (1, 3, 48):
        (got,) = run(model, x[:count])
        np.testing.assert_allclose(got, want[:count], atol=1e-3 * np.abs(want).max())
