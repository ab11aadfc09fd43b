"""Nested orders of all groups by the original network, each found when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.graph.channels import Group
from subprune_fx.selectors import Ranking
from subprune_fx.team import Team

Rank = Callable[[Group], Ranking]
Told = Callable[[int, int], None]


class Rankings(Mapping[str, Ranking]):
    """By name of the group.

    A budget asks for all of them; a network of which every group keeps the same fraction only for those that the sweep
    does not rank again.
    """

    def __init__(self, groups: Sequence[Group], rank: Rank, team: Team, told: Told) -> None:
        """Rank none yet.

        Args:
            groups: What to rank.
            rank: Ranks one.
            team: Who shares the work. Its processes must ask for the same groups in the same order.
            told: How many of all are ranked, and all.
        """
        self._groups = {group.name: group for group in groups}
        self._rank, self._team, self._told = rank, team, told
        self._known: dict[str, Ranking] = {}

    def __getitem__(self, name: str) -> Ranking:
        """The ranking of a group."""
        self.find([name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """All groups, ranked or not."""
        return iter(self._groups)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    def find(self, names: Sequence[str]) -> None:
        """Rank those groups that are not yet; each process ranks some of them."""
        missing = [name for name in names if name not in self._known]
        if not missing:
            return
        own = {}
        for place, name in enumerate(missing, 1):
            if place % self._team.size == self._team.rank:
                own[name] = self._rank(self._groups[name])
            self._told(len(self._known) + place, len(self))
        for some in self._team.gathered(own):
            self._known |= some

    def known(self, name: str) -> Ranking | None:
        """The ranking of a group, if it has been asked for."""
        return self._known.get(name)


class Orders(Mapping[str, NDArray[np.int64]]):
    """The order alone: positions within the group, first the one to keep longest."""

    def __init__(self, rankings: Rankings) -> None:
        """Of these rankings."""
        self._rankings = rankings

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        """The order of a group."""
        return self._rankings[name].order.numpy()

    def __iter__(self) -> Iterator[str]:
        """All groups."""
        return iter(self._rankings)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._rankings)
