"""The plan is a value: it is written and read without loss, applies anywhere, and damage is found out."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from subprune_fx import Plan, Pruned, SubpruneError, apply, prune
from subprune_fx.plan import Constant, Decision, Slice, same


class Net(nn.Module):
    """Sizes in modules (a depthwise convolution's groups), none in its forward; tied layers; a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.hidden, self.last = nn.Linear(8 * 4, 10, bias=False), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depth(self.stem(x))))
        x = self.twice(F.relu(self.twice(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        out: Tensor = self.last(F.relu(self.hidden(x)))
        return out


class Written(nn.Module):
    """A size in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).view(-1, 8 * 36))
        return out


def inputs(count: int = 24) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def pruned(net: nn.Module) -> Pruned:
    return prune(net, inputs(), ratio=2.5)


@pytest.fixture(scope="module")
def file(pruned: Pruned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "net.plan"
    pruned.plan.save(path)
    return path


def test_round_trip(pruned: Pruned, file: Path) -> None:
    again = Plan.load(file)
    assert same(again, pruned.plan)
    assert again.decisions == pruned.plan.decisions
    for name, value in again.values.items():
        assert value.dtype == pruned.plan.values[name].dtype


def test_covers_all_kinds(pruned: Pruned) -> None:
    """Or the other tests would show little: slices, new values, added biases, sizes in modules."""
    plan = pruned.plan
    assert plan.slices
    assert plan.values
    assert None in plan.shapes.values()
    assert any(constant.owner == "module" for constant in plan.constants)


def test_applies_to_a_fresh_instance_of_the_class(net: nn.Module, pruned: Pruned, file: Path) -> None:
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    rebuilt = apply(Plan.load(file), fresh.eval())
    assert type(rebuilt) is Net
    assert torch.equal(rebuilt(inputs()), pruned.module(inputs()))
    assert rebuilt.depth.groups == rebuilt.depth.out_channels == rebuilt.stem.out_channels
    assert "in_features" in repr(rebuilt.hidden)
    for layer in rebuilt.modules():
        if isinstance(layer, nn.Linear):
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.shape == (layer.num_features,)


def test_pruned_weights_load_into_a_rebuilt_class(pruned: Pruned) -> None:
    """Structure from the plan, weights from a state dict: what a fine-tuned network needs."""
    rebuilt = apply(pruned.plan, Net().eval())
    missing = rebuilt.load_state_dict(pruned.module.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert torch.equal(rebuilt(inputs()), pruned.module(inputs()))


def test_applying_changes_neither_plan_nor_network(net: nn.Module, pruned: Pruned, file: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    smaller = apply(pruned.plan, net)
    with torch.no_grad():
        for value in (*smaller.parameters(), *smaller.buffers()):
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert same(pruned.plan, Plan.load(file))


def test_kinds_of_tensors_stay_what_they_are(net: nn.Module, pruned: Pruned) -> None:
    """Parameters stay parameters, frozen ones frozen, buffers buffers, dtypes the same."""
    other = copy.deepcopy(net).to(torch.float64)
    other.get_parameter("stem.weight").requires_grad_(False)
    smaller = apply(pruned.plan, other)
    assert not smaller.get_parameter("stem.weight").requires_grad
    assert smaller.get_parameter("last.weight").requires_grad
    assert "norm.running_mean" in dict(smaller.named_buffers())
    assert {value.dtype for value in smaller.parameters()} == {torch.float64}


def test_plans_are_frozen(pruned: Pruned) -> None:
    for item in (pruned.plan, pruned.plan.slices[0], pruned.plan.constants[0], pruned.plan.decisions[0]):
        field = dataclasses.fields(item)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, field, None)


def test_same_sees_every_difference(pruned: Pruned) -> None:
    plan = pruned.plan
    name = next(iter(plan.values))
    changed = {**plan.values, name: plan.values[name] + 1e-6}
    assert same(plan, plan)
    for other in (
        dataclasses.replace(plan, values=changed),
        dataclasses.replace(plan, values={}),
        dataclasses.replace(plan, slices=plan.slices[1:]),
        dataclasses.replace(plan, constants=()),
        dataclasses.replace(plan, decisions=()),
        dataclasses.replace(plan, shapes={}),
    ):
        assert not same(plan, other)


def test_an_error_that_is_not_known_is_the_same_as_itself(pruned: Pruned) -> None:
    def having(error: float) -> Plan:
        decided = tuple(dataclasses.replace(item, error=error) for item in pruned.plan.decisions)
        return dataclasses.replace(pruned.plan, decisions=decided)

    assert same(having(math.nan), having(float("nan")))
    assert not same(having(math.nan), having(0.5))


def test_sizes_written_in_forward_are_a_reason() -> None:
    """The trace can be changed, the code cannot."""
    net = Written().eval()
    found = prune(net, inputs(), ratio=2)
    with pytest.raises(SubpruneError, match=r"sizes written in the code of its forward \(view") as caught:
        apply(found.plan, net)
    assert "\n" not in str(caught.value)
    assert "traced graph module" in caught.value.remedy


def refused(act: Callable[[], object], says: str, where: str = "") -> None:
    with pytest.raises(SubpruneError, match=says) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert where in caught.value.where


def test_another_network_is_refused(pruned: Pruned) -> None:
    wide = Net()
    wide.hidden = nn.Linear(8 * 4, 11, bias=False)
    refused(lambda: apply(pruned.plan, wide), r"hidden.weight has shape \(11, 32\), the plan was made for \(10, 32\)")
    refused(lambda: apply(pruned.plan, nn.Linear(2, 2)), "stem.weight is missing", "Linear")
    smaller = apply(pruned.plan, Net())
    refused(lambda: apply(pruned.plan, smaller), "has shape")


@pytest.mark.parametrize(
    "constant",
    [
        Constant("module", "gone", ("groups",), 3),
        Constant("module", "stem", ("gone",), 3),
        Constant("module", "stem", ("forward",), 3),
        Constant("module", "stem", ("weight",), 3),
        Constant("node", "gone", ("args", 1), 3),
        Constant("node", "flatten", ("args", 7, 2), 3),
        Constant("node", "flatten", ("kwargs", "gone", 1), 3),
    ],
)
def test_sizes_that_are_not_there_are_refused(constant: Constant, pruned: Pruned) -> None:
    plan = Plan(shapes={}, slices=(), values={}, constants=(constant,), decisions=())
    refused(lambda: apply(plan, pruned.module), "there is no size")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    refused(lambda: Plan.load(tmp_path / "gone"), "no such file", "gone")
    (tmp_path / "empty").write_bytes(b"")
    refused(lambda: Plan.load(tmp_path / "empty"), "not a plan file", "empty")
    (tmp_path / "text").write_text("hello " * 100)
    refused(lambda: Plan.load(tmp_path / "text"), "not a plan file", "text")
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle")
    refused(lambda: Plan.load(tmp_path / "pickle"), "not a plan file", "pickle")
    save_file({"a": torch.zeros(3)}, tmp_path / "weights")
    refused(lambda: Plan.load(tmp_path / "weights"), "not a subprune_fx plan", "weights")
    refused(lambda: Plan.load(tmp_path), "not a plan file")


def test_a_folder_that_is_not_there(pruned: Pruned, tmp_path: Path) -> None:
    refused(lambda: pruned.plan.save(tmp_path / "gone" / "net.plan"), "does not exist")
    assert not list(tmp_path.iterdir())


def tampered(file: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The file with its description changed."""
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    tree = json.loads(metadata["plan"])
    changed = change(tree)
    metadata["plan"] = changed if isinstance(changed, str) else json.dumps(tree if changed is None else changed)
    save_file(tensors, target, metadata=metadata)
    return target


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda tree: "{",
    "too deep": lambda tree: "[" * 100_000,
    "a list": lambda tree: [],
    "nothing": lambda tree: "null",
    "a field is missing": lambda tree: {key: value for key, value in tree.items() if key != "slices"},
    "shapes are a list": lambda tree: {**tree, "shapes": [1]},
    "a shape is a number": lambda tree: {**tree, "shapes": {**tree["shapes"], "stem.weight": 3}},
    "a shape holds text": lambda tree: {**tree, "shapes": {**tree["shapes"], "stem.weight": ["a"]}},
    "slices are a number": lambda tree: {**tree, "slices": 3},
    "a slice of three numbers": lambda tree: {**tree, "slices": [[1, 2, 3]]},
    "a slice of an unknown parameter": lambda tree: {**tree, "slices": [["gone", 0, [0]]]},
    "an axis that is not there": lambda tree: {**tree, "slices": [["stem.weight", 7, [0]]]},
    "a negative axis": lambda tree: {**tree, "slices": [["stem.weight", -1, [0]]]},
    "an index out of range": lambda tree: {**tree, "slices": [["stem.weight", 0, [0, 99]]]},
    "a negative index": lambda tree: {**tree, "slices": [["stem.weight", 0, [-1, 0]]]},
    "indices out of order": lambda tree: {**tree, "slices": [["stem.weight", 0, [1, 0]]]},
    "an index twice": lambda tree: {**tree, "slices": [["stem.weight", 0, [0, 0]]]},
    "no index": lambda tree: {**tree, "slices": [["stem.weight", 0, []]]},
    "an index that is text": lambda tree: {**tree, "slices": [["stem.weight", 0, ["0"]]]},
    "a value of no known shape": lambda tree: {**tree, "shapes": {}, "slices": []},
    "a size of nobody": lambda tree: {**tree, "constants": [["nobody", "stem", ["groups"], 3]]},
    "a size without a path": lambda tree: {**tree, "constants": [["module", "stem", [], 3]]},
    "a size with a strange path": lambda tree: {**tree, "constants": [["module", "stem", [[1]], 3]]},
    "the op of a node": lambda tree: {**tree, "constants": [["node", "flatten", ["target"], "numpy"]]},
    "all arguments of a node": lambda tree: {**tree, "constants": [["node", "flatten", ["args"], ["x"]]]},
    "a size that is text": lambda tree: {**tree, "constants": [["node", "flatten", ["args", 1], "/tmp/x"]]},
    "sizes that are text": lambda tree: {**tree, "constants": [["node", "flatten", ["args", 1], [1, ["x"]]]]},
    "a range of text": lambda tree: {
        **tree,
        "constants": [["node", "flatten", ["args", 1], {"start": "a", "stop": 1, "step": 1}]],
    },
    "a path into a module": lambda tree: {**tree, "constants": [["module", "stem", ["groups", "real"], 3]]},
    "a group keeps more than it has": lambda tree: {**tree, "decisions": [["stem", 2, [0, 5], 0.0]]},
    "a group without an error": lambda tree: {**tree, "decisions": [["stem", 2, [0], "small"]]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_descriptions_are_refused(name: str, file: Path, tmp_path: Path) -> None:
    refused(lambda: Plan.load(tampered(file, tmp_path / "bad", DAMAGE[name])), "damaged plan", "bad")


@given(data=st.data())
@examples(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes(data: st.DataObject, net: nn.Module, file: Path, tmp_path: Path) -> None:
    """Cut off, overwritten, lengthened: a plan that loads says the same, or is another plan; nothing else happens."""
    whole = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    # Nine in ten of a plan's bytes are weights, in which any value is as good as another: damage the header.
    header = int.from_bytes(whole[:8], "little") + 8
    at = data.draw(st.integers(0, header - 1))
    if kind == "cut":
        whole = whole[:at]
    elif kind == "flip":
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        whole[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    path = tmp_path / "bad"
    path.write_bytes(whole)
    with suppress(SubpruneError):  # any other error fails the test
        apply(Plan.load(path), net)


def test_a_plan_made_by_hand(tmp_path: Path) -> None:
    """The format is simple enough to be written by others."""
    plan = Plan(
        shapes={"0.weight": (4, 2), "0.bias": (4,), "1.weight": (3, 4)},
        slices=(Slice("0.weight", 0, (1, 3)), Slice("0.bias", 0, (1, 3)), Slice("1.weight", 1, (1, 3))),
        values={},
        constants=(),
        decisions=(Decision("0", 4, (1, 3), 0.5),),
    )
    plan.save(tmp_path / "hand")
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    smaller = apply(Plan.load(tmp_path / "hand"), net)
    x = torch.randn(5, 2)
    masked = net[0](x) * torch.tensor([0.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(smaller(x), net[1](masked))


def test_attention_of_torch_is_refused_by_name() -> None:
    """Its class has one width; the traced graph has as many as it takes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention, self.head = nn.Linear(5, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            out: Tensor = self.head(self.attention(y, y, y, need_weights=False)[0])
            return out

    net, x = Net().eval(), torch.randn(12, 6, 5)
    pruned = prune(net, x, keep=0.5)
    assert pruned.module(x).shape == (12, 6, 3)
    with pytest.raises(SubpruneError, match=r"attention: .*MultiheadAttention cannot be narrower"):
        apply(dataclasses.replace(pruned.plan, constants=()), net)  # as where no forward spells sizes
