"""What all tests share: the repository, one thread, a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

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
