"""A slice of the zoo: real architectures come out valid, smaller, and equal to the masked and reweighted original."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torchvision")

# Each has something that others have not: what it is, and the least ratio at half of the channels.
TORCHVISION = {
    "alexnet": ("flatten of several positions", 3.5),
    "densenet121": ("concatenation of everything before", 3.0),
    "efficientnet_b0": ("squeeze and excitation, depthwise", 3.0),
    "googlenet": ("branches, auxiliary heads", 3.0),
    "mobilenet_v3_small": ("hard activations", 2.5),
    "regnet_x_400mf": ("grouped convolutions", 3.0),
    "shufflenet_v2_x0_5": ("chunk and channel shuffle, three quarters in a fixed output layer", 2.2),
    "lraspp_mobilenet_v3_large": ("segmentation: dict output, interpolation", 3.0),
    "r3d_18": ("video: three-dimensional convolutions", 3.0),
}


@pytest.fixture(scope="module")
def table(repository: Path) -> ModuleType:
    folder = repository / "examples" / "benchmarks"
    spec = importlib.util.spec_from_file_location("zoo_table", folder / "zoo_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
