"""Calibration and evaluation arrays: what is read, and what each refusal says."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subprune_fx.errors import SubpruneError
from subprune_fx.formats import arrays

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
Y = np.array([0, 2, 1, 1])


def _with(value: float, count: int = 1) -> np.ndarray[Any, Any]:
    x = X.copy()
    x[1, 2, 0] = value
    x.reshape(-1)[23 : 22 + count] = value
    return x


def test_reads_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.asfortranarray(X.astype(">f4")), y=Y.astype(np.uint8))
    x = arrays.load_calibration(path, (None, 3, None))
    assert x.dtype == np.dtype("=f4")
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, X)
    labels = arrays.load_labels(path)
    assert labels is not None
    np.testing.assert_array_equal(labels, Y)
    x, y = arrays.load_evaluation(path, (1, 3, 2))
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, Y)


def test_labels_are_optional_for_calibration(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    assert arrays.load_labels(tmp_path / "x.npz") is None


CALIBRATION: dict[str, tuple[dict[str, Any], str]] = {
    "wrong key": ({"images": X, "labels": Y}, r"no array 'x' \(arrays found: images, labels\)"),
    "no arrays": ({}, r"arrays found: none"),
    "float64": ({"x": X.astype(float)}, "is float64, not float32"),
    "bytes": ({"x": X.astype(np.uint8)}, "is uint8, not float32"),
    "objects": ({"x": np.array([{}, 1], dtype=object)}, "Python objects"),
    "scalar": ({"x": np.float32(1)}, r"no samples \(shape \(\)\)"),
    "no samples": ({"x": X[:0]}, r"no samples \(shape \(0, 3, 2\)\)"),
    "empty axis": ({"x": X[:, :0]}, "no samples"),
    "NaN": ({"x": _with(np.nan)}, r"holds 1 NaN or infinite value, the first at index \(1, 2, 0\)"),
    "infinite": ({"x": _with(-np.inf, 2)}, r"holds 2 NaN or infinite values, the first at index \(1, 2, 0\)"),
    "shape": ({"x": X.reshape(4, 2, 3)}, r"has shape \(4, 2, 3\), the network takes \(n, 3, 2\)"),
    "rank": ({"x": X.reshape(4, 6)}, r"has shape \(4, 6\), the network takes \(n, 3, 2\)"),
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_refusals(name: str, tmp_path: Path) -> None:
    content, says = CALIBRATION[name]
    path = tmp_path / "x.npz"
    np.savez(path, **content)
    with pytest.raises(SubpruneError, match=says) as caught:
        arrays.load_calibration(path, (1, 3, 2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


EVALUATION: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": X}, r"no array 'y' \(arrays found: x\)"),
    "real": ({"x": X, "y": Y.astype(float)}, "is float64, not integer"),
    "length": ({"x": X, "y": Y[:3]}, r"has shape \(3,\), x has 4 samples"),
    "one-hot": ({"x": X, "y": np.eye(4, dtype=int)}, r"has shape \(4, 4\)"),
    "negative": ({"x": X, "y": Y - 1}, "negative class -1"),
    "bad x": ({"x": _with(np.nan), "y": Y}, "NaN"),
}


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_refusals(name: str, tmp_path: Path) -> None:
    content, says = EVALUATION[name]
    np.savez(tmp_path / "xy.npz", **content)
    with pytest.raises(SubpruneError, match=says):
        arrays.load_evaluation(tmp_path / "xy.npz")


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "whole.npz", x=X)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:150])
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    for name, says in {
        "missing.npz": "no such file",
        "folder.npz": "is a folder",
        "empty.npz": "is empty",
        "cut.npz": "truncated",
        "x.npy": "is not an .npz file",
    }.items():
        with pytest.raises(SubpruneError, match=says):
            arrays.load_calibration(tmp_path / name)


def test_damaged_bytes_raise_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(SubpruneError):
            arrays.load_evaluation(path)


def test_synthetic_inputs_are_reproducible_and_standard() -> None:
    x = arrays.synthetic((1, 3, 8, 8), 100, seed=4)
    assert x.shape == (100, 3, 8, 8)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, arrays.synthetic((7, 3, 8, 8), 100, seed=4))
    assert not np.array_equal(x, arrays.synthetic((1, 3, 8, 8), 100, seed=5))
    # 19,200 draws: their mean is within 5 standard errors of 0, their deviation within 5 of 1.
    assert abs(float(x.mean())) < 5 / 19200**0.5
    assert abs(float(x.std()) - 1) < 5 / (2 * 19200) ** 0.5


def test_tokens_are_integers(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    np.savez(path, x=np.arange(12, dtype=np.int32).reshape(3, 4))
    found = arrays.load_calibration(path)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))
