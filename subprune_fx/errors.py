"""The one error that users of this package see."""

from __future__ import annotations


class SubpruneError(Exception):
    """Something the user can act on, said in one line: where, what, and the remedy.

    Attributes:
        what: What is wrong.
        where: The file, layer or option it concerns; may be empty.
        remedy: What to do about it; may be empty.
        exit_code: What `subprune-compile` exits with: 2, bad input.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = _one_line(what)
        self.where = _one_line(where)
        self.remedy = _one_line(remedy)
        super().__init__(str(self))

    def __str__(self) -> str:
        """`where: what; remedy`, on one line."""
        prefix = f"{self.where}: " if self.where else ""
        suffix = f"; {self.remedy}" if self.remedy else ""
        return f"{prefix}{self.what}{suffix}"


class ValidationError(SubpruneError):
    """The compiled network ran but does not agree with its reference; nothing was written (exit code 1)."""

    exit_code = 1


def _one_line(text: str) -> str:
    return " ".join(text.split())
