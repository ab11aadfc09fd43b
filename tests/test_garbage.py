"""Fewer runs of the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest

from subprune_fx.garbage import OBJECTS, seldom


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    """As it was, afterwards."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(("before", "inside"), [(700, OBJECTS), (2 * OBJECTS, 2 * OBJECTS), (0, 0)])
def test_inside_of_the_block_only(before: int, inside: int) -> None:
    gc.set_threshold(before)
    with contextlib.suppress(KeyError), seldom():
        assert gc.get_threshold()[0] == inside
        raise KeyError
    assert gc.get_threshold()[0] == before
