"""Calibration and evaluation data as people have it: folders of images, Datasets, DataLoaders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from subprune_fx.bundle import Bundle
from subprune_fx.cli.main import main
from subprune_fx.errors import SubpruneError
from subprune_fx.formats.images import Preparation, prepare
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.formats.presets import preset
from subprune_fx.formats.sources import Wish, load_samples

IMAGE = (InputSpec("image", accepts=(None, 3, 12, 12)),)
PAIR = (InputSpec("tokens"), InputSpec("mask"), InputSpec("labels", required=False))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three images each, of one size; and files that are no images."""
    for place, name in enumerate(("dog", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(3):
            picture(20, 16, 10 * place + k).save(tmp_path / "images" / name / f"{k}.png")
    (tmp_path / "images" / "notes.txt").write_text("none")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "0.png").write_bytes(b"thumbnail")
    return tmp_path / "images"


# Images.


@pytest.mark.parametrize("size", [(37, 52), (52, 37), (300, 280)])
@pytest.mark.parametrize("name", ["resnet50", "ResNet18_Weights.IMAGENET1K_V1", "vit_b_16"])
def test_a_preset_prepares_as_torchvision(name: str, size: tuple[int, int]) -> None:
    weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    wanted = weights.transforms(antialias=True)(picture(*size))
    found = prepare(picture(*size), preset(name), 3, "")
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_options_prepare_as_torchvision() -> None:
    steps = (transforms.Resize((9, 14)), transforms.CenterCrop((7, 9)), transforms.ToTensor())
    wanted = transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.25,) * 3)])(picture(31, 22))
    found = prepare(picture(31, 22), Preparation((9, 14), (7, 9), (0.5,), (0.25,)), 3, "")
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    grey = prepare(picture(5, 6), Preparation(), 1, "")
    np.testing.assert_allclose(grey, transforms.ToTensor()(picture(5, 6).convert("L")), atol=1e-6)


def test_timm_preset() -> None:
    pytest.importorskip("timm")
    found = preset("timm/mobilenetv3_small_100.lamb_in1k")
    assert found == Preparation((256,), (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


@pytest.mark.parametrize("name", ["nothing", "timm/nothing", "ResNet18_Weights.NOTHING", "resnet18.x.y"])
def test_no_such_preset(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(SubpruneError, match=r"--preset .*is no preset; such as imagenet"):
        preset(name)


# Folders.


def test_a_folder_of_images(folder: Path) -> None:
    found = load_samples(str(folder), Wish(IMAGE))
    assert isinstance(found.inputs, Tensor)
    assert found.inputs.shape == (6, 3, 12, 12)  # the size that the network takes
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]  # cat, dog
    first = prepare(Image.open(folder / "cat" / "0.png"), Preparation((12,), (12,)), 3, "")
    np.testing.assert_array_equal(found.inputs[0], first)
    assert "--preset" in found.notes[0]
    normalised = load_samples(str(folder), Wish(IMAGE, Preparation(mean=(0.5,), std=(0.5,))))
    assert normalised.notes == ()
    torch.testing.assert_close(normalised.inputs, found.inputs * 2 - 1)


def test_images_for_a_network_with_channels_last(folder: Path) -> None:
    last = (InputSpec("x", accepts=(None, 12, 12, 3)),)
    first, found = (load_samples(str(folder), Wish(takes)).inputs for takes in (IMAGE, last))
    assert isinstance(first, Tensor)
    assert isinstance(found, Tensor)
    assert torch.equal(found, first.permute(0, 2, 3, 1))


def test_samples_are_drawn_by_the_seed(folder: Path) -> None:
    one, same, other = (load_samples(str(folder), Wish(IMAGE, count=4, seed=seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(one.inputs, same.inputs)
    assert one.labels is not None
    assert other.labels is not None
    assert len(one.inputs) == len(other.inputs) == 4
    assert not torch.equal(one.inputs, other.inputs)  # type: ignore[arg-type]


def test_images_without_class_folders_have_no_labels(folder: Path) -> None:
    picture(20, 16).save(folder / "one.png")
    assert load_samples(str(folder), Wish(IMAGE)).labels is None
    with pytest.raises(SubpruneError, match=r"outside of class folders.*FOLDER/cat"):
        load_samples(str(folder), Wish(IMAGE, labelled=True))


def test_folders_refused(folder: Path) -> None:
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(SubpruneError, match="holds no images"):
        load_samples(str(empty), Wish())
    (empty / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    with pytest.raises(SubpruneError, match=r"x\.jpg: is not an image that Pillow reads"):
        load_samples(str(empty), Wish())
    picture(20, 17).save(folder / "cat" / "3.png")
    with pytest.raises(SubpruneError, match=r"has shape \(3, 20, 1.\), and .*--resize and --crop"):
        load_samples(str(folder), Wish())
    with pytest.raises(SubpruneError, match="--mean: has 2 numbers, the network takes 3 channels"):
        load_samples(str(folder), Wish(IMAGE, Preparation(mean=(0.1, 0.2))))
    with pytest.raises(SubpruneError, match="images have no 5 channels"):
        load_samples(str(folder), Wish((InputSpec("x", accepts=(None, 5, 8, 8)),)))


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(SubpruneError, match=r"png: is not an image that Pillow reads \(Image size \(320 pixels\)"):
        load_samples(str(folder), Wish(IMAGE))


# Objects of the user's own.

DATA = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

X, Y = torch.arange(48.0).reshape(8, 6), torch.arange(8) % 3
tensor = X
array = X.numpy()
pairs = TensorDataset(X, Y)
alone = TensorDataset(X)
loader = DataLoader(pairs, batch_size=3)

def make():
    return DataLoader(pairs, batch_size=3)

class Endless(IterableDataset):
    def __iter__(self):
        k = 0
        while True:
            yield X[k % 8], int(Y[k % 8])
            k += 1

class Table(Dataset):  # as Hugging Face's: columns by name, images of Pillow's
    def __len__(self):
        return 8
    def __getitem__(self, k):
        if k >= 8:
            raise IndexError(k)
        return {"image": Image.fromarray(np.full((16, 20, 3), 10 * k, np.uint8)), "label": int(Y[k]), "id": str(k)}

class Text(Table):
    def __getitem__(self, k):
        return {"tokens": [k, k + 1], "mask": [1, 0], "labels": k}

class Ragged(Table):
    def __getitem__(self, k):
        return {"tokens": list(range(k + 1)), "mask": [1]}

class Broken(Table):
    def __getitem__(self, k):
        raise RuntimeError("disk on fire")

image_batches = DataLoader(TensorDataset(torch.zeros(5, 3, 12, 12), torch.arange(5)), batch_size=2)
table = Table()
number = 7
empty = []
"""


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "own_data.py").write_text(DATA)
    return lambda name: f"{tmp_path / 'own_data.py'}:{name}"


ROWS = (InputSpec("x", accepts=(None, 6)),)
X, Y = torch.arange(48.0).reshape(8, 6), torch.arange(8) % 3


@pytest.mark.parametrize("name", ["tensor", "array", "pairs", "alone", "loader", "make", "Endless"])
def test_objects_by_name(name: str, data: Callable[[str], str]) -> None:
    found = load_samples(data(name), Wish(ROWS, count=8))
    torch.testing.assert_close(found.inputs, X)
    if name in {"pairs", "loader", "make", "Endless"}:
        torch.testing.assert_close(found.labels, Y)
    else:
        assert found.labels is None
    few = load_samples(data(name), Wish(ROWS, count=5))
    assert len(few.inputs) == 5


def test_a_table_of_images(data: Callable[[str], str]) -> None:
    for name in ("table", "Table"):
        found = load_samples(data(name), Wish(IMAGE, labelled=True))
        assert isinstance(found.inputs, Tensor)
        assert found.inputs.shape == (8, 3, 12, 12)
        torch.testing.assert_close(found.inputs[:, 0, 0, 0], torch.arange(8) * 10 / 255)
        torch.testing.assert_close(found.labels, Y)


def test_a_table_with_the_networks_own_names(data: Callable[[str], str]) -> None:
    found = load_samples(data("Text"), Wish(PAIR))
    assert isinstance(found.inputs, Bundle)
    assert found.inputs.names is not None
    assert set(found.inputs.names) >= {"tokens", "mask"}
    assert found.inputs.parts[0].tolist() == [[k, k + 1] for k in range(8)]


REFUSED = {
    "nothing": "has no 'nothing'",
    "number": "is int, not a Dataset, DataLoader or array",
    "empty": "holds no samples",
    "Broken": "cannot be read: RuntimeError: disk on fire",
}


@pytest.mark.parametrize("name", REFUSED)
def test_objects_refused(name: str, data: Callable[[str], str]) -> None:
    with pytest.raises(SubpruneError, match=REFUSED[name]) as caught:
        load_samples(data(name), Wish(ROWS))
    assert "\n" not in str(caught.value)
    assert "--calib" in str(caught.value)


def test_objects_without_labels_cannot_be_evaluated_on(data: Callable[[str], str]) -> None:
    with pytest.raises(
        SubpruneError, match=r"own_data\.py:alone: gives no labels, only x; let its samples be \(input, l"
    ):
        load_samples(data("alone"), Wish(ROWS, labelled=True))


def test_ragged_samples_are_refused(data: Callable[[str], str]) -> None:
    with pytest.raises(SubpruneError, match="its samples differ in 'tokens'"):
        load_samples(data("Ragged"), Wish(PAIR))


def test_what_is_no_file_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(SubpruneError, match="no such file"):
        load_samples(str(tmp_path / "gone.npz"), Wish())
    with pytest.raises(SubpruneError, match=r"--eval gone\.py:x: no such file"):
        load_samples("gone.py:x", Wish(option="--eval"))


# The command.


@pytest.mark.parametrize("evaluation", ["images", "own_data.py:image_batches"])
def test_the_command_takes_them(
    evaluation: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("own_data.py").write_text(DATA)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 16), nn.ReLU(), nn.Linear(16, 5))
    network = nn.Sequential(*layers).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 12, 12),)), "net.pt2")
    options = ("--mean", "0.5,0.5,0.5", "--std", "0.2", "--samples", "5")
    arguments: list[Any] = ["net.pt2", "--ratio", "2", "--calib", "images", "--eval", evaluation, *options]
    assert main([*arguments, "-o", "a.onnx", "--json", "r.json"]) == 0, capsys.readouterr().err
    report = json.loads(Path("r.json").read_text())
    assert dict(report["settings"])["calibration inputs"] == "5"
    assert report["accuracy_before"] in {k / 5 for k in range(6)}


BAD = {
    ("--resize", "0"): "not a size such as 224",
    ("--resize", "1x2x3"): "not a size such as 224",
    ("--crop", "99999999"): "not a size such as 224",
    ("--mean", "a"): "not a number for each channel",
    ("--std", "0,1,1"): "not a number for each channel",
    ("--mean", "inf"): "not a number for each channel",
    ("--samples", "0"): "0 is not in the range",
    ("--preset", "mobile"): "is no preset",
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options(option: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = folder.parent / "net.pt"
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), network)
    arguments = (str(network), "--ratio", "2", "--calib", str(folder), "-o", str(folder / "a.onnx"), *option)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(BAD[option], error), error
