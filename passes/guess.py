"""What to feed a network where nothing says it: from its first layer, and from what it runs on."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from subprune_fx.bundle import Bundle, Inputs, call
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.formats.npy import check_memory
from subprune_fx.frontends.onnx_static import trial_sizes
from subprune_fx.passes.synthesise import SAMPLES, Wanted

PHOTOGRAPHS = (224, 256, 299, 384, 192, 160, 128, 96, 64, 48, 40, 32, 28)
THUMBNAILS = (32, 28, 64, 48, 40, 96, 128, 160, 192, 224, 256, 299, 384)
"""Sides of images, likely ones first: a first convolution that strides reads photographs."""
LENGTHS = (1024, 512, 256, 128, 64, 16000)
TOKENS = (16, 8, 4, 32, 64, 128)
CLASSES = 200
"""A network that tells apart more than so many was trained on photographs."""
REMEDY = "pass --calib X.npz, or --input-shape such as 1,3,32,32 (once for each of several inputs)"


class Guess(NamedTuple):
    """What to feed a network.

    Attributes:
        wanted: Its inputs, in its order.
        guessed: Whether a shape was found by trying.
    """

    wanted: tuple[Wanted, ...]
    guessed: bool


def guess(module: nn.Module, takes: Sequence[InputSpec], where: str) -> Guess:
    """What to feed a network.

    Args:
        module: In eval mode.
        takes: What is known of its inputs.
        where: Its file, for errors.

    Raises:
        SubpruneError: A shape is not known, and nothing that was tried runs; or inputs of it would not fit in memory.
    """
    needed = [taken for taken in takes if taken.required or taken.sample] or list(takes[:1]) or [InputSpec("x")]
    known = [taken.sample for taken in needed if taken.sample is not None]
    guessed = len(known) < len(needed)
    if guessed and len(needed) > 1:
        names = ", ".join(taken.name for taken in needed if taken.sample is None)
        raise SubpruneError(f"the shapes of its inputs are not known ({names})", where=where, remedy=REMEDY)
    found = _tried(module, needed[0], where) if guessed else _typed(module, needed, known, where)
    if found is None:
        raise SubpruneError("its input shape is not known", where=where, remedy=REMEDY)
    return Guess(tuple(_bounded(module, found)), guessed)


def _tried(module: nn.Module, taken: InputSpec, where: str) -> list[Wanted] | None:
    """The first candidate that the network runs on."""
    row, layer = _first_layer(module)
    dtype = taken.dtype or (torch.int64 if row is not None and row.tokens else torch.float32)
    for shape in _candidates(taken, row, layer, module, where):
        check_memory(4 * SAMPLES * math.prod(shape), where, f"an input of shape {shape}")
        wanted = Wanted(taken.keyword, shape, _tokens(dtype), dtype)
        if _runs(module, [wanted], [0]):
            return [wanted]
    return None


def _candidates(
    taken: InputSpec, row: FirstLayer | None, layer: Any, module: nn.Module, where: str
) -> list[tuple[int, ...]]:
    """Shapes of a sample, likely ones first.

    Raises:
        SubpruneError: The layer has not what such layers have: an unpickled one has what the file says.
    """
    try:
        if taken.accepts:
            return [*_filled(taken.accepts[1:], row, layer, module)]
        shapes = iter(()) if row is None else row.shapes(layer, module)
        return [tuple(operator.index(size) for size in shape) for shape in shapes]
    except Exception as error:
        what = f"holds a damaged network ({type(error).__name__}: {first_line(error)})"
        raise SubpruneError(what, where=where, remedy="save it again") from error


def _filled(
    accepts: Sequence[int | None], row: FirstLayer | None, layer: Any, module: nn.Module
) -> Iterator[tuple[int, ...]]:
    """Shapes whose free sizes are filled in, all of them alike."""
    ranks = {3: _sides(layer, module) if row is not None and row.kind is nn.Conv2d else PHOTOGRAPHS, 2: LENGTHS}
    for size in (1,) if None not in accepts else ranks.get(len(accepts), TOKENS):
        yield tuple(size if given is None else given for given in accepts)


def _typed(
    module: nn.Module, needed: Sequence[InputSpec], shapes: Sequence[tuple[int, ...]], where: str
) -> list[Wanted]:
    """Inputs of known shapes; which of them are tokens is tried out where it is not known."""
    for taken, shape in zip(needed, shapes, strict=True):
        check_memory(4 * SAMPLES * math.prod(shape[1:]), where, f"input {taken.name!r} of shape {shape[1:]}")
    kinds = [(taken.dtype,) if taken.dtype else (torch.float32, torch.int64) for taken in needed]
    options = [
        [Wanted(t.keyword, s[1:], _tokens(d), d) for t, s, d in zip(needed, shapes, dtypes, strict=True)]
        for dtypes in itertools.product(*kinds)
    ]
    return next((option for option in options if _runs(module, option, [0] * len(option))), options[0])


def _tokens(dtype: torch.dtype) -> int | None:
    return None if dtype.is_floating_point else 1


def _bounded(module: nn.Module, wanted: Sequence[Wanted]) -> Iterator[Wanted]:
    """Tokens bounded by the largest table that the network looks them up in without running over its end."""
    tables = {len(weight) for weight in module.parameters() if weight.ndim == 2}
    sizes = sorted(tables | {1, 2}, reverse=True)
    for place, item in enumerate(wanted):
        if item.tokens is None:
            yield item
            continue
        values = [[size - 1 if k == place else 0 for k in range(len(wanted))] for size in sizes]
        bound = next((v[place] + 1 for v in values if _runs(module, wanted, v)), 1)
        yield dataclasses.replace(item, tokens=2 if item.dtype is torch.bool else bound)


def _runs(module: nn.Module, wanted: Sequence[Wanted], values: Sequence[int]) -> bool:
    """Whether the network runs on constants."""
    return any(runs(module, _inputs(wanted, values, samples)) for samples in trial_sizes(module))


def _inputs(wanted: Sequence[Wanted], values: Sequence[int], samples: int) -> Inputs:
    tensors = tuple(
        torch.full((samples, *item.shape), value, dtype=item.dtype) for item, value in zip(wanted, values, strict=True)
    )
    return tensors[0] if len(tensors) == 1 else Bundle(tensors, tuple(item.name for item in wanted))


def runs(module: nn.Module, inputs: Inputs) -> bool:
    """Whether the network runs on them."""
    try:
        with torch.no_grad():
            call(module, inputs)
    except Exception:  # noqa: BLE001 - whatever a network raises on a size that it does not take
        return False
    return True


@dataclasses.dataclass(frozen=True)
class FirstLayer:
    """One kind of first layer: the shapes that a sample may have, and whether it reads tokens."""

    kind: type[nn.Module]
    shapes: Callable[[Any, nn.Module], Iterator[tuple[int, ...]]]
    tokens: bool = False


def _first_layer(module: nn.Module) -> tuple[FirstLayer | None, Any]:
    """The first layer that has a row, in the order in which they were made."""
    pairs = ((row, layer) for layer in module.modules() for row in FIRST_LAYERS if isinstance(layer, row.kind))
    return next(pairs, (None, None))


def _images(layer: nn.Conv2d, module: nn.Module) -> Iterator[tuple[int, ...]]:
    return ((layer.in_channels, size, size) for size in _sides(layer, module))


def _sides(layer: nn.Conv2d, module: nn.Module) -> tuple[int, ...]:
    return PHOTOGRAPHS if max(layer.stride) > 1 or _classes(module) > CLASSES else THUMBNAILS


def _classes(module: nn.Module) -> int:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return len(layers[-1].weight) if layers else 0


FIRST_LAYERS = (
    FirstLayer(nn.Conv2d, _images),
    FirstLayer(nn.Conv1d, lambda layer, _: ((layer.in_channels, size) for size in LENGTHS)),
    FirstLayer(nn.Conv3d, lambda layer, _: ((layer.in_channels, size // 4, size, size) for size in (112, 64, 32))),
    FirstLayer(nn.Linear, lambda layer, _: iter(((layer.in_features,), (16, layer.in_features)))),
    FirstLayer(nn.Embedding, lambda _layer, _: ((size,) for size in TOKENS), tokens=True),
    FirstLayer(nn.RNNBase, lambda layer, _: iter(((16, layer.input_size),))),
)
