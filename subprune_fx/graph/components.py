"""Connected components: by node, which nodes it is joined to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def components(left: Index, right: Index, count: int) -> Index:
    """Numbers the sets of nodes that edges connect, in the order of their smallest nodes.

    Each node points to a smaller one of its set, or to itself. All edges at once hang the larger of their ends' roots
    below the smaller, and pointers are followed to the roots, until no edge joins two of them.

    Args:
        left: One end of every edge, (edges,).
        right: The other, (edges,).
        count: How many nodes there are.

    Returns:
        (count,).

    >>> components(np.array([3, 1]), np.array([1, 4]), 5).tolist()
    [0, 1, 2, 1, 1]
    """
    root = np.arange(count)
    while True:
        one, two = root[left], root[right]
        apart = one != two
        if not apart.any():
            return (np.cumsum(root == np.arange(count)) - 1)[root]
        np.minimum.at(root, np.maximum(one, two)[apart], np.minimum(one, two)[apart])
        while not np.array_equal(followed := root[root], root):
            root = followed
