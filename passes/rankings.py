"""Nested orders of all groups by the original network, each found when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subprune_fx.graph.channels import Group
from subprune_fx.passes.clock import Tick
from subprune_fx.selectors import Ranking
from subprune_fx.team import Team

Rank = Callable[[Group, int | None], Ranking]
"""From a group and how many of its units are wanted (None: all of them) to a ranking of at least so many."""


class Rankings(Mapping[str, Ranking]):
    """By name of the group, of all units.

    A budget asks for all of them; a network of which every group keeps the same fraction only for those that the sweep
    does not rank again, and of those only for the units that are kept.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rank: Rank,
        team: Team,
        tick: Tick,
        gather: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """Rank none yet.

        Args:
            groups: What to rank.
            rank: Ranks one.
            team: Who shares the work. Its processes must ask for the same groups in the same order.
            tick: Told (groups ranked, groups).
            gather: Told the groups before some are ranked, by all processes: finds what `rank` reads that all have to
                find together.
        """
        self._groups = {group.name: group for group in groups}
        self._rank, self._team, self._tick, self._gather = rank, team, tick, gather
        self._known: dict[str, tuple[int | None, Ranking]] = {}

    def __getitem__(self, name: str) -> Ranking:
        """The ranking of a group."""
        return self.first({name: None})[name]

    def __iter__(self) -> Iterator[str]:
        """All groups, ranked or not."""
        return iter(self._groups)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    def first(self, counts: Mapping[str, int | None]) -> dict[str, Ranking]:
        """Rankings of at least so many units (None: all), by group.

        Those that are missing are ranked now; each process ranks some of them.
        """
        missing = [name for name, count in counts.items() if not self._enough(name, count)]
        if missing:
            self._gather(missing)
        own = {}
        for place, name in enumerate(missing, 1):
            if place % self._team.size == self._team.rank:
                own[name] = counts[name], self._rank(self._groups[name], counts[name])
            self._tick(min(len(self._known) + place, len(self)), len(self))
        for some in self._team.gathered(own) if missing else ():
            self._known |= some
        return {name: self._known[name][1] for name in counts}

    def _enough(self, name: str, count: int | None) -> bool:
        """Whether so many units are ranked. Those that are all kept have been given in no order."""
        ranked = self._known[name][0] if name in self._known else 0
        if ranked is None or count is None:
            return ranked is None
        return count == ranked or count < ranked < len(self._groups[name].units)

    def known(self, name: str) -> Ranking | None:
        """The ranking of a group, or of its first units, if it has been asked for."""
        return self._known[name][1] if name in self._known else None


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
