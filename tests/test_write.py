"""Writing: every format comes back as the network it was, and files appear all together or not at all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError, ValidationError
from subprune_fx.formats import atomic
from subprune_fx.formats.load import load_model
from subprune_fx.passes import validate, write, writers
from subprune_fx.plan import same


def network(width: int = 4) -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval())


def inputs(n: int = 20) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def test_every_format_is_written_validated_and_measured(tmp_path: Path) -> None:
    targets = [tmp_path / f"net{suffix}" for suffix in writers.WRITERS if suffix != ".plan"]
    rows = write.write_all(network(4), network(400), inputs(1), inputs(), targets)
    assert [row.path for row in rows] == [str(target) for target in targets]
    for row, target in zip(rows, targets, strict=True):
        assert row.bytes == target.stat().st_size
        assert row.bytes_before is not None
        assert row.bytes_before > row.bytes
        assert (row.max_difference is None) == (target.suffix == ".safetensors")  # weights alone do not run
        assert (row.max_difference or 0.0) < 1e-5  # float32 rounding of two small layers
    assert rows[0].latency_ms is not None
    assert rows[0].latency_before_ms is not None
    assert sorted(tmp_path.iterdir()) == sorted(targets)


@pytest.mark.parametrize(("suffix", "trust"), [(".pt2", False), (".pt", True)])
def test_written_networks_load_again(suffix: str, trust: bool, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    write.write_all(network(), None, inputs(1), inputs(), [path])
    loaded = load_model(path, trust=trust)
    assert torch.allclose(loaded.module(inputs()), network()(inputs()), atol=1e-6)


class Rows(nn.Module):
    """Takes its batch apart, so that torch.export cannot leave its size open."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * row.sum() for row in x])


def test_a_batch_size_that_is_built_in_is_reported(tmp_path: Path) -> None:
    targets = [tmp_path / "net.onnx", tmp_path / "net.pt2", tmp_path / "net.pt"]
    rows = write.write_all(nn.Sequential(nn.Linear(6, 4), Rows()).eval(), None, inputs(1), inputs(), targets)
    assert [row.batch for row in rows] == [1, 1, None]
    assert [row.batch for row in write.write_all(network(), None, inputs(1), inputs(), targets)] == [None] * 3


@pytest.mark.parametrize("select", ["inchange", "layerweightnorm"], ids=["errors", "no errors"])
def test_a_plan_is_what_it_was(select: str, tmp_path: Path) -> None:
    module, path = network(), tmp_path / "net.plan"
    with pytest.raises(SubpruneError, match=r"net\.plan: there is no plan to write"):
        write.write_all(module, None, inputs(1), inputs(), [path])
    assert not list(tmp_path.iterdir())
    plan = subprune_fx.prune(module, inputs(), ratio=1.5, select=select).plan
    with atomic.staged([path]) as temporaries:
        (row,) = write.fill(module, None, inputs(1), inputs(), temporaries, plan=plan)
    assert same(plan, subprune_fx.Plan.load(path))
    assert (row.bytes, row.bytes_before, row.latency_ms) == (path.stat().st_size, None, None)


def test_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    for name in ("net.zip", "net"):
        with pytest.raises(SubpruneError, match=r"\.onnx, \.pt2, \.pt"):
            write.write_all(network(), None, inputs(1), inputs(), [tmp_path / name])


def test_one_failing_output_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = tmp_path / "net.pt", tmp_path / "net.onnx"
    good.write_bytes(b"what was there before")

    def fail(*args: object, **options: object) -> float:
        raise ValidationError("it differs", where=str(args[0]))

    monkeypatch.setattr(validate, "validate_onnx", fail)
    with pytest.raises(ValidationError, match=r"net\.onnx: it differs") as caught:
        write.write_all(network(), None, inputs(1), inputs(), [good, bad])
    assert caught.value.where == str(bad)  # not the temporary file's name
    assert good.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [good]


def test_original_without_a_form_in_the_format_only_loses_its_figures(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    (row,) = write.write_all(network(), Branch(), inputs(1), inputs(), [tmp_path / "net.onnx"])
    assert row.bytes_before is None
    assert row.latency_before_ms is None
    assert row.latency_ms is not None


# Targets.


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


TARGETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no folder": (lambda root: root / "nowhere" / "net.onnx", "does not exist"),
    "a folder": (lambda root: _folder(root / "net.onnx"), "is a folder"),
    "in a file": (lambda root: _file(root / "file") / "net.onnx", "is not a folder"),
    "a device": (lambda root: Path(os.devnull), "not a regular file"),
}


def _file(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    make, says = TARGETS[name]
    with pytest.raises(SubpruneError, match=says):
        atomic.check_target(make(tmp_path))


def test_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so ask for a no
    with pytest.raises(SubpruneError, match="cannot be written"):
        atomic.check_target(tmp_path / "net.onnx")


def test_same_target_twice(tmp_path: Path) -> None:
    twice = [tmp_path / "net.onnx", tmp_path / "." / "net.onnx"]
    with pytest.raises(SubpruneError, match="named twice"), atomic.staged(twice):
        pass
    assert not list(tmp_path.iterdir())


# Atomicity.


def test_replacing_swaps_in_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic.replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent
        assert temporary.suffix == target.suffix
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_everything_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    old, fresh = tmp_path / "old.txt", tmp_path / "fresh.txt"
    old.write_text("old")

    def fail() -> None:
        with atomic.staged([old, fresh]) as temporaries:
            temporaries[old].write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_nothing_is_renamed_until_all_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    order: list[str] = []
    monkeypatch.setattr(atomic, "_flush", lambda path: order.append("flush"))
    replace = Path.replace

    def note(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", note)
    with atomic.staged([first, second]):
        pass
    assert order == ["flush", "flush", "rename", "rename"]


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic.replacing(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


LOOP = """
import sys
from subprune_fx.formats import atomic
one, two = sys.argv[1:]
print("ready", flush=True)
for turn in range(10**6):
    with atomic.staged([one, two]) as temporaries:
        for temporary in temporaries.values():
            with temporary.open("wb") as file:
                for _ in range(64):
                    file.write(b"%d" % (turn % 10) * 4096)
"""


def test_killed_at_any_moment_it_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    targets = [tmp_path / "one.bin", tmp_path / "two.bin"]
    dice = random.Random(0)
    for _ in range(12):
        command = [sys.executable, "-c", LOOP, *map(str, targets)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(dice.uniform(0.001, 0.05))
            child.kill()
        for target in (target for target in targets if target.exists()):
            content = target.read_bytes()
            assert len(content) == 64 * 4096
            assert len(set(content)) == 1
    assert all(target.exists() for target in targets)  # at least one turn was over before a kill


def test_an_op_that_onnx_has_not_is_named(tmp_path: Path) -> None:
    class Rays(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x).cumprod(1)  # type: ignore[no-untyped-call]
            return out

    net = fx.symbolic_trace(Rays(nn.Linear(6, 3)).eval())
    with pytest.raises(SubpruneError, match=r"No ONNX function found for .*prod") as caught:
        write.write_all(net, None, inputs(1), inputs(), [tmp_path / "net.onnx"])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
