"""Labels cost what varies in them, however large the tensor is."""

from __future__ import annotations

import numpy as np
import pytest

from subprune_fx.graph.labels import along, distinct, expand, survivors

SIDE = 1 << 20
"""Positions along each of two dimensions: nobody could go through all of them."""


def test_survivors_are_found_where_labels_vary() -> None:
    keep = np.array([True, True, False, True, False])
    found = survivors(along(np.arange(5), 1, (SIDE, 5, SIDE)), keep)
    assert [None if index is None else index.tolist() for index in found] == [None, [0, 1, 3], None]


def test_survivors_that_are_no_product_are_refused() -> None:
    labels = expand(np.array([[1, 2], [3, 4]])[:, None, :], (2, SIDE, 2))
    with pytest.raises(ValueError, match="not rectangular"):
        survivors(labels, np.array([True, True, False, True, True]))


@pytest.mark.parametrize("labels", [[], [3], [[5, 0], [5, 5]], [2, 1, 2, 7]])
def test_each_label_once_and_in_order(labels: list[int]) -> None:
    found = np.array(labels, dtype=np.int64)
    assert distinct(found).tolist() == np.unique(found).tolist()
