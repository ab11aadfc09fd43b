"""Calibration and evaluation arrays: what is read, and what each refusal says."""

from __future__ import annotations

import contextlib
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from subprune_fx.bundle import Bundle
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.arrays import load_arrays
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.formats.npy import MAGIC

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
    found = load_arrays(path, taking(None, 3, None), labelled=True)
    assert isinstance(found.inputs, Tensor)
    assert found.inputs.dtype == torch.float32
    assert found.inputs.is_contiguous()
    np.testing.assert_array_equal(found.inputs, X)
    assert found.labels is not None
    assert found.labels.dtype == torch.int64
    np.testing.assert_array_equal(found.labels, Y)


def taking(*shape: int | None) -> list[InputSpec]:
    """A network with one input of this shape."""
    return [InputSpec("image", accepts=shape)]


@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_a_lone_array(order: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asarray(X, order=order))
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.npy", taking(1, 3, 2)).inputs, X)


def test_labels_are_optional_for_calibration(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    assert load_arrays(tmp_path / "x.npz").labels is None


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
        load_arrays(path, taking(1, 3, 2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


EVALUATION: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": X}, r"no array 'y' \(arrays found: x\)"),
    "real": ({"x": X, "y": Y.astype(float)}, "is float64, not integer"),
    "length": ({"x": X, "y": Y[:3]}, r"has shape \(3,\), and there are 4 samples"),
    "one-hot": ({"x": X, "y": np.eye(4, dtype=int)}, r"has shape \(4, 4\)"),
    "negative": ({"x": X, "y": Y - 1}, "negative class -1"),
    "bad x": ({"x": _with(np.nan), "y": Y}, "NaN"),
}


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_refusals(name: str, tmp_path: Path) -> None:
    content, says = EVALUATION[name]
    np.savez(tmp_path / "xy.npz", **content)
    with pytest.raises(SubpruneError, match=says):
        load_arrays(tmp_path / "xy.npz", labelled=True)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3")
    np.savez(tmp_path / "whole.npz", x=X)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:150])
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    torch.save(torch.from_numpy(X), tmp_path / "x.pt")
    for name, says in {
        "missing.npz": "no such file",
        "folder.npz": "is a folder",
        "empty.npz": "is empty",
        "cut.npz": "truncated",
        "x.pt": "is a zip file without numpy arrays; save it with numpy.savez",
        "x.txt": "is neither an .npz nor an .npy file",
    }.items():
        with pytest.raises(SubpruneError, match=says):
            load_arrays(tmp_path / name)


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
            load_arrays(path, labelled=True)


def test_tokens_are_integers(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    np.savez(path, x=np.arange(12, dtype=np.int32).reshape(3, 4))
    found = load_arrays(path).inputs
    assert isinstance(found, Tensor)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))


TWO = (InputSpec("image", accepts=(None, 3, 2)), InputSpec("tokens"), InputSpec("scale", required=False))
T = np.arange(8).reshape(4, 2)
S = X[:, 0, 0]
SEVERAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "by name": ({"tokens": T, "image": X, "y": Y}, {"image": X, "tokens": T}),
    "with an optional one": ({"scale": S, "image": X, "tokens": T}, {"image": X, "tokens": T, "scale": S}),
    "in order": ({"arr_0": X, "arr_1": T}, {"image": X, "tokens": T}),
    "others are left out": ({"tokens": T, "image": X, "x": T, "ids": np.array(["a"])}, {"image": X, "tokens": T}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_several_inputs_come_in_the_networks_order(name: str, tmp_path: Path) -> None:
    saved, wanted = SEVERAL[name]
    np.savez(tmp_path / "x.npz", **saved)
    found = load_arrays(tmp_path / "x.npz", TWO)
    assert isinstance(found.inputs, Bundle)
    assert found.inputs.names == tuple(wanted)
    for part, array in zip(found.inputs.parts, wanted.values(), strict=True):
        np.testing.assert_array_equal(part, array)
    assert (found.labels is not None) == ("y" in saved)


def test_y_is_an_input_where_the_network_needs_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, y=X)
    found = load_arrays(tmp_path / "x.npz", (InputSpec("x"), InputSpec("y")))
    assert isinstance(found.inputs, Bundle)
    assert found.inputs.names == ("x", "y")
    assert found.labels is None
    np.savez(tmp_path / "x.npz", x=X, y=Y)
    only = load_arrays(tmp_path / "x.npz", (InputSpec("x"), InputSpec("y", required=False)))
    assert isinstance(only.inputs, Tensor)
    assert only.labels is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one missing": ({"image": X}, r"takes 2 inputs, and there is no array 'tokens' .*x.npz|savez.*image=..., tokens"),
    "all missing": ({"x": X}, r"no array 'image', 'tokens' \(arrays found: x\)"),
    "lengths": ({"image": X, "tokens": T[:3]}, "different numbers of samples .*image 4, tokens 3"),
    "shape of one": ({"image": X[:, :2], "tokens": T}, r"x.npz: image: has shape \(4, 2, 2\)"),
    "unnamed and too few": ({"arr_0": X}, "takes 2 inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_several_inputs_refused(name: str, tmp_path: Path) -> None:
    content, says = REFUSED[name]
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(SubpruneError, match=says):
        load_arrays(tmp_path / "x.npz", TWO)


def header(shape: str, descr: str = "<f4") -> bytes:
    """The start of an `.npy` file."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return MAGIC + bytes((1, 0)) + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(1000000, 1000000, 1000000)", "(-1, 4)", "(True,)", "(0, 10**30)"]
)
def test_a_header_may_not_claim_what_is_not_there(shape: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(header(shape) + bytes(64))
    with pytest.raises(SubpruneError, match=r"x\.npy"):
        load_arrays(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header(shape) + bytes(64))
    with pytest.raises(SubpruneError, match=r"damaged|no samples"):
        load_arrays(tmp_path / "x.npz")
