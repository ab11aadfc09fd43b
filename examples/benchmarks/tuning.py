"""Fine-tuning as in the paper (appendices G and H): none, the four pruning batches, or the whole training set.

Adam with betas (0.9, 0.99), learning rate 1e-3, batches of 128. MNIST: 10 epochs. CIFAR-10: 20 epochs, weight decay
5e-4, the learning rate divided by ten after 10 and 15 epochs; random flips and crops, which the paper does not name
but ShrinkBench, on which its code builds, applies.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import torch
from data import normalise
from numpy import uint8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)

TUNINGS = ("none", "batches", "full")
BATCH = 128


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one data set's networks are fine-tuned.

    Attributes:
        epochs: Over whatever images there are.
        weight_decay: Of Adam.
        milestones: Epochs after which the learning rate is divided by ten.
        shift: Pixels of padding of the random crop; 0: images as they are.
    """

    epochs: int
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    shift: int = 0


RECIPES = {"mnist": Recipe(10), "cifar10": Recipe(20, 5e-4, (10, 15), 4)}


def tune(network: Module, images: NDArray[uint8], labels: Tensor, kind: str, seed: int) -> Module:
    """A fine-tuned copy of `network`, in eval mode.

    Args:
        network: To start from; unchanged.
        images: (samples, channels, height, width).
        labels: (samples,), int64.
        kind: The data set, a key of `RECIPES`.
        seed: Of the order of the images and of the augmentation.
    """
    recipe = RECIPES[kind]
    tuned = copy.deepcopy(network).train()
    for parameter in tuned.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.Adam(tuned.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(recipe.milestones), gamma=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            if len(chosen) == 1:  # BatchNorm cannot train on one image
                continue
            x = augment(normalise(images[chosen.numpy()], kind), recipe.shift, generator)
            loss = functional.cross_entropy(tuned(x), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    return tuned.eval()


def augment(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image flipped or not, and moved by up to `shift` pixels; shift 0 changes nothing.

    The border is zero after normalisation (ShrinkBench pads before, with black).
    """
    if not shift:
        return x
    flipped = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
    padded = functional.pad(x, (shift,) * 4)
    height, width = x.shape[-2:]
    moves = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=generator).tolist()
    return torch.stack(
        [image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, moves, strict=True)]
    )
