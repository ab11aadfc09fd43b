"""Several inputs of one network, kept together: what a tensor is to a network with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Tensors with the samples along their first axis; slices and indices select samples, as of a tensor.

    Attributes:
        parts: The tensors, in the order in which the network takes them.
        names: The arguments they are passed as; None: by position.
    """

    parts: tuple[Tensor, ...]
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, samples: slice | Tensor) -> Bundle:
        return self.map(lambda part: part[samples])

    def map(self, change: Callable[[Tensor], Tensor]) -> Bundle:
        """The same with every tensor changed."""
        return dataclasses.replace(self, parts=tuple(change(part) for part in self.parts))

    def clone(self) -> Bundle:
        """A copy."""
        return self.map(torch.clone)


Inputs = Tensor | Bundle
"""Inputs of a network, first axis = sample."""


def parts(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors."""
    return inputs.parts if isinstance(inputs, Bundle) else (inputs,)


def placed(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs on a device."""
    return inputs.map(lambda part: part.to(device)) if isinstance(inputs, Bundle) else inputs.to(device)


def in_double(inputs: Inputs) -> Inputs:
    """The same inputs in float64; tokens and flags stay what they are."""
    return inputs.map(_in_double) if isinstance(inputs, Bundle) else _in_double(inputs)


def _in_double(part: Tensor) -> Tensor:
    return part.double() if part.is_floating_point() else part


def device_of(module: nn.Module) -> torch.device:
    """The device of a network's parameters and buffers; the CPU where it has none."""
    known = next((value for value in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if known is None else known.device


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments of a forward."""
    if isinstance(inputs, Bundle) and inputs.names is not None:
        return (), dict(zip(inputs.names, inputs.parts, strict=True))
    return parts(inputs), {}


def call(module: nn.Module, inputs: Inputs) -> Any:
    """The network's output."""
    positional, named = arguments(inputs)
    return module(*positional, **named)


def joined(pieces: Sequence[Inputs]) -> Inputs:
    """Samples of several pieces, one after the other."""
    first = pieces[0]
    if isinstance(first, Bundle):
        columns = zip(*(parts(piece) for piece in pieces), strict=True)
        return dataclasses.replace(first, parts=tuple(torch.cat(column) for column in columns))
    return torch.cat([parts(piece)[0] for piece in pieces])


def one_more(inputs: Inputs) -> Inputs:
    """The same inputs with the first sample once more at the end: what has a number of samples built in shows it."""
    return joined([inputs, inputs[:1]])
