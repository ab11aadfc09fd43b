"""Prune the three PP-OCR networks of PyPI's rapidocr-onnxruntime and measure them on rendered text lines.

    pip download --no-deps rapidocr-onnxruntime==1.4.4 -d FOLDER   # then unzip it; it is not installed
    python examples/benchmarks/onnx_ocr.py --models FOLDER/rapidocr_onnxruntime/models

The angle classifier is measured by its accuracy, the recogniser by lines read without a mistake, the detector by how
far its text map agrees with the original's (intersection over union of what is above 0.3, as PP-OCR thresholds it).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from subprune_fx.cli.main import main as compile_main

Array = NDArray[np.float32]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
MODELS = {
    "classifier": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "detector": "ch_PP-OCRv4_det_infer.onnx",
    "recogniser": "ch_PP-OCRv4_rec_infer.onnx",
}


def line(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, str]:
    """One line of random words, dark on light or light on dark, slightly blurred and noisy."""
    text = "".join(rng.choice(list(LETTERS), size=int(rng.integers(5, 12))))
    font = ImageFont.load_default(size=int(rng.integers(int(height * 0.5), int(height * 0.7))))
    dark, light = int(rng.integers(0, 90)), int(rng.integers(165, 256))
    ink, paper = (dark, light) if rng.random() < 0.7 else (light, dark)
    image = Image.new("RGB", (width, height), (paper, paper, int(np.clip(paper + rng.integers(-20, 20), 0, 255))))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = int(rng.integers(2, max(3, width - int(right - left) - 2)))
    draw.text((x - left, (height - (bottom - top)) / 2 - top + rng.integers(-2, 3)), text, font=font, fill=(ink,) * 3)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    return image, text


def lines(seed: int, count: int, width: int) -> tuple[Array, list[str]]:
    """Lines as the classifier and the recogniser take them, (count, 3, 48, width) in -1..1, and their texts."""
    rng = np.random.default_rng(seed)
    made = [line(rng, width, 48) for _ in range(count)]
    pixels = np.stack([np.asarray(image, np.float32) for image, _ in made]) + rng.normal(0, 4, (count, 48, width, 3))
    return (pixels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32), [text for _, text in made]


def turned(seed: int, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Lines for the classifier, half of them upside down, and which."""
    inputs, _ = lines(seed, count, 192)
    labels = np.random.default_rng(seed + 1).integers(0, 2, count)
    inputs[labels == 1] = inputs[labels == 1][:, :, ::-1, ::-1]
    return inputs, labels


def pages(seed: int, count: int) -> Array:
    """Pages of three lines for the detector, (count, 3, 160, 320), normalised as ImageNet images are."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, 160, 320, 3), np.float32)
    for page in out:
        sheet = Image.new("RGB", (320, 160), (int(rng.integers(170, 256)),) * 3)
        for row in range(3):
            if rng.random() < 0.8:
                sheet.paste(line(rng, int(rng.integers(150, 280)), 36)[0], (int(rng.integers(0, 40)), 8 + 50 * row))
        page[:] = np.asarray(sheet, np.float32)
    out += rng.normal(0, 3, out.shape)
    normal = (out / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2).astype(np.float32))


def outputs(path: Path, inputs: Array) -> Array:
    """First output of a network, 32 samples at a time."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: inputs[k : k + 32]})[0] for k in range(0, len(inputs), 32)]
    return np.concatenate(parts)


def read(path: Path, model: Path, inputs: Array) -> list[str]:
    """What a recogniser reads: the best letter a column, repetitions and blanks removed."""
    props = {entry.key: entry.value for entry in onnx.load(str(model)).metadata_props}
    alphabet = ["", *props["character"].split("\n"), " "]
    best = outputs(path, inputs).argmax(-1)
    first = np.diff(best, axis=1, prepend=-1) != 0
    return ["".join(alphabet[letter] for letter in row[new]).strip() for row, new in zip(best, first, strict=True)]


def classifier(original: Path) -> tuple[Array, Callable[[Path], dict[str, float]]]:
    """Calibration inputs, and what is measured of a file."""
    inputs, labels = turned(1, 1000)
    return turned(0, 256)[0], lambda path: {
        "accuracy": float((outputs(path, inputs).argmax(1) == labels).mean()),
        "agreement": float((outputs(path, inputs).argmax(1) == outputs(original, inputs).argmax(1)).mean()),
    }


def recogniser(original: Path) -> tuple[Array, Callable[[Path], dict[str, float]]]:
    """See `classifier`."""
    inputs, texts = lines(1, 300, 320)

    def measure(path: Path) -> dict[str, float]:
        found, before = read(path, original, inputs), read(original, original, inputs)
        letters = np.mean([_same(a, b) for a, b in zip(found, texts, strict=True)])
        exact = np.mean([a == b for a, b in zip(found, texts, strict=True)])
        like = np.mean([a == b for a, b in zip(found, before, strict=True)])
        return {"exact": float(exact), "letters": float(letters), "agreement": float(like)}

    return lines(0, 256, 320)[0], measure


def _same(found: str, text: str) -> float:
    """Share of letters in place, for lines of one length; 0 for others."""
    return float(np.mean([a == b for a, b in zip(found, text, strict=True)])) if len(found) == len(text) else 0.0


def detector(original: Path) -> tuple[Array, Callable[[Path], dict[str, float]]]:
    """See `classifier`."""
    inputs = pages(1, 64)

    def measure(path: Path) -> dict[str, float]:
        one, two = outputs(original, inputs), outputs(path, inputs)
        both, either = ((one > 0.3) & (two > 0.3)).sum(), ((one > 0.3) | (two > 0.3)).sum()
        return {"iou": float(both / max(either, 1)), "mean difference": float(np.abs(one - two).mean())}

    return pages(0, 96), measure


TASKS = {"classifier": classifier, "detector": detector, "recogniser": recogniser}


def run(models: Path, names: list[str], ratios: list[float], extra: list[str]) -> list[dict[str, Any]]:
    """One row a network and ratio; the original is ratio 1."""
    rows = []
    for name in names:
        original = models / MODELS[name]
        calibration, measure = TASKS[name](original)
        rows.append({"network": name, "ratio": 1.0, "bytes": original.stat().st_size, **measure(original)})
        print(rows[-1], flush=True)
        with tempfile.TemporaryDirectory() as folder:
            calib, small, report = (Path(folder) / file for file in ("x.npz", "small.onnx", "report.json"))
            np.savez(calib, x=calibration)
            for ratio in ratios:
                start = time.perf_counter()
                words = [str(original), "--ratio", str(ratio), "--calib", str(calib), "-o", str(small), "-q"]
                code = compile_main([*words, "--json", str(report), *extra])
                seconds = time.perf_counter() - start
                if code:
                    rows.append({"network": name, "ratio": ratio, "exit": code})
                    continue
                found = json.loads(report.read_text())
                cost = {
                    "reached": round(found["achieved"], 3),
                    "bytes": small.stat().st_size,
                    "seconds": round(seconds),
                }
                file = found["files"][0]
                latency = {key: file[key] for key in ("latency_before_ms", "latency_ms", "max_difference")}
                rows.append({"network": name, "ratio": ratio, **cost, **latency, **measure(small)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with the three .onnx files")
    parser.add_argument("--networks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0])
    parser.add_argument("--option", action="append", default=[], help="a further word for subprune-compile")
    parser.add_argument("-o", "--output", type=Path, help="rows as JSON")
    words = parser.parse_args()
    rows = run(words.models, words.networks, words.ratios, words.option)
    if words.output:
        words.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
