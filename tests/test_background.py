"""Work in a second process: done, failed, or taking too long."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from subprune_fx import background
from subprune_fx.passes import baseline, write

forks = pytest.mark.skipif(not background.can_fork(), reason="needs Linux and two processors")


@forks
def test_work_is_done_in_another_process(tmp_path: Path) -> None:
    work = background.Background(lambda: (tmp_path / "pid").write_text(str(os.getpid()))).ended_well(60)
    assert work
    assert int((tmp_path / "pid").read_text()) != os.getpid()


@forks
@pytest.mark.parametrize("work", [lambda: 1 / 0, lambda: os._exit(3), lambda: time.sleep(600)])
def test_what_fails_or_takes_too_long_has_not_ended_well(work: Callable[[], object]) -> None:
    start = time.monotonic()
    assert not background.Background(work).ended_well(2)
    assert time.monotonic() - start < 60


@forks
def test_torch_works_in_it_after_threads_have_been_used(tmp_path: Path) -> None:
    """OpenMP's threads are not there in a fork; one that waited for them would hang."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(256, 64, 32, 32)
        nn.functional.conv2d(x, torch.randn(64, 64, 3, 3))

        def work() -> None:
            torch.save(nn.functional.conv2d(x, torch.ones(8, 64, 3, 3)).sum(), tmp_path / "sum.pt")

        assert background.Background(work).ended_well(120)
    finally:
        torch.set_num_threads(threads)
    torch.load(tmp_path / "sum.pt", weights_only=True)


@pytest.mark.parametrize("how", ["background", "in turn", "dies"])
def test_the_original_is_written_once_however_that_goes(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "in turn":
        monkeypatch.setattr(baseline, "can_fork", lambda: False)
    if how == "dies":
        monkeypatch.setattr(background.Background, "ended_well", lambda self, _patience: bool(self.stop()))
    model, x = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 2)).eval(), torch.randn(4, 3)
    (row,) = write.write_all(model, model, x[:1], x, [tmp_path / "out.onnx"])
    assert row.bytes_before == row.bytes
    assert row.latency_before_ms is not None


def test_a_daemon_has_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert not background.can_fork()
