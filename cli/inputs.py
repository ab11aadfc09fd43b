"""The inputs of the job behind the command line: calibration, evaluation, or made-up ones."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from subprune_fx.bundle import Bundle, Inputs, call, parts
from subprune_fx.cli.options import Request
from subprune_fx.cli.progress import Progress
from subprune_fx.errors import SubpruneError, first_line
from subprune_fx.formats.arrays import Samples
from subprune_fx.formats.images import Preparation
from subprune_fx.formats.input_spec import InputSpec
from subprune_fx.formats.load import Loaded
from subprune_fx.formats.presets import preset
from subprune_fx.formats.sources import Wish, load_samples
from subprune_fx.frontends.onnx_static import file_batch, fixed_batch, resolve_batch
from subprune_fx.passes.guess import guess
from subprune_fx.passes.synthesise import start, synthesise
from subprune_fx.samples import enough


def calibration_of(request: Request, loaded: Loaded) -> Samples:
    """The calibration inputs.

    Args:
        request: The command line.
        loaded: The network.

    Raises:
        SubpruneError: They are unusable, or there are none and the network's input shape is not known.
    """
    where, takes = str(request.model), _stated(request, loaded.takes)
    fixed = next((taken.accepts[0] for taken in takes if taken.accepts and taken.accepts[0] is not None), None)
    if fixed is not None:
        what = f"takes batches of exactly {fixed}, and compiling needs any size"
        free = f"n = torch.export.Dim('n') and dynamic_shapes=({'{0: n}, ' * len(takes)})"
        raise SubpruneError(what, where=where, remedy=f"export it again with {free}")
    if request.calib is None:
        return _made_up(request, loaded, takes)
    return load_samples(request.calib, _wish(request, takes, "--calib"))


def labelled_of(request: Request, loaded: Loaded, calibration: Inputs) -> dict[str, tuple[Inputs, Tensor] | None]:
    """The labelled inputs, of the shapes that the calibration inputs have.

    Args:
        request: The command line.
        loaded: The network, settled.
        calibration: From `calibration_of`.

    Returns:
        `api.prune`'s `evaluation`, `training` and `verification`; None for what is not given.

    Raises:
        SubpruneError: One of them is unusable.
    """
    sources = {"evaluation": ("--eval", request.evaluate), "training": ("--train", request.train)}
    sources["verification"] = ("--verify", request.verify)
    takes = _alike(loaded.takes, calibration)
    found = {name: _labelled(source, _wish(request, takes, option)) for name, (option, source) in sources.items()}
    for name, pairs in found.items():
        # Quantised networks are evaluated as files, the others as graphs.
        batch = (file_batch if request.quantize and name == "evaluation" else fixed_batch)(loaded.module)
        if pairs is not None:
            enough(pairs[0], batch, sources[name][0])
    return found


def _labelled(source: str | None, wish: Wish) -> tuple[Inputs, Tensor] | None:
    if source is None:
        return None
    found = load_samples(source, dataclasses.replace(wish, labelled=True))
    assert found.labels is not None
    return found.inputs, found.labels


def _wish(request: Request, takes: tuple[InputSpec, ...], option: str) -> Wish:
    base = preset(request.preset) if request.preset is not None else Preparation()
    given = {name: getattr(request, name) for name in ("resize", "crop", "mean", "std")}
    preparation = dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
    return Wish(takes, preparation, request.samples, request.seed, option=option)


def _alike(takes: Sequence[InputSpec], calibration: Inputs) -> tuple[InputSpec, ...]:
    """What the network takes, as the calibration inputs have it."""
    shapes = [(None, *part.shape[1:]) for part in parts(calibration)]
    names = calibration.names if isinstance(calibration, Bundle) and calibration.names else ()
    given = [taken for taken in takes if taken.keyword in names] if names else list(takes[:1]) or [InputSpec("x")]
    return tuple(dataclasses.replace(taken, accepts=shape) for taken, shape in zip(given, shapes, strict=True))


def probe(module: nn.Module, example: Inputs, where: str) -> None:
    """Run the network once: whatever it raises on this input is the user's to see, in one line.

    Raises:
        SubpruneError: It raised something.
    """
    try:
        with torch.no_grad():
            call(module, example)
    except Exception as error:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts(example))
        noun = "inputs of shapes" if isinstance(example, Bundle) else "an input of shape"
        what = f"fails on {noun} {shapes}: {type(error).__name__}: {first_line(error)}"
        raise SubpruneError(what, where=where, remedy="check --calib, --input-shape and the network") from error


def _stated(request: Request, takes: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """What the network takes, shapes from `--input-shape` in place of its own."""
    shapes = request.input_shape
    if not shapes:
        return takes
    known = takes or (InputSpec("x"),)
    if len(shapes) > len(known):
        what = f"is given {len(shapes)} times, and the network takes {len(known)} input{'s' * (len(known) > 1)}"
        raise SubpruneError(what, where="--input-shape")
    stated = (dataclasses.replace(t, accepts=(None, *s[1:]), sample=s) for t, s in zip(known, shapes, strict=False))
    return (*stated, *known[len(shapes) :])


def _seen(request: Request, takes: Sequence[InputSpec]) -> Sequence[InputSpec]:
    """What the network takes; where that is not known, of the shape that labelled inputs have."""
    if all(taken.sample is not None for taken in takes if taken.required) and takes:
        return takes
    for source in (request.evaluate, request.verify, request.train):
        with contextlib.suppress(SubpruneError):  # it is said where they are needed
            found = _labelled(source, _wish(request, tuple(takes), ""))
            if found is not None:
                alike = zip(_alike(takes, found[0]), parts(found[0]), strict=True)
                return [dataclasses.replace(t, sample=(1, *p.shape[1:]), dtype=p.dtype) for t, p in alike]
    return takes


def _made_up(request: Request, loaded: Loaded, takes: Sequence[InputSpec]) -> Samples:
    found = guess(loaded.module, _seen(request, takes), str(request.model))
    module = resolve_batch(loaded.module, start(found.wanted, 2, request.seed))
    probe(module, start(found.wanted, fixed_batch(module) or 2, request.seed), str(request.model))
    with Progress(shown=not request.quiet) as progress:
        made = synthesise(module, found.wanted, request.seed, partial(progress, "synthesise"))
    guessed = ", a shape guessed from the weights (--input-shape sets another)" if found.guessed else ""
    note = f"no --calib: calibrated on {made.how}{guessed}; a few hundred real inputs keep more accuracy"
    return Samples(made.inputs, notes=(note,))
