"""Memory that was freed is kept for the next activation."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from subprune_fx.heap import WORTH

FAULTS = """
import resource, torch
from subprune_fx.heap import keep, trim

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def activation():
    before = faults()
    torch.ones({size})
    return faults() - before

{keep}
[activation() for _ in range(20)]  # the heap grows until it fits
again = sum(activation() for _ in range(20))
trim()
print(again, activation())
"""


def faults(keep: str, size: int = 1 << 24) -> list[int]:
    """Pages that were new to 20 activations of `size` floats, and to one after `trim`."""
    code = FAULTS.format(keep=keep, size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own")
def test_freed_pages_are_used_again_until_they_are_given_back() -> None:
    size = WORTH // 4 * 5 // 4  # one alone is worth to be given back, however far the heap has grown
    pages = 4 * size // resource.getpagesize()
    alone, _ = faults("", size)
    again, new = faults("keep(1000)", size)
    assert alone >= 20 * pages  # what this is about; if glibc has learned it, `keep` can go
    assert again < pages
    assert new >= pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own")
def test_little_is_not_given_back() -> None:
    size = WORTH // 4 // 64  # the heap grows to several of them before it fits
    _, new = faults("keep(1000)", size)
    assert new < size * 4 // resource.getpagesize() // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own")
def test_a_large_network_gives_back_what_it_frees() -> None:
    again, _ = faults("keep(1 << 30)")
    assert again >= 20 * (4 << 24) // resource.getpagesize()
    kept, _ = faults("keep(1000)")
    assert kept < again
