"""Compile onnx's own light topologies at half the channels and compare the result with onnxruntime.

    python examples/benchmarks/onnx_light.py [--only squeezenet ...]

They come with the onnx package (`onnx/backend/test/data/light`), without weights: nodes make constants in their
place. Here random weights replace them, scaled so that activations keep their size. The output of each compiled file is
compared with the pruned graph as the passes see it by `subprune-compile` itself, which fails where they differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from subprune_fx.cli.main import main as compile_main
from subprune_fx.formats.load import load_model
from subprune_fx.frontends.onnx_static import resolve_batch
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.size import TARGETS

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def filled(path: Path, seed: int = 0) -> onnx.ModelProto:
    """A light model with random weights as initializers."""
    rng = np.random.default_rng(seed)
    model = onnx.load(str(path))
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roles = {name: (node.op_type, k) for node in graph.node for k, name in enumerate(node.input)}
    inputs = {value.name for value in graph.input}
    dropped = set()
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        name, shape = node.output[0], tuple(int(size) for size in known[node.input[0]])
        graph.initializer.append(numpy_helper.from_array(_random(rng, shape, *roles[name]), name))
        if name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        dropped.add(node.input[0])
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for entries in (graph.initializer, graph.input):
        for entry in [entry for entry in entries if entry.name in dropped - used]:
            entries.remove(entry)
    return model


def _random(rng: np.random.Generator, shape: tuple[int, ...], op: str, position: int) -> NDArray[np.float32]:
    if op == "BatchNormalization" and position in (1, 4):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    return (rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / fan) ** 0.5)).astype(np.float32)


def run(path: Path, samples: int, *, plain: bool) -> dict[str, Any]:
    """Half the channels of every group: the ratio that this is, then the command."""
    model = filled(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in constants)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    inputs = np.random.default_rng(1).standard_normal((samples, *shape[1:]), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        big, small, calib, report = (Path(folder) / name for name in ("a.onnx", "b.onnx", "x.npz", "r.json"))
        onnx.save(model, big)
        np.savez(calib, x=inputs)
        network = analyse(resolve_batch(load_model(big).module, torch.from_numpy(inputs)), torch.from_numpy(inputs[:1]))
        groups = network.channels.groups
        orders = {group.name: np.arange(len(group.units)) for group in groups}
        size = TARGETS["params"](network, orders, torch.from_numpy(inputs[:1]), intercepts=False)
        ratio = size.total / size.of({name: -(-n // 2) for name, n in size.units.items()})
        rest = ["--select", "weightnorm", "--no-reweight"] if plain else []
        del network, size
        words = [str(big), "--ratio", f"{ratio - 1e-3:.4f}", "--calib", str(calib), "--budget", "uniform", "-q"]
        start = time.perf_counter()
        code = compile_main([*words, "-o", str(small), "--json", str(report), *rest])
        row: dict[str, Any] = {"network": path.stem, "exit": code, "seconds": round(time.perf_counter() - start)}
        if code == 0:
            found = json.loads(report.read_text())
            file = found["files"][0]
            kept = sum(row["kept"] for row in found["groups"]) / sum(row["channels"] for row in found["groups"])
            row |= {"ratio": round(found["achieved"], 2), "kept": round(kept, 3), "reweighted": not plain}
            row |= {
                key: file[key] for key in ("bytes_before", "bytes", "latency_before_ms", "latency_ms", "max_difference")
            }
    return row


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="parts of names")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="select by weight norm and leave weights as they are")
    words = parser.parse_args()
    for path in sorted(FOLDER.glob("light_*.onnx")):
        if not words.only or any(part in path.stem for part in words.only):
            print(run(path, words.samples, plain=words.plain), flush=True)


if __name__ == "__main__":
    main()
