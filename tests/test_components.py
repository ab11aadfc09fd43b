"""Connected components against a search from every node."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from subprune_fx.graph.components import components
from subprune_fx.graph.propagation import Propagation

NODES = 24
node = st.integers(0, NODES - 1)


@given(st.lists(st.tuples(node, node), max_size=2 * NODES))
def test_components_are_what_a_search_finds(edges: list[tuple[int, int]]) -> None:
    near: dict[int, set[int]] = {n: {n} for n in range(NODES)}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    wanted = np.full(NODES, -1)
    number = 0
    for start in range(NODES):
        if wanted[start] >= 0:
            continue
        reached, ends = {start}, [start]
        while ends:
            new = near[ends.pop()] - reached
            reached |= new
            ends += new
        wanted[list(reached)] = number
        number += 1
    left, right = (np.array([edge[end] for edge in edges], dtype=np.int64) for end in (0, 1))
    assert np.array_equal(components(left, right, NODES), wanted)


def test_a_long_chain_in_the_worst_order() -> None:
    order = np.random.default_rng(0).permutation(1 << 14)
    assert not components(order[1:], order[:-1], order.size).any()


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=4), max_size=4))
def test_sets_that_grow_are_those_found_at_once(rounds: list[list[tuple[int, int]]]) -> None:
    """Each round makes labels, joins some of those that are there, and looks at the sets, or not at all."""
    asked, once = Propagation(), Propagation()
    for pairs in rounds:
        for state in (asked, once):
            state.fresh(6, "layer", producer=True)
            for left, right in pairs:
                state.unify(np.array([left]), np.array([state.count - right]), "")
        asked.components()
    assert np.array_equal(asked.components(), once.components())
