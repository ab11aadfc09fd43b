"""Made-up inputs with the statistics that natural ones have: edges, occlusion, a spectrum that falls with frequency."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subprune_fx.layouts import channels_last

FEWEST, MOST = 3, 300
"""Leaves of an image: from a few things on a plain ground to one that is covered."""
SMALLEST = 1.5
"""Radius of a leaf, pixels."""
COMMON = 0.9
"""Of a colour, what its channels share: those of natural images are correlated by about 0.8, its square."""


def scenes(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Inputs of a network that has not been seen: mean 0, variance 1.

    Args:
        count: How many.
        shape: Of one, channels first (or last, where only the last axis can be colours): images are dead leaves; series
            and volumes have a 1/f spectrum; what has no positions is normal noise.
        seed: Of the generator.

    Returns:
        float32, (count, *shape).
    """
    if channels_last(shape):
        height, width, channels = shape
        return scenes(count, (channels, height, width), seed).permute(0, 2, 3, 1).contiguous()
    generator = np.random.default_rng(seed)
    make = _leaves if len(shape) == 3 else _spectral
    made = make(generator, count, shape)
    return torch.from_numpy((made - made.mean()) / max(float(made.std()), 1e-12)).float()


def _leaves(generator: np.random.Generator, count: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Discs that cover each other, in number log-uniform, of radii with density r^-3 (Lee, Mumford and Huang 2001)."""
    _, height, width = shape
    found = np.empty((count, *shape))
    largest = max(SMALLEST, max(height, width) / 2)
    for image in found:
        leaves = int(np.exp(generator.uniform(np.log(FEWEST), np.log(MOST))))
        image[:] = _colours(generator, 1, shape[0])[0][:, None, None]
        radii = generator.uniform(largest**-2, SMALLEST**-2, leaves) ** -0.5
        rows, columns = generator.uniform(0, height, leaves), generator.uniform(0, width, leaves)
        colours = _colours(generator, leaves, shape[0])
        for radius, row, column, colour in zip(radii, rows, columns, colours, strict=True):
            top, left = max(0, int(row - radius)), max(0, int(column - radius))
            box = image[:, top : int(row + radius) + 1, left : int(column + radius) + 1]
            down, across = np.ogrid[top : top + box.shape[1], left : left + box.shape[2]]
            inside = (down - row) ** 2 + (across - column) ** 2 < radius**2
            box[:, inside] = colour[:, None]
    return found


def _colours(generator: np.random.Generator, count: int, channels: int) -> NDArray[np.float64]:
    common = generator.standard_normal((count, 1))
    own = generator.standard_normal((count, channels))
    return np.asarray(COMMON * common + np.sqrt(1 - COMMON**2) * own)


def _spectral(generator: np.random.Generator, count: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise whose amplitude falls as 1/f along all axes but the first, the channels."""
    noise = generator.standard_normal((count, *shape))
    axes = tuple(range(2, noise.ndim))
    if not axes:
        return noise
    grids = np.meshgrid(*(np.fft.fftfreq(size) for size in shape[1:]), indexing="ij", sparse=True)
    frequency = np.sqrt(sum(grid**2 for grid in grids))
    frequency = np.maximum(frequency, 1 / max(shape[1:]))
    return np.asarray(np.fft.ifftn(np.fft.fftn(noise, axes=axes) / frequency, axes=axes).real)
