"""Damage files of every format that is read, and see that each is read or refused: no crash, hang, traceback or write.

    python examples/benchmarks/fuzz.py --count 2000

Files are damaged as they are and, where they are zip archives, inside their members with the checksums made right.
Loading runs in a child process with little memory to spare and little time. The exit code says whether anything was
wrong.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime  # noqa: F401 - its first import leaves a file in the temporary folder, whatever is loaded
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.arrays import load_arrays
from subprune_fx.formats.images import Preparation, read_image
from subprune_fx.formats.layers import load_layers
from subprune_fx.formats.load import load_model
from subprune_fx.passes.export import to_onnx
from subprune_fx.passes.guess import guess
from subprune_fx.passes.synthesise import start

SHAPE = (3, 8, 8)
SECONDS = 20.0
"""For one file."""
SPARE = 3 * 2**30
"""Bytes of address space that loading may take on top of what the process has."""
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x7f",
)


def network() -> nn.Module:
    """Small, with every kind of layer that files spell in their own way."""
    pool = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool, nn.Linear(16, 6), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(6, 2)).eval()


def _exported(path: Path) -> None:
    torch.export.save(torch.export.export(network(), (torch.zeros(2, *SHAPE),)), path)


def _written(path: Path) -> None:
    to_onnx(network(), torch.zeros(1, *SHAPE), path)


def _arrays(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((4, *SHAPE), np.float32), y=np.arange(4))


def _planned(path: Path) -> None:
    subprune_fx.prune(network(), torch.randn(16, *SHAPE), keep=0.5).plan.save(path)


def _load_network(path: Path) -> None:
    """As the command does: load, find out what it takes, run it once."""
    loaded = load_model(path, arch=f"{__file__}:network" if path.stem == "state" else None)
    wanted = guess(loaded.module, loaded.takes, str(path)).wanted
    with torch.no_grad():
        inputs = start(wanted, 2, 0)
        try:
            loaded.module(inputs)
        except Exception as error:  # the command's `probe` says so in one line
            raise SubpruneError(f"fails: {type(error).__name__}", where=str(path)) from error


def _load_inputs(path: Path) -> None:
    load_arrays(path)


def _pictured(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _load_picture(path: Path) -> None:
    read_image(path, Preparation((8,), (8,)), 3)


def _load_plan(path: Path) -> None:
    subprune_fx.apply(subprune_fx.Plan.load(path), network())


def _wrong_onnx(data: bytes, dice: random.Random) -> bytes:
    """A well-formed model in which a few fields have other values."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    fields = [*_fields(model)]
    words = [value for _, _, _, value in fields if isinstance(value, str)]
    for _ in range(dice.choice((1, 1, 2, 4))):
        message, name, place, value = dice.choice(fields)
        with contextlib.suppress(Exception):  # what the field cannot hold
            other = dice.choice(words) if isinstance(value, str) else dice.choice(NUMBERS)
            if place is None:
                setattr(message, name, type(value)(other))
            else:
                getattr(message, name)[place] = type(value)(other)
    return bytes(model.SerializeToString())


def _fields(message: Any) -> Iterator[tuple[Any, str, int | None, Any]]:
    """Numbers and text of a protobuf message and the ones in it: where they are, and their value."""
    for field, value in message.ListFields():
        plural = not isinstance(value, str | bytes) and hasattr(value, "__len__")
        for place, entry in enumerate(value if plural else [value]):
            if hasattr(entry, "ListFields"):
                yield from _fields(entry)
            elif isinstance(entry, int | float | str):
                yield message, field.name, place if plural else None, entry


def _wrong_plan(data: bytes, dice: random.Random) -> bytes:
    """A well-formed plan in which a few values are others."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tree = json.loads(header["__metadata__"]["plan"])
    for _ in range(dice.choice((1, 1, 2, 4))):
        spot: Any = tree
        while True:
            key = dice.choice([*spot] if isinstance(spot, dict) else range(len(spot)))
            if isinstance(spot[key], dict | list) and spot[key] and dice.random() < 0.9:
                spot = spot[key]
                continue
            spot[key] = dice.choice((*NUMBERS, None, [], {}, "conv", [[]], True))
            break
    header["__metadata__"]["plan"] = json.dumps(tree)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


LAYERS = """
[ratio]      # of channels
"conv*" = 2
'layer1.?' = 1.5

[channels]
fc1 = 40
"a.\\u0062" = 7
"""
NUMBERS = (0, -1, 1, 2, 7, 10**5, 2**31 - 1, 10**12, 2**63 - 1, -(2**63), 0.5, 1e38)


@dataclasses.dataclass(frozen=True)
class Target:
    """A format: how to write a good file, how to read one, and how to damage what it says and not how it says it."""

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], object]
    inside: Callable[[bytes, random.Random], bytes] | None = None


TARGETS = {
    "pt": Target("module.pt", lambda path: torch.save(network(), path), _load_network),
    "state": Target("state.pt", lambda path: torch.save(network().state_dict(), path), _load_network),
    "safetensors": Target("state.safetensors", lambda path: save_file(network().state_dict(), path), _load_network),
    "pt2": Target("archive.pt2", _exported, _load_network),
    "onnx": Target(
        "model.onnx", lambda path: to_onnx(network(), torch.zeros(1, *SHAPE), path), _load_network, _wrong_onnx
    ),
    "npz": Target("x.npz", _arrays, _load_inputs),
    "npy": Target("x.npy", lambda path: np.save(path, np.zeros((4, *SHAPE), np.float32)), _load_inputs),
    "plan": Target("net.plan", _planned, _load_plan, _wrong_plan),
    "toml": Target("layers.toml", lambda path: path.write_text(LAYERS), load_layers),
    **{name: Target(f"x.{name}", _pictured, _load_picture) for name in ("png", "jpg", "gif", "webp", "tiff", "bmp")},
}


def damage(target: Target, data: bytes, dice: random.Random) -> bytes:
    """A few random faults, of the archive or of what is in it."""
    if target.inside is not None and dice.random() < 0.6:
        return target.inside(data, dice)
    if zipfile.is_zipfile(io.BytesIO(data)) and dice.random() < 0.7:
        return _damage_member(data, dice)
    return _damage_bytes(data, dice)


def _damage_member(data: bytes, dice: random.Random) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(found, "w") as new:
        names = old.namelist()
        hit = dice.choice(names)
        for name in names:
            content = old.read(name)
            if name == hit and dice.random() < 0.1:
                continue
            new.writestr(name, _damage_bytes(content, dice) if name == hit else content)
    return found.getvalue()


def _damage_bytes(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        place = dice.randrange(len(changed)) if changed else 0
        if dice.random() < 0.5:  # headers are at the start
            place = min(place, dice.randrange(1, 512))
        dice.choice(FAULTS)(changed, place, dice)
    return bytes(changed)


def _flip(data: bytearray, place: int, dice: random.Random) -> None:
    if place < len(data):
        data[place] ^= 1 << dice.randrange(8)


def _overwrite(data: bytearray, place: int, dice: random.Random) -> None:
    value = dice.choice((*INTERESTING, bytes([dice.randrange(256)])))
    data[place : place + len(value)] = value


def _digit(data: bytearray, place: int, dice: random.Random) -> None:
    """A number in text becomes another, perhaps a long one."""
    places = [k for k in range(place, min(place + 200, len(data))) if chr(data[k]).isdigit()]
    if places:
        data[places[0] : places[0] + 1] = dice.choice((b"0", b"-1", b"9" * 5, b"9" * 12, b"9" * 30))


def _cut(data: bytearray, place: int, dice: random.Random) -> None:
    del data[place : place + dice.choice((1, 4, 100, len(data)))]


def _repeat(data: bytearray, place: int, dice: random.Random) -> None:
    piece = data[place : place + dice.choice((1, 8, 200))]
    data[place:place] = piece * dice.choice((1, 3, 50))


FAULTS = (_flip, _overwrite, _overwrite, _digit, _cut, _repeat)


def fuzz(name: str, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Number and outcome of each file: `read`, `refused`, or what is wrong.

    Args:
        name: A key of `TARGETS`.
        count: How many files.
        seed: Of their damage.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        good = Path(folder) / target.name
        target.make(good)
        data, done = good.read_bytes(), 0
        while done < count:
            for number, outcome in _child(target, data, Path(folder), range(done, count), seed):
                done = number + 1
                yield number, outcome


def _child(target: Target, data: bytes, folder: Path, numbers: range, seed: int) -> Iterator[tuple[int, str]]:
    """A process that loads files until it dies or takes too long; then the last one is at fault."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(target, data, folder, numbers, seed, writing)
    os.close(writing)
    current = numbers.start
    try:
        with os.fdopen(reading) as lines:
            while current < numbers.stop:
                ready, _, _ = select.select([lines], [], [], SECONDS)
                line = lines.readline() if ready else ""
                if not line:
                    yield current, "died" if ready else "took too long"
                    return
                yield current, line.strip()
                current += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work(target: Target, data: bytes, folder: Path, numbers: range, seed: int, writing: int) -> None:
    """Load files and write a line for each; never returns."""
    torch.set_num_threads(1)  # its other threads have not come along
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.chdir(folder)
    for number in numbers:
        path = folder / target.name
        path.write_bytes(damage(target, data, random.Random(f"{seed} {number}")))  # noqa: S311 - not a secret
        outcome = _outcome(target, path)
        extra = sorted(entry.name for entry in folder.iterdir() if entry != path)
        if extra:
            outcome = f"wrote {extra[0]}"
            for entry in extra:
                shutil.rmtree(folder / entry, ignore_errors=True)
        os.write(writing, f"{outcome}\n".encode())
    os._exit(0)


def _outcome(target: Target, path: Path) -> str:
    try:
        target.load(path)
    except SubpruneError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    except MemoryError:
        return "out of memory"
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:100]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {said}"
    return "read"


@click.command()
@click.option("--count", default=2000, show_default=True, help="Files of each format.")
@click.option("--seed", default=0, show_default=True)
@click.option("--formats", default=",".join(TARGETS), show_default=True)
def main(count: int, seed: int, formats: str) -> None:
    """Print what came of the files of each format."""
    wrong = 0
    for name in formats.split(","):
        outcomes: collections.Counter[str] = collections.Counter()
        for _number, outcome in fuzz(name, count, seed):
            outcomes[outcome] += 1
        wrong += sum(times for outcome, times in outcomes.items() if outcome not in {"read", "refused"})
        click.echo(f"{name}: {', '.join(f'{times} {outcome}' for outcome, times in outcomes.most_common())}")
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
