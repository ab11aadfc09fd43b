"""A cap on the activations that are kept: what is over it lives in memory-mapped temporary files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Inputs, joined
from subprune_fx.errors import SubpruneError
from subprune_fx.heap import release

T = TypeVar("T")

Environment = MutableMapping[Any, Any]


class Store:
    """Keeps the activations of several environments below a limit; they stay ordinary tensors.

    The largest go first: they are the most bytes for a file. A file is unlinked as soon as it is mapped, so its blocks
    go with the tensor, and nothing is left behind whatever ends the process.

    Attributes:
        limit: Bytes; None: no limit.
        peak: The most bytes that were kept in memory after a `trim`.
        spilled: Bytes written so far.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.peak = 0
        self.spilled = 0
        self._exempt: set[int] = set()

    def exempt(self, tensors: Iterable[Tensor]) -> None:
        """Leave these alone and do not count them: others hold them too."""
        self._exempt.update(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def trim(self, *environments: Environment) -> None:
        """Move storages to files until what the environments keep in memory fits.

        A value that several of them hold stays one object, and tensors that share memory go on sharing it.
        """
        if self.limit is None:
            return
        kept = {id(tensor): tensor for environment in environments for tensor in _tensors(environment.values())}
        inside: dict[int, torch.UntypedStorage] = {}
        for at, storage in _storages(kept.values()).items():
            if storage.filename is not None:
                release(storage)  # what was read of it need not stay in memory
            elif at not in self._exempt:
                inside[at] = storage
        total = sum(storage.nbytes() for storage in inside.values())
        moved: dict[int, torch.UntypedStorage] = {}
        for start, storage in sorted(inside.items(), key=lambda item: -item[1].nbytes()):
            if total <= self.limit:
                break
            moved[start] = self._file(storage)
            total -= storage.nbytes()
        self.peak = max(self.peak, total)
        if not moved:
            return
        new = {key: _over(tensor, moved.get(tensor.untyped_storage().data_ptr())) for key, tensor in kept.items()}
        for environment in environments:
            for node, value in environment.items():
                environment[node] = _replaced(value, new)

    def passed(self, values: Iterable[T]) -> Iterator[T]:
        """The same values; what was read of files for one of them is out of memory when the next is asked for."""
        for value in values:
            yield value
            if self.limit is None:
                continue
            for storage in _storages(_tensors([value])).values():
                if storage.filename is not None:
                    release(storage)

    def _file(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """A copy of a storage in a file that has no name any more."""
        with tempfile.NamedTemporaryFile(prefix="subprune-", delete=False) as file:
            path = Path(file.name)
        try:
            _reserve(path, storage.nbytes())
            found = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=storage.nbytes())
            assert isinstance(found, torch.UntypedStorage)
        finally:
            with contextlib.suppress(OSError):  # where open files cannot be unlinked, the system cleans up
                path.unlink()
        found.copy_(storage)
        release(found)
        self.spilled += storage.nbytes()
        return found


def _storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """By address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


def _reserve(path: Path, size: int) -> None:
    """Take the room on the disk now: a write to a mapped page that the disk has no room for ends the process."""
    try:
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        what = f"no room for {size / 1e6:.0f} MB of activations ({error.strerror})"
        raise SubpruneError(
            what, where=str(path.parent), remedy="set TMPDIR to a larger disk, or raise the limit"
        ) from error


def _over(tensor: Tensor, storage: torch.UntypedStorage | None) -> Tensor:
    if storage is None:
        return tensor
    return tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _tensors(values: Any) -> Iterator[Tensor]:
    """What takes memory; parameters belong to the network."""
    for leaf in pytree.tree_leaves(list(values)):
        if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and leaf.device.type == "cpu":
            yield leaf


def _replaced(value: Any, new: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    flat, spec = pytree.tree_flatten(value)
    changed = [new.get(id(leaf), leaf) for leaf in flat]
    if all(one is other for one, other in zip(flat, changed, strict=True)):
        return value
    return pytree.tree_unflatten(changed, spec)


def batch_within(limit: int | None, batch: int, module: fx.GraphModule, sample: Inputs) -> int:
    """Samples a forward pass, such that the activations that live at a time take at most a quarter of the limit.

    Args:
        limit: Bytes; None: no limit.
        batch: The most samples.
        module: The network.
        sample: An input of it.
    """
    if limit is None:
        return batch
    tally = _Tally(module)
    with torch.no_grad():
        tally.run(joined([sample]))  # a copy: of a slice, all that it is a slice of would count
    return max(1, min(batch, limit // 4 * len(sample) // max(1, tally.peak)))


class _Tally(fx.Interpreter):
    """Runs a network and records the most bytes that live at a time."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.peak = 0

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in _tensors([*self.env.values(), found])
        }
        self.peak = max(self.peak, sum(storages.values()))
        return found
