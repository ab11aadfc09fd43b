"""The plan: everything a rewrite needs, decided once, frozen, saved without pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from subprune_fx.errors import SubpruneError

FORMAT = "subprune_fx plan 1"
HOW_TO_SAVE = "write one with -o out.plan, or Plan.save"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Keep `index` (ascending, original positions) of one dimension of a parameter or buffer."""

    parameter: str
    axis: int
    index: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A size written into the network that changes.

    Attributes:
        owner: `module`: an attribute of a module; `node`: an argument of an fx node.
        name: Qualified module name, or node name.
        path: Where: `(attribute,)`, or `("args", 1, 0)`, `("kwargs", "size")`.
        value: The new one; a range is `{"start": .., "stop": .., "step": ..}`.
        attribute: Of an argument of a node, where a layer of torch's own keeps the same size, in a network that is no
            graph: `(module, attribute)`, perhaps with an index; empty where nothing does.
    """

    owner: Literal["module", "node"]
    name: str
    path: tuple[str | int, ...]
    value: Any
    attribute: tuple[str | int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided for one group.

    Attributes:
        group: Its name.
        channels: Units before.
        kept: Which are kept, ascending, 0-based within the group.
        error: Relative input change of its consumers, 0 to 1.
    """

    group: str
    channels: int
    kept: tuple[int, ...]
    error: float


@dataclasses.dataclass(frozen=True)
class Layer:
    """What the user wants of layers, instead of what a budget would give them.

    Attributes:
        pattern: Of their names (`fnmatch`).
        ratio: Channels before over after, at least 1; 1 keeps all. This or `channels`.
        channels: How many stay.
    """

    pattern: str
    ratio: float | None = None
    channels: int | None = None

    def __str__(self) -> str:
        return f"{self.channels} channels" if self.ratio is None else f"ratio {self.ratio:g}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to make a network smaller; `subprune_fx.apply` carries it out and reads nothing else.

    Attributes:
        shapes: Shape of every parameter that is sliced or replaced, before; None for one that is added.
        slices: What is kept of parameters and buffers.
        values: New values by parameter name, in their final shape (reweighted weights, intercepts).
        constants: Sizes that change.
        decisions: By group, for the reader.
    """

    shapes: dict[str, tuple[int, ...] | None]
    slices: tuple[Slice, ...]
    values: dict[str, Tensor]
    constants: tuple[Constant, ...]
    decisions: tuple[Decision, ...]

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file: the values as tensors, the rest as JSON in its header.

        Raises:
            SubpruneError: If the file cannot be written.
        """
        from subprune_fx.formats.atomic import replacing  # noqa: PLC0415 - formats imports plan's siblings

        tensors = {name: value.detach().contiguous().cpu() for name, value in self.values.items()}
        with replacing(Path(path)) as target:
            target.write_bytes(save(tensors, metadata={"format": FORMAT, "plan": _text(self)}))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            SubpruneError: If the file is missing or is not a plan.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError as error:
            raise SubpruneError("no such file", where=str(path)) from error
        except (SafetensorError, OSError) as error:
            raise SubpruneError(f"not a plan file ({error})", where=str(path), remedy=HOW_TO_SAVE) from error
        if metadata.get("format") != FORMAT:
            raise SubpruneError("not a subprune_fx plan", where=str(path), remedy=HOW_TO_SAVE)
        try:
            return _from_tree(json.loads(metadata["plan"]), values)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            what = f"damaged plan ({type(error).__name__}: {error})"
            raise SubpruneError(what, where=str(path), remedy="write it again") from error


def _text(plan: Plan) -> str:
    """All but the values, as JSON."""
    tree = {
        "shapes": plan.shapes,
        "slices": [dataclasses.astuple(item) for item in plan.slices],
        "constants": [dataclasses.astuple(item) for item in plan.constants],
        "decisions": [dataclasses.astuple(item) for item in plan.decisions],
    }
    return json.dumps(tree)


def _from_tree(tree: dict[str, Any], values: dict[str, Tensor]) -> Plan:
    plan = Plan(
        shapes={name: None if shape is None else tuple(shape) for name, shape in tree["shapes"].items()},
        slices=tuple(Slice(name, axis, tuple(index)) for name, axis, index in tree["slices"]),
        values=values,
        constants=tuple(
            Constant(owner, name, tuple(path), value, *map(tuple, attribute))
            for owner, name, path, value, *attribute in tree["constants"]
        ),
        decisions=tuple(
            Decision(group, channels, tuple(kept), error) for group, channels, kept, error in tree["decisions"]
        ),
    )
    _check(plan)
    return plan


def _check(plan: Any) -> None:
    """That the parts fit each other.

    Raises:
        ValueError: If they do not (or another error of a look-up that fails).
    """
    for name, shape in plan.shapes.items():
        _expect(shape is None or all(_whole(size) and size >= 0 for size in shape), f"shape of {name}")
    cuts = [(item.parameter, item.axis) for item in plan.slices]
    _expect(len(set(cuts)) == len(cuts), "an axis that is sliced twice")
    for item in plan.slices:
        shape = plan.shapes[item.parameter]
        _expect(shape is not None and _whole(item.axis) and 0 <= item.axis < len(shape), f"axis of {item.parameter}")
        _expect(_ascending(item.index, shape[item.axis]), f"indices of {item.parameter}")
    for name in plan.values:
        _expect(name in plan.shapes, f"value of {name}")
    for constant in plan.constants:
        _expect(isinstance(constant.name, str) and _leads(constant), f"size in {constant.name}")
        _expect(_is_size(constant.value), f"value of a size in {constant.name}")
        _expect(_points(constant.attribute), f"attribute of a size in {constant.name}")
    for made in plan.decisions:
        _expect(isinstance(made.error, (int, float)) and _ascending(made.kept, made.channels), f"group {made.group}")


def _leads(constant: Any) -> bool:
    """Whether a path leads to one argument of a node (never to the op it calls) or one attribute of a module."""
    path = constant.path
    if not path or not all(isinstance(step, (str, int)) for step in path):
        return False
    return {"node": len(path) > 1 and path[0] in ("args", "kwargs"), "module": len(path) == 1}.get(
        constant.owner, False
    )


def _points(attribute: tuple[Any, ...]) -> bool:
    """Whether it is empty, or the names of a module and its attribute, perhaps with an index."""
    names, rest = attribute[:2], attribute[2:]
    return not attribute or (
        len(names) == 2 and all(isinstance(name, str) for name in names) and all(map(_whole, rest))
    )


def _is_size(value: Any) -> bool:
    """Whether it is a number or nothing, some of them, or a range."""
    if isinstance(value, dict):
        return list(value) == ["start", "stop", "step"] and all(_is_number(item) for item in value.values())
    return all(map(_is_size, value)) if isinstance(value, list) else _is_number(value)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _ascending(index: tuple[Any, ...], size: Any) -> bool:
    """Whether `index` holds some positions below `size`, each once and in order."""
    whole = bool(index) and all(_whole(i) for i in index)
    return whole and list(index) == sorted(set(index)) and index[0] >= 0 and index[-1] < size


def _whole(value: Any) -> bool:
    """Whether this is an integer; JSON's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _expect(fine: bool, what: str) -> None:
    if not fine:
        raise ValueError(what)


def same(left: Plan, right: Plan) -> bool:
    """Whether two plans say the same, as they are written; tensors compared bit by bit.

    An error that no selector gave is not a number, which is not equal to itself: its text is.
    """
    names = left.values.keys() == right.values.keys()
    return (
        names
        and all(torch.equal(left.values[name], right.values[name]) for name in left.values)
        and json.loads(_text(left), parse_constant=str) == json.loads(_text(right), parse_constant=str)
    )
