"""Networks written from Python as the command writes them: each file is run and compared, and all appear or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from subprune_fx.bundle import device_of
from subprune_fx.frontends.computed import duplicate
from subprune_fx.frontends.onnx_static import file_batch, ordered
from subprune_fx.passes.write import write_all
from subprune_fx.report import FileRow
from subprune_fx.samples import Given, inputs_of
from subprune_fx.unwrap import network_of


def save(
    model: nn.Module, *paths: str | os.PathLike[str], inputs: Given, original: nn.Module | None = None
) -> tuple[FileRow, ...]:
    """Write a network in the formats of the command: pruned, perhaps trained since, or any other.

    Args:
        model: The network. It is written as it is in eval mode.
        paths: Files ending in `.onnx`, `.pt2`, `.pt` or `.safetensors`.
        inputs: Inputs as the network takes them, (samples, ...), on which every file is compared with it.
        original: The network before, for its file size and latency.

    Returns:
        A row per file: sizes, onnxruntime's latency, the largest difference of the outputs.

    Raises:
        SubpruneError: A file cannot be written, or the network has no form in its format.
        ValidationError: A file does not agree with the network.
    """
    model = network_of(model)
    given = ordered(model, inputs_of(inputs, "inputs"))
    with ExitStack() as stack:
        network = stack.enter_context(_evaluating(model))
        before = None if original is None else stack.enter_context(_evaluating(network_of(original)))
        return write_all(network, before, given[: file_batch(model) or 1], given, paths)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode, or a copy where it is on a GPU, for the length of a block."""
    if device_of(model) != torch.device("cpu"):
        yield duplicate(model).cpu().eval()
        return
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        model.train(modes[model])  # of a graph of torch.export nodes have a mode too
        for module, training in modes.items():
            module.training = training
