"""What a network computes, and whether a graph of it computes the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from subprune_fx.bundle import Bundle, Inputs, call, one_more, parts
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.autocast import unrounded
from subprune_fx.frontends.fx_batch import NUMBERS, Numbers

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


class Original:
    """A network and an example of its inputs.

    One run with a sample more than that shows what a graph of it computes and that it takes any number of them. Only
    where these differ, or there can be no such run, the example itself is run.
    """

    def __init__(self, module: nn.Module, example: Inputs, *, undefined: bool = False) -> None:
        """Run it.

        Args:
            module: In eval mode.
            example: Input that it accepts, first dimension = sample.
            undefined: Whether outputs may be NaN; then they are to be in the same places.

        Raises:
            SubpruneError: It does not, or its outputs cannot be compared.
        """
        self._module = module
        self._example = example
        self._more = one_more(example)
        self._general = self._run(self._more)
        self._check_free()
        outputs = self._expected if self._general is None else self._general
        self._check_seen(outputs)
        if not undefined and is_undefined(outputs):
            what, remedy = "its outputs are NaN", "check its weights, and that inputs are prepared as it expects"
            raise SubpruneError(what, where=self._name, remedy=remedy)

    def fault(self, graph: fx.GraphModule) -> str:
        """What is wrong with a graph of the network; empty: nothing. What it says of numbers is noted in its `meta`.

        Args:
            graph: It takes the example as the network does, or packed (`fx_inputs`).

        Raises:
            Exception: Whatever the graph raises.
        """
        numbers = Numbers(graph)
        if self._general is not None and _equal(_attempt(numbers, self._more), self._general):
            graph.meta[NUMBERS] = len(self._more), numbers.found
            return ""
        with torch.no_grad():
            found = fx.Interpreter(graph).run(self._example.clone())
        if not _equal(_as_written(found), self._expected):
            return "computes something else"
        return "" if self._general is None else f"is one of {len(self._example)} samples, whatever it is given"

    def check_steady(self) -> None:
        """That a network that no tracer can follow gives the same again for the same input.

        Raises:
            SubpruneError: It does not.
        """
        expected = self._expected
        with torch.no_grad(), unrounded():
            again = call(self._module, self._example.clone())
        if not _equal(again, expected):
            raise SubpruneError(
                "gives other outputs for the same input each time",
                where=self._name,
                remedy="switch off what is random in its forward, or draw it outside and pass it in",
            )

    @property
    def _name(self) -> str:
        return type(self._module).__name__

    @functools.cached_property
    def _expected(self) -> Any:
        """The outputs for the example."""
        with torch.no_grad(), unrounded():
            try:
                return call(self._module, self._example.clone())
            except Exception as error:
                raise SubpruneError(
                    f"the network does not run on {_shapes(self._example)}: {error}",
                    where=self._name,
                    remedy="give inputs of the shape it was trained on",
                ) from error

    def _run(self, inputs: Inputs) -> Any:
        """What it computes; None where it does not take so many samples."""
        try:
            with torch.no_grad(), unrounded():
                return call(self._module, inputs.clone())
        except Exception:  # noqa: BLE001 - a fixed batch size may show in any way
            return None

    def _check_free(self) -> None:
        """That it takes any number of samples; a graph may be of as many as it was made for, which files say.

        Raises:
            SubpruneError: Neither one more than the example nor a single one.
        """
        count = len(self._example)
        free = self._general is not None or isinstance(self._module, fx.GraphModule)
        if free or count == 1 or self._run(self._example[:1]) is not None or self._expected is None:
            return
        raise SubpruneError(
            f"runs on {count} samples and neither on 1 nor on {count + 1}: how many there are is built in",
            where=self._name,
            remedy="write its forward for any number of samples: x.flatten(1), not x.view(2, -1)",
        )

    def _check_seen(self, outputs: Any) -> None:
        """That the tensors of an output are known: what an object of the user's own hides would not be compared.

        Raises:
            SubpruneError: They are not.
        """
        opaque = next((x for x in pytree.tree_leaves(outputs) if not isinstance(x, (Tensor, *_CONSTANTS))), None)
        if opaque is None:
            return
        kind = type(opaque).__name__
        how = f"call torch.export.register_dataclass({kind}), or " if dataclasses.is_dataclass(opaque) else ""
        if getattr(getattr(self._module, "config", None), "use_cache", False):  # as in transformers by default
            how = "set its config.use_cache to False, or "
        what = f"its output is of a class ({kind}) in which tensors cannot be found"
        raise SubpruneError(what, where=self._name, remedy=f"{how}return its tensors in a tuple or dict")


def is_undefined(outputs: Any) -> bool:
    """Whether some of a network's outputs are NaN."""
    return any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for leaf in pytree.tree_leaves(outputs))


def agree(graph: fx.GraphModule, other: fx.GraphModule, example: Inputs) -> bool:
    """Whether two graphs compute the same, of one sample more too if the first takes any number of them.

    What the second says of numbers is noted in its `meta`, as by `Original.fault`.
    """
    more = one_more(example)
    wanted, numbers = _attempt(Numbers(graph), more), Numbers(other)
    if wanted is None:
        return _equal(_attempt(numbers, example), _attempt(Numbers(graph), example))
    found = _equal(_attempt(numbers, more), wanted)
    other.meta[NUMBERS] = len(more), numbers.found
    return found


def _attempt(numbers: Numbers, inputs: Inputs) -> Any:
    """What a graph computes; None where it does not take so many samples."""
    try:
        with torch.no_grad():
            return _as_written(numbers.run(inputs.clone()))
    except Exception:  # noqa: BLE001 - a fixed batch size may show in any way
        return None


def _as_written(outputs: Any) -> Any:
    """An interpreter's outputs in the kinds of containers that the graph's code would give: fx holds frozen ones."""
    if isinstance(outputs, immutable_dict):
        return {name: _as_written(item) for name, item in outputs.items()}
    if isinstance(outputs, immutable_list):
        return [_as_written(item) for item in outputs]
    return tuple(_as_written(item) for item in outputs) if type(outputs) is tuple else outputs


def _shapes(example: Inputs) -> str:
    shapes = " and ".join(str(tuple(part.shape)) for part in parts(example))
    return f"inputs of shapes {shapes}" if isinstance(example, Bundle) else f"an input of shape {shapes}"


def _equal(left: Any, right: Any) -> bool:
    flat, spec = pytree.tree_flatten(left)
    other, other_spec = pytree.tree_flatten(_as_written(right))
    if spec != other_spec:
        return False
    return all(_alike(a, b) if isinstance(b, Tensor) else a == b for a, b in zip(flat, other, strict=True))


def _alike(a: Any, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return False
    if not b.numel() or not (b.is_floating_point() or b.is_complex()):  # flags have no size that rounding goes by
        return torch.equal(a, b)
    largest = float(b.abs().nan_to_num(nan=0.0, posinf=torch.inf).max().clamp(min=1))
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)
