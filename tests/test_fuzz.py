"""A slice of `examples/benchmarks/fuzz.py`: damaged files are read or refused, and nothing else happens."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

IMAGES = ("png", "jpg", "gif", "webp", "tiff", "bmp")
FORMATS = ("pt", "state", "safetensors", "pt2", "onnx", "npz", "npy", "plan", "toml", *IMAGES)
FILES = 8


@pytest.fixture(scope="module")
def fuzzing(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", repository / "examples" / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def test_every_format_has_a_target(fuzzing: ModuleType) -> None:
    assert set(fuzzing.TARGETS) == set(FORMATS)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(name: str, fuzzing: ModuleType) -> None:
    outcomes = dict(fuzzing.fuzz(name, FILES, 1))
    assert len(outcomes) == FILES
    assert set(outcomes.values()) <= {"read", "refused"}
    assert "refused" in outcomes.values()


def test_what_goes_wrong_is_seen(fuzzing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: an exception, a crash, a hang and a file that should not be there."""
    faults: list[Callable[[Path], object]] = [
        lambda path: 1 / 0,
        lambda path: os.kill(os.getpid(), signal.SIGKILL),
        lambda path: time.sleep(60),
        lambda path: (path.parent / "left").write_text(""),
        lambda path: bytearray(2**40),
        lambda path: None,
    ]
    monkeypatch.setattr(fuzzing, "SECONDS", 2.0)
    said = []
    for fault in faults:
        target = fuzzing.Target("x", lambda path: path.write_bytes(b"x" * 99), fault)
        monkeypatch.setitem(fuzzing.TARGETS, "fault", target)
        said += [outcome for _, outcome in fuzzing.fuzz("fault", 1, 0)]
    assert said[0].startswith("ZeroDivisionError at test_fuzz.py")
    assert said[1:] == ["died", "took too long", "wrote left", "out of memory", "read"]
