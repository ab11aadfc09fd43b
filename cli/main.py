"""The console entry point: parse, run, and turn every failure into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NamedTuple

import click

from subprune_fx.cli.options import Request, command
from subprune_fx.cli.values import PROGRAM
from subprune_fx.errors import SubpruneError
from subprune_fx.garbage import seldom


class Outcome(NamedTuple):
    """What to say about one kind of exception, and the exit code (a `SubpruneError` has its own)."""

    kind: type[BaseException]
    code: int
    say: Callable[[BaseException], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `subprune-compile`.

    Args:
        arguments: The command line without the program's name; None: that of this process.

    Returns:
        The exit code: 0 done, 1 validation failed, 2 bad input, 70 a fault of this program, 130 interrupted.
    """
    verbose = False
    try:
        words = None if arguments is None else list(arguments)
        request = command.main(words, prog_name=PROGRAM, standalone_mode=False)
        if not isinstance(request, Request):  # --help and --version have answered
            return int(request or 0)
        verbose = request.verbose
        with seldom():
            return _run(request)
    except BrokenPipeError:  # the reader of our table has left; the files are in place
        sys.stdout = None
        return 0
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - nothing leaves as a traceback
        return _fail(error, verbose=verbose)


def _run(request: Request) -> int:
    previous = signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files are removed
    try:
        from subprune_fx.cli.compile import run  # noqa: PLC0415 - imports torch: --help must not

        return run(request)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _fail(error: BaseException, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):  # torch has no MemoryError
        error = MemoryError()
    outcome = next(row for row in OUTCOMES if isinstance(error, row.kind))
    # Names in it come from files that may be damaged or hostile: no escape sequences to the terminal.
    line = " ".join(outcome.say(error).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    rank = os.environ.get("RANK", "0")  # of several processes, see `subprune_fx.team`
    who = PROGRAM if rank == "0" else f"{PROGRAM} (process {rank})"
    print(f"{who}: error: {line}", file=sys.stderr)
    return int(getattr(error, "exit_code", 2)) if outcome.kind is SubpruneError else outcome.code


def _usage(error: BaseException) -> str:
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return f"{text.rstrip('.')}; see {PROGRAM} --help"


def _system(error: BaseException) -> str:
    place, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    what = f"{place}: {reason}" if place and reason else str(reason or error)
    return f"{what}; check space and rights (TMPDIR says where temporary files go)"


def _unexpected(error: BaseException) -> str:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected {detail}; run again with -v and report the traceback"


FAULT = 70  # EX_SOFTWARE of sysexits.h: whoever calls it can tell a bug from bad input

# In order: the first row whose kind fits has it.
OUTCOMES = (
    Outcome(SubpruneError, 2, str),
    Outcome(click.ClickException, 2, _usage),
    Outcome(click.Abort, 130, lambda _: "interrupted, nothing was written"),
    Outcome(KeyboardInterrupt, 130, lambda _: "interrupted, nothing was written"),
    Outcome(MemoryError, 2, lambda _: "out of memory; give fewer calibration inputs, or --memory 4GiB to keep less"),
    Outcome(OSError, 2, _system),
    Outcome(Exception, FAULT, _unexpected),
)
