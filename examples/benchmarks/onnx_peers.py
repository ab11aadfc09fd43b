"""Prune the same ONNX files with onnxsim 0.8 and with this project, to the same size, and compare them in onnxruntime.

    pip install onnxsim==0.8.* --no-deps
    python examples/benchmarks/onnx_peers.py --data FOLDER [--files a.onnx=x.npz ...]

The networks are the paper's, exported by torch; `--files` adds others with inputs of theirs. onnxsim takes one fraction
for all layers: the least that meets the ratio is used, or the largest there is where none does. All programs get the
same calibration inputs; errors are those of the first output on others, relative to the deviation of the original's
from its mean (1: as good as a constant). Latencies are of one sample on one thread, all files' in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from data import load_images, normalise
from models import BENCHMARKS, load_network
from numpy.typing import NDArray
from rivals import least

from subprune_fx.cli.main import main as compile_main
from subprune_fx.frontends.onnx_inner import tensors

Array = NDArray[Any]
CALIBRATION, COMPARED, ROUNDS = 256, 256, 30
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def parameters(model: onnx.ModelProto) -> int:
    """Elements of all floating-point constants, Constant nodes among them."""
    return sum(int(np.prod(tensor.dims)) for tensor in tensors(model.graph) if tensor.data_type in FLOATS)


def l2(model: onnx.ModelProto, _inputs: Array, fraction: float) -> onnx.ModelProto:
    """The least L2 norms."""
    from onnxsim import pruning  # noqa: PLC0415 - an optional rival

    found: onnx.ModelProto = pruning.apply_structured_pruning(model, sparsity=fraction)
    return found


def wanda(model: onnx.ModelProto, inputs: Array, fraction: float) -> onnx.ModelProto:
    """The least products of weight and activation norms."""
    from onnxsim import pruning  # noqa: PLC0415 - an optional rival

    batches = [{model.graph.input[0].name: inputs[k : k + 64]} for k in range(0, len(inputs), 64)]
    found: onnx.ModelProto = pruning.apply_structured_wanda_pruning(model, batches, sparsity=fraction)
    return found


PEERS: dict[str, Callable[[onnx.ModelProto, Array, float], onnx.ModelProto]] = {"L2": l2, "Wanda": wanda}


def peer(before: Path, inputs: Array, ratio: float, how: str) -> onnx.ModelProto:
    """What onnxsim makes of a file at the least fraction that meets the ratio."""
    original = onnx.load(str(before))
    target = parameters(original) / ratio

    def at(fraction: float) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(original)
        return PEERS[how](model, inputs, fraction)

    found: onnx.ModelProto = least(at, parameters, target)
    return found


def own(before: Path, after: Path, inputs: Array, ratio: float) -> None:
    """The command line with its defaults."""
    calib = after.with_suffix(".npz")
    np.savez(calib, x=inputs)
    code = compile_main([str(before), "--ratio", str(ratio), "--calib", str(calib), "-o", str(after), "-q"])
    if code:
        raise SystemExit(code)


def session(path: Path) -> onnxruntime.InferenceSession:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path: Path, inputs: Array) -> Array:
    """First output, 32 samples at a time."""
    run, name = session(path), session(path).get_inputs()[0].name
    return np.concatenate([run.run(None, {name: inputs[k : k + 32]})[0] for k in range(0, len(inputs), 32)])


def latencies(paths: dict[str, Path], sample: Array) -> dict[str, float]:
    """Median milliseconds of each file, measured in turns: what else the machine does meets all of them."""
    sessions = {name: session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, run in sessions.items():
            start = time.perf_counter()
            run.run(None, {run.get_inputs()[0].name: sample})
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(found)) for name, found in times.items()}


def compare(name: str, before: Path, inputs: Array, ratio: float, folder: Path) -> list[dict[str, Any]]:
    """One row a program; the original first."""
    calibration, others = inputs[:CALIBRATION], inputs[CALIBRATION : CALIBRATION + COMPARED]
    paths = {"original": before}
    for how in PEERS:
        paths[f"onnxsim {how}"] = folder / f"{how}.onnx"
        onnx.save(peer(before, calibration, ratio, how), paths[f"onnxsim {how}"])
    paths["subprune_fx"] = folder / "own.onnx"
    own(before, paths["subprune_fx"], calibration, ratio)
    wanted, whole = outputs(before, others), parameters(onnx.load(str(before)))
    spread = float(np.square(wanted - wanted.mean(0)).sum())
    times = latencies(paths, others[:1])
    rows = []
    for program, path in paths.items():
        found = outputs(path, others)
        rows.append({
            "network": name,
            "program": program,
            "ratio": whole / parameters(onnx.load(str(path))),
            "bytes": path.stat().st_size,
            "error": float(np.square(found - wanted).sum()) / spread,
            "agreement": float((found.argmax(-1) == wanted.argmax(-1)).mean()),
            "ms": times[program],
        })  # fmt: skip
    return rows


def exported(name: str, data: Path, path: Path) -> Array:
    """Write a network of the paper as ONNX; inputs for it, drawn with seed 0 from its training images."""
    images = load_images(BENCHMARKS[name].images, data)
    chosen = np.random.default_rng(0).choice(len(images.train), CALIBRATION + COMPARED, replace=False)
    inputs = normalise(images.train[chosen], BENCHMARKS[name].images)
    torch.onnx.export(load_network(name, data), (inputs[:1],), path, dynamo=False, dynamic_axes={"x": {0: "n"}},
                      input_names=["x"])  # fmt: skip
    return np.asarray(inputs.numpy())


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="see data.py")
    parser.add_argument("--nets", nargs="*", default=list(BENCHMARKS))
    parser.add_argument("--files", nargs="*", default=[], help="MODEL.onnx=INPUTS.npz, array x of 512 samples")
    parser.add_argument("--ratio", type=float, default=2.0)
    words = parser.parse_args()
    print("| network | program | ratio | bytes | output error | same class | ms |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        jobs: list[tuple[str, Path, Array]] = []
        for name in words.nets:
            path = Path(scratch) / f"{name}.onnx"
            jobs.append((name, path, exported(name, words.data, path)))
        for pair in words.files:
            model, _, inputs = pair.partition("=")
            jobs.append((Path(model).stem, Path(model), np.load(inputs)["x"]))
        for name, path, inputs in jobs:
            for row in compare(name, path, inputs, words.ratio, Path(scratch)):
                print("| {network} | {program} | {ratio:.2f} | {bytes} | {error:.4f} | {agreement:.3f} | {ms:.2f} |"
                      .format(**row), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
