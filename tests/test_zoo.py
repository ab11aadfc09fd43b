"""A slice of the zoo: real architectures come out smaller, and equal to the masked and reweighted original."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support import against_masked, parameters

import subprune_fx
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.proof import halved

pytest.importorskip("torchvision")

# Each has something that others have not; and the least ratio of parameters at half of the channels.
SLICE = {
    "alexnet": 3.5,  # flatten of several positions
    "densenet121": 3.3,  # concatenation of everything before
    "efficientnet_b0": 3.0,  # squeeze and excitation, depthwise
    "googlenet": 3.3,  # branches
    "inception_v3": 3.3,  # factorised kernels
    "mobilenet_v3_small": 2.5,  # hard activations
    "regnet_x_400mf": 3.5,  # grouped convolutions
    "shufflenet_v2_x1_0": 2.7,  # chunks and channel shuffles; half of it is the output layer
    "squeezenet1_1": 2.7,  # a convolution as the output layer
    "lraspp_mobilenet_v3_large": 3.0,  # dict output, interpolation
    "r3d_18": 3.5,  # three-dimensional convolutions
    "edgenext_xx_small": 3.3,  # chunks of unequal size, cross-covariance attention
    "ghostnet_050": 2.6,  # slices of concatenations
    "res2net50_14w_8s": 3.5,  # splits into many parts, each added to the next
    "skresnet18": 3.0,  # stacked branches, softmax over the branches
}


@pytest.fixture(scope="module")
def zoo(repository: Path) -> Iterator[ModuleType]:
    """The table of networks, imported as the script does."""
    folder = str(repository / "examples" / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("zoo_table")
    sys.path.remove(folder)
    sys.modules.pop("zoo_table", None)


@pytest.mark.parametrize("name", SLICE)
def test_half_of_the_channels(zoo: ModuleType, name: str) -> None:
    row = next(row for row in zoo.networks() if row.name == name)
    pytest.importorskip(row.source)
    model, example = zoo.build(row), row.inputs(2)
    network = analyse(model, example)
    plan, small = halved(network)
    assert parameters(model) / parameters(small) > SLICE[name]
    assert against_masked(network, plan, small, example) < 1e-5


def test_the_whole_way(zoo: ModuleType) -> None:
    row = next(row for row in zoo.networks() if row.name == "squeezenet1_1")
    model, inputs = zoo.build(row), row.inputs(16)
    pruned = subprune_fx.prune(model, inputs, keep=0.5)
    network = analyse(model, inputs[:2])
    assert against_masked(network, pruned.plan, pruned.module, inputs[:4]) < 1e-4


def test_a_crash_is_a_row_and_results_are_resumed(
    zoo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module("zoo")
    row = script.measure(zoo.Network("torchvision", "broken", lambda: 1 / 0, zoo.noise(3, 32, 32)))
    assert (row.status, row.message) == ("failed", "ZeroDivisionError: division by zero")
    (tmp_path / "zoo.jsonl").write_text(json.dumps(vars(row)) + '\n{"source": "torch', encoding="utf-8")
    assert script.read(tmp_path / "zoo.jsonl") == {"broken": row}
    script.save([row], tmp_path)
    assert "ZeroDivisionError" in (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert "1 networks: 1 failed" in script.summary([row])
