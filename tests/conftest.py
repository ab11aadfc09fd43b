"""What all tests share: the repository, one thread, a fixed seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Small networks gain nothing from threads, and the workers of `pytest -n auto` would fight over the cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start

# A slow machine must not fail a property, and a red build must be red again on the next run.
settings.register_profile("subprune_fx", deadline=None, derandomize=True)
settings.load_profile("subprune_fx")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
