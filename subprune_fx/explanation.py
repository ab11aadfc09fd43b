"""What can be pruned and what not, as a frozen value that prints and draws itself."""

from __future__ import annotations

import dataclasses
import os

from subprune_fx.report import FrozenRow


@dataclasses.dataclass(frozen=True)
class Coupled:
    """Channels that live or die together, one decision for all layers named here.

    Attributes:
        name: The group's first producer.
        channels: How many.
        producers: Layers that make them.
        followers: Layers and parameters that are cut along.
        consumers: Layers that read them, and are refitted.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]

    def roles(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What the layers do, with those that do it; what none does is left out."""
        every = (("made by", self.producers), ("followed by", self.followers), ("read by", self.consumers))
        return tuple((what, names) for what, names in every if names)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The dependency graph of a network, for the reader.

    Attributes:
        network: What it is called.
        groups: What can be pruned, in the order of the network.
        frozen: What stays, and why.
    """

    network: str
    groups: tuple[Coupled, ...]
    frozen: tuple[FrozenRow, ...]

    def __str__(self) -> str:
        count = len(self.groups)
        lines = [f"{self.network}: {count} group{'' if count == 1 else 's'} of channels can be pruned"]
        for group in self.groups:
            lines += ["", f"{group.name}: {group.channels} channels"]
            lines += [f"  {what:<12}{', '.join(names)}" for what, names in group.roles()]
        if self.frozen:
            count = sum(row.channels for row in self.frozen)
            lines += ["", f"{count} channels stay" if count else "what stays whole"]
            lines += [f"  {row}" for row in self.frozen]
        return "\n".join(lines)

    def save(self, *paths: str | os.PathLike[str]) -> None:
        """Draw it into files, all or none: `.svg`, `.html` (with the drawing in it) or `.dot` (for Graphviz).

        Raises:
            SubpruneError: A suffix is another, or a file cannot be written.
        """
        from subprune_fx.formats.atomic import naming, staged  # noqa: PLC0415 - as Plan.save
        from subprune_fx.formats.drawing import drawing_of  # noqa: PLC0415

        drawings = [drawing_of(path) for path in paths]
        with staged(paths) as temporaries:
            for draw, (target, temporary) in zip(drawings, temporaries.items(), strict=True):
                with naming(target):
                    temporary.write_text(draw(self), encoding="utf-8")
