"""Work in the background: a second process that writes files while this one goes on.

The process is a fork, so that a network need not be pickled. What runs in it must use one thread: other threads of this
process are not there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable

import torch
from torch import distributed


class Background:
    """A piece of work that has been started."""

    def __init__(self, work: Callable[[], object]) -> None:
        """Start it."""
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(work,), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: that other threads are not there
            self._process.start()

    def ended_well(self, patience: float) -> bool:
        """Whether the work is done, after waiting for that as many seconds; if not, it is stopped."""
        self._process.join(patience)
        done = self._process.exitcode == 0
        self.stop()
        return done

    def stop(self) -> None:
        """End it, done or not."""
        self._process.kill()
        self._process.join()


def can_fork() -> bool:
    """Whether a fork can work here, and would have a processor of its own."""
    return (
        sys.platform == "linux"
        and len(os.sched_getaffinity(0)) > 1
        and not multiprocessing.current_process().daemon  # may have no children
        and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        and not (distributed.is_available() and distributed.is_initialized())
    )


def _run(work: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's, which stops this
    torch.set_num_threads(1)
    try:
        work()
    except BaseException:  # noqa: BLE001 - the parent does the work itself and sees what is wrong
        os._exit(1)
    os._exit(0)
