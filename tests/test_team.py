"""Several processes find what one finds; when one is lost, all end, and no file is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.plan import Plan, same
from subprune_fx.team import Team, team_of_environment

RATIO: dict[str, Any] = {"ratios": [3]}
CHOICES: dict[str, dict[str, Any]] = {
    "plain": RATIO,
    "measured": {**RATIO, "target": "size"},
    "in rounds": {**RATIO, "budget": "accuracy"},
    "one group": {"ratios": [2], "select": "layersampling", "only": ["5"]},  # one process has none to rank
    "ranked again": {"keeps": [0.25, 0.75], "variant": "layer", "only": ["5"]},
}

ROOT = Path(subprune_fx.__path__[0]).parent
COMMAND = ["-m", "subprune_fx.cli", "net.pt", "--ratio", "3", "--calib", "x.npz", "--seed", "1"]

PRUNING = """
import json, os, signal, sys
import numpy as np, torch, subprune_fx
from subprune_fx.team import team_of_environment

def progress(stage, done, total):
    if stage == sys.argv[1] and 2 * done >= total:
        os.kill(os.getpid(), signal.SIGKILL)

with team_of_environment() as team:
    network, x = torch.load("net.pt", weights_only=False), torch.from_numpy(np.load("x.npz")["x"])
    *_, pruned = subprune_fx.prune_each(network, x, **json.loads(sys.argv[2]), seed=1, team=team, progress=progress)
    pruned.plan.save(f"{team.rank}.plan")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with convolutions, a linear layer and ReLUs, and an odd number of inputs."""
    path = tmp_path_factory.mktemp("team")
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 24), nn.ReLU())
    torch.save(nn.Sequential(*layers, nn.Linear(24, 4)).eval(), path / "net.pt")
    np.savez(path / "x.npz", x=np.random.default_rng(0).standard_normal((301, 1, 8, 8)).astype(np.float32))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(arguments: list[str], folder: Path, rank: int, size: int, port: int) -> subprocess.Popen[str]:
    joining = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment(**joining), text=True, stderr=subprocess.PIPE
    )


def alone(folder: Path, **more: Any) -> subprune_fx.Pruned:
    x = torch.from_numpy(np.load(folder / "x.npz")["x"])
    return subprune_fx.prune(torch.load(folder / "net.pt", weights_only=False), x, ratio=3, seed=1, **more)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_two_processes_find_what_one_finds(choices: dict[str, Any], folder: Path) -> None:
    x = torch.from_numpy(np.load(folder / "x.npz")["x"])
    *_, single = subprune_fx.prune_each(torch.load(folder / "net.pt", weights_only=False), x, **choices, seed=1)
    port = free_port()
    both = [start(["-c", PRUNING, "never", json.dumps(choices)], folder, rank, 2, port) for rank in range(2)]
    for process in both:
        try:
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, said
    plans = [Plan.load(folder / f"{rank}.plan") for rank in range(2)]
    assert same(*plans)
    assert [d.kept for d in plans[0].decisions] == [d.kept for d in single.plan.decisions]
    for name, value in single.plan.values.items():
        # Rounding: other batches are summed in float32 in another order.
        torch.testing.assert_close(plans[0].values[name], value, rtol=1e-3, atol=1e-4)


def test_torchrun(folder: Path) -> None:
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    out = ["-o", "together.onnx", "--json", "together.json"]
    done = subprocess.run(
        [*launched, str(free_port()), *COMMAND, *out],
        check=False,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("together.onnx") == 1  # one process speaks
    report, single = json.loads((folder / "together.json").read_text()), alone(folder).report
    assert [row["kept"] for row in report["groups"]] == [row.kept for row in single.groups]
    assert report["agreement"] == pytest.approx(single.agreement, abs=2 / 301)  # ties that rounding decides
    assert not list(folder.glob(".*"))


def test_a_lost_process_ends_the_run(folder: Path) -> None:
    port = free_port()
    first = start([*COMMAND, "-o", "lost.onnx"], folder, 0, 2, port)
    second = start(["-c", PRUNING, "sweep", json.dumps(RATIO)], folder, 1, 2, port)
    _, said = first.communicate(timeout=300)
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 2
    assert said.splitlines()[-1].startswith("subprune-compile: error: another process of this run has ended")
    assert not list(folder.glob("*lost*"))
    assert not list(folder.glob(".*"))


def test_shares_of_the_first_samples_are_first_in_the_shares() -> None:
    x = torch.arange(10)
    teams = [Team(rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([team.share(x) for team in teams]).sort().values, x)
    assert [team.share(x[:4]).tolist() for team in teams] == [
        team.share(x)[:n].tolist() for team, n in zip(teams, (2, 1, 1), strict=True)
    ]


def test_one_process_is_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with team_of_environment() as team:
        assert team == Team(0, 1)
        assert team.gathered(3) == [3]


@pytest.mark.parametrize(
    ("choices", "what"),
    [({"distil": 1}, "distillation"), ({"select": "actgrad", "labels": torch.zeros(301).long()}, "selector actgrad")],
)
def test_what_cannot_be_shared_is_refused(folder: Path, choices: dict[str, Any], what: str) -> None:
    with pytest.raises(SubpruneError, match=f"{what} cannot be shared by 2 processes"):
        alone(folder, team=Team(0, 2), **choices)
