"""The one error that users of this package see, and other libraries' errors in one line."""

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


LONGEST = 200
"""Characters of another library's message that are repeated."""


def first_line(error: BaseException) -> str:
    r"""The first line of an exception's message, cut to `LONGEST`; its type where it has none.

    >>> first_line(ValueError("bad size\nsee the manual"))
    'bad size'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST] if lines else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())
