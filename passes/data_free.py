"""The front door to made-up calibration inputs."""

from __future__ import annotations

from torch import Tensor, nn

from subprune_fx.bundle import Bundle
from subprune_fx.formats.input_spec import InputSpec, arguments_of
from subprune_fx.frontends.computed import duplicate
from subprune_fx.passes.guess import guess
from subprune_fx.passes.synthesise import synthesise
from subprune_fx.unwrap import network_of


def synthetic_inputs(
    model: nn.Module, shape: tuple[int, ...] | None = None, *, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    """Calibration inputs for a network without data; what the command uses without `--calib`.

    Pictures of discs that cover each other (Lee, Mumford and Huang 2001), moved by gradient descent until the network's
    BatchNorm layers read the statistics that they have learned. Without such layers the pictures stay as they are.

    Args:
        model: The network, unchanged.
        shape: Of one sample, (channels, height, width); None: guessed from the weights.
        seed: Of everything random.

    Returns:
        Samples of that shape, along the first axis; of a network with several inputs a dict by argument.

    Raises:
        SubpruneError: No shape is given, and none that was tried runs.
    """
    model = network_of(model)
    takes = arguments_of(model)
    if shape is not None:
        takes = (InputSpec(takes[0].name if takes else "x", sample=(1, *shape)),)
    twin = duplicate(model).eval()
    found = synthesise(twin, guess(twin, takes, type(model).__name__).wanted, seed).inputs
    return dict(zip(found.names or (), found.parts, strict=True)) if isinstance(found, Bundle) else found
