"""Recurrent layers: what they read is pruned like what a linear layer reads, what they hold in all gates at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import against_masked
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pack_padded_sequence

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.fx_inputs import spread
from subprune_fx.frontends.fx_recurrent import recurrent
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes import sweep
from subprune_fx.passes.dependencies import analyse, restrict
from subprune_fx.passes.options import Options
from subprune_fx.passes.pipeline import Compiler
from subprune_fx.passes.write import write_all

STEPS, READ, HELD = 7, 16, 6
ROUNDING = 1e-5
"""Relative, of float32; a wrong channel gives 0.1 and more."""
CASES: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": nn.LSTM},
    "GRU": {"kind": nn.GRU},
    "RNN": {"kind": nn.RNN},
    "RNN of ReLU": {"kind": nn.RNN, "nonlinearity": "relu"},
    "two layers, both directions": {"kind": nn.LSTM, "num_layers": 2, "bidirectional": True},
    "both directions of a GRU": {"kind": nn.GRU, "bidirectional": True},
    "time first": {"kind": nn.GRU, "batch_first": False},
    "no biases": {"kind": nn.LSTM, "bias": False, "bidirectional": True},
    "a projected state": {"kind": nn.LSTM, "proj_size": 3},
    "a state of its own": {"kind": nn.LSTM, "begins": True},
    "a state of its own, GRU": {"kind": nn.GRU, "begins": True},
}
INPUTS = torch.randn(40, STEPS, 5, generator=torch.Generator().manual_seed(1))


class Steps(nn.Module):
    """A layer on each step, a recurrent one, and one on the last step and the last state."""

    def __init__(self, kind: Any, *, begins: bool = False, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(5, READ)
        self.steps = kind(READ, HELD, batch_first=batch_first, **options)
        self.after = nn.LazyLinear(3)
        self.begins, self.batch_first = begins, batch_first
        self.eval()(INPUTS[:2])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        x = x if self.batch_first else x.transpose(0, 1)
        given: tuple[Any, ...] = ()
        if self.begins:
            first = x.new_full((1, x.shape[0], HELD), 0.5)
            given = ((first, first),) if isinstance(self.steps, nn.LSTM) else (first,)
        made, state = self.steps(x, *given)
        last = made[:, -1] if self.batch_first else made[-1]
        y: Tensor = self.after(torch.cat([last, state[0][-1] if isinstance(self.steps, nn.LSTM) else state[-1]], -1))
        return y


def exported(model: nn.Module) -> nn.Module:
    program = torch.export.export(model, (INPUTS[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    found: nn.Module = program.module()
    return found


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's own, of its own layers
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["module", "exported"])
def test_what_a_recurrent_layer_reads_is_pruned(name: str, way: str) -> None:
    model = Steps(**CASES[name])
    pruned = subprune_fx.prune(model if way == "module" else exported(model), INPUTS, keep=0.5)
    layers = [] if "proj_size" in CASES[name] else ["steps", "steps.weight_ih_l1"][: CASES[name].get("num_layers", 1)]
    kept = {"before": READ // 2, **dict.fromkeys(layers, HELD // 2)}
    assert {group.name: group.kept for group in pruned.report.groups} == kept
    network = analyse(model if way == "module" else exported(model), INPUTS[:2])
    assert against_masked(network, pruned.plan, pruned.module, INPUTS) < ROUNDING
    assert not any(node.target is recurrent for node in pruned.module.graph.nodes)
    assert pruned.report.before.flops > pruned.report.after.flops


@pytest.mark.parametrize("name", [name for name, told in CASES.items() if "begins" not in told])
def test_a_layer_of_the_users_class_gets_narrower(name: str) -> None:
    pruned = subprune_fx.prune(Steps(**CASES[name]), INPUTS, keep=0.5)
    own = subprune_fx.apply(pruned.plan, Steps(**CASES[name]))
    held = HELD if "proj_size" in CASES[name] else HELD // 2
    assert (own.steps.input_size, own.steps.hidden_size) == (READ // 2, held)
    with torch.no_grad():
        torch.testing.assert_close(own(INPUTS), pruned.module(INPUTS))


def test_a_state_whose_size_the_users_class_spells_is_its_own_business() -> None:
    pruned = subprune_fx.prune(Steps(**CASES["a state of its own"]), INPUTS, keep=0.5)
    with pytest.raises(SubpruneError, match="sizes written in the code of its forward"):
        subprune_fx.apply(pruned.plan, Steps(**CASES["a state of its own"]))


class HandedOn(nn.Module):
    """Two layers, the second of which begins where the first has ended, which is called once more then."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.before = nn.Linear(5, READ)
        self.first, self.second = (kind(READ, HELD, batch_first=True) for _ in range(2))
        self.after = nn.Linear(3 * HELD, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        a, state = self.first(x)
        b, state = self.second(x, state)
        c, _ = self.first(x.flip(1), state)
        y: Tensor = self.after(torch.cat([a, b, c], -1))
        return y


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_that_are_handed_on_have_the_same_units(kind: Any) -> None:
    torch.manual_seed(0)
    model = HandedOn(kind).eval()
    pruned = subprune_fx.prune(model, INPUTS, keep=0.5)
    groups = {group.name: group.producers for group in analyse(model, INPUTS[:2]).channels.groups}
    assert groups == {"before": ("before",), "first": ("first", "second")}
    assert against_masked(analyse(model, INPUTS[:2]), pruned.plan, pruned.module, INPUTS) < ROUNDING


class Cells(nn.Module):
    """A loop over steps, of two cells."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(5, READ), nn.Linear(HELD, 3)
        self.lower, self.upper = kind(READ, HELD, **options), kind(HELD, HELD)

    def forward(self, x: Tensor) -> Tensor:
        x, first = torch.relu(self.before(x)), self.after.weight.new_zeros(x.shape[0], HELD)
        two = isinstance(self.lower, nn.LSTMCell)
        low: Any = (first, first) if two else first
        high, last = low, first
        for step in range(STEPS):
            low = self.lower(x[:, step], low)
            high = self.upper(low[0] if two else low, high)
            last = last + (high[0] if two else high)
        y: Tensor = self.after(last)
        return y


CELLS: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": nn.LSTMCell},
    "GRU": {"kind": nn.GRUCell},
    "RNN": {"kind": nn.RNNCell, "nonlinearity": "relu"},
    "no biases": {"kind": nn.GRUCell, "bias": False},
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("way", ["module", "exported"])
def test_cells_are_spelled_out_and_pruned(name: str, way: str) -> None:
    model = Cells(**CELLS[name]).eval()
    graph = list(traces(model, INPUTS[:2]))[("module", "exported").index(way)]
    assert not any("cell" in str(node.target) for node in graph.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(fx.Interpreter(graph).run(INPUTS), model(INPUTS))
    given = model if way == "module" else exported(model)
    pruned = subprune_fx.prune(given, INPUTS, keep=0.5)
    assert {group.name: group.kept for group in pruned.report.groups} == {
        "before": READ // 2,
        "lower": HELD // 2,
        "upper": HELD // 2,
    }
    assert against_masked(analyse(given, INPUTS[:2]), pruned.plan, pruned.module, INPUTS) < ROUNDING


class Gated(nn.Module):
    """A cell that adds to a stream, in the shape of what it reads, which is asked for before it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.branch = nn.Linear(5, READ), nn.Linear(READ, READ)
        self.cell, self.after = nn.GRUCell(READ, READ), nn.Linear(READ, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream(x)
        branch = torch.relu(self.branch(x))
        size = branch.size()
        x = self.cell(branch.flatten(0, 1), x.flatten(0, 1))
        y: Tensor = self.after(x.view(size))
        return y


def test_a_size_that_was_asked_for_is_cut_with_what_it_is_of() -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    pruned = subprune_fx.prune(model, INPUTS, keep=0.5)
    assert {group.name: group.kept for group in pruned.report.groups} == {"stream": READ // 2, "branch": READ // 2}
    assert against_masked(analyse(model, INPUTS[:2]), pruned.plan, pruned.module, INPUTS) < ROUNDING


class Given(nn.Module):
    """A layer whose state comes from outside, and one whose state goes there."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(5, READ)
        self.taken, self.shown = nn.GRU(READ, HELD, batch_first=True), nn.GRU(HELD, HELD, batch_first=True)
        self.after = nn.Linear(HELD, 3)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.taken(torch.relu(self.before(x)), state.transpose(0, 1).contiguous())
        y, last = self.shown(y)
        return self.after(y), last.transpose(0, 1)


def test_states_of_the_outside_stay() -> None:
    found = subprune_fx.explain(Given().eval(), (INPUTS[:2], torch.randn(2, 1, HELD)))
    assert [group.name for group in found.groups] == ["before"]
    reasons = {row.name: row.reason for row in found.frozen if row.name in ("taken", "shown")}
    assert reasons == {"taken": "recurrent begins with fixed channels", "shown": "it is an output of the network"}


@pytest.mark.parametrize("name", ["two layers, both directions", "both directions of a GRU", "RNN of ReLU"])
def test_it_is_written_and_can_be_trained(name: str, tmp_path: Path) -> None:
    model = Steps(**CASES[name])
    pruned = subprune_fx.prune(model, INPUTS, ratio=1.3)
    write_all(pruned.module, model, INPUTS[:1], INPUTS, [tmp_path / "small.onnx", tmp_path / "small.pt2"])
    pruned.module.train()(INPUTS).sum().backward()
    layers = [module for module in pruned.module.modules() if isinstance(module, nn.RNNBase)]
    assert len(layers) == CASES[name].get("num_layers", 1)
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("shape", [(STEPS, 5), (4, STEPS, 5)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_spelled_graph_computes_the_same(kind: Any, shape: tuple[int, ...]) -> None:
    """Sequences of one sample have no batch dimension."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = kind(5, HELD, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.steps(x)

    model, x = Bare().eval(), torch.randn(shape)
    graph = next(traces(model, x))
    assert any(node.target is recurrent for node in graph.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
        back = spread(graph)
        assert [node.op for node in back.graph.nodes] == ["placeholder", "call_module", "output"]
        torch.testing.assert_close(back(x), model(x), rtol=0, atol=0)


class Stack(nn.Module):
    """Layers on top of each other, of which `take` takes something."""

    def __init__(self, kind: Any, take: Callable[[Tensor, Any], Tensor], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = kind(5, HELD, num_layers=3, batch_first=True, **options)
        self.take, self.after = take, nn.LazyLinear(3)
        self.eval()(INPUTS[:2])

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.steps(x)
        found: Tensor = self.after(self.take(y, state))
        return found


STACKS: dict[str, tuple[Any, Callable[[Tensor, Any], Tensor], dict[str, Any], int]] = {
    "steps": (nn.LSTM, lambda y, _: y, {}, 3),
    "last state": (nn.LSTM, lambda _, state: state[0][-1], {}, 3),
    "last states of both directions": (
        nn.GRU,
        lambda _, state: torch.cat([state[-2], state[-1]], -1),
        {"bidirectional": True},
        3,
    ),
    "states of all layers": (nn.GRU, lambda _, state: state.transpose(0, 1).flatten(1), {}, 1),
    "all states, added up": (nn.LSTM, lambda _, state: state[0].sum(0) + state[1].sum(0), {}, 1),
    "first and last": (nn.RNN, lambda y, state: y[:, -1] + state[0], {}, 2),
}
"""Kind, what is taken, options, and how many widths there are: what is taken as one tensor has one."""


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("way", ["module", "exported"])
def test_each_layer_of_a_stack_has_its_width(name: str, way: str) -> None:
    kind, take, options, widths = STACKS[name]
    model = Stack(kind, take, **options)
    given = model if way == "module" else exported(model)
    network = analyse(given, INPUTS[:2])
    assert len(network.channels.groups) == widths
    with torch.no_grad():
        torch.testing.assert_close(network.graph_module(INPUTS), model(INPUTS))
        torch.testing.assert_close(spread(analyse(given, INPUTS[:2]).graph_module)(INPUTS), model(INPUTS))
    first, *others = (group.name for group in network.channels.groups)
    pruned = subprune_fx.prune(given, INPUTS, keep=0.5, skip=tuple(others))
    assert {group.name: group.kept for group in pruned.report.groups} == {first: HELD // 2}
    assert (
        against_masked(restrict(analyse(given, INPUTS[:2]), (), others), pruned.plan, pruned.module, INPUTS) < ROUNDING
    )


def test_the_users_class_has_one_width_for_a_stack() -> None:
    model = Stack(nn.LSTM, lambda y, _: y)
    pruned = subprune_fx.prune(model, INPUTS, keep=0.5, only=("steps",))
    with pytest.raises(SubpruneError, match="cannot have several widths"):
        subprune_fx.apply(pruned.plan, model)


def test_dropout_between_layers_stays() -> None:
    model = Stack(nn.GRU, lambda y, _: y, dropout=0.5)
    model.steps_l1 = model.after  # a name that the second layer might get
    module = subprune_fx.prune(model, INPUTS, keep=0.5).module
    assert {"steps_l0", "steps_dropout_l1", "steps_dropout_l2", "steps_l2"} <= dict(module.named_modules()).keys()
    assert torch.equal(module(INPUTS), module(INPUTS))
    assert not torch.equal(module.train()(INPUTS), module(INPUTS))


def twofold(layer: nn.RNNBase) -> None:
    """Make the second half of a layer's units copies of the first."""
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            gates = weight.view(-1, HELD, *weight.shape[1:])
            gates[:, HELD // 2 :] = gates[:, : HELD // 2]
            if name.startswith("weight_hh"):
                weight.mul_(0.5 + torch.rand(HELD))


@pytest.mark.parametrize("name", [name for name in CASES if name != "a projected state"])
@pytest.mark.parametrize("way", ["module", "exported"])
def test_duplicated_units_of_a_state_are_pruned_without_loss(name: str, way: str) -> None:
    """Of two units that hold the same one is enough, once the matrix of the state is told."""
    model = Steps(**CASES[name])
    twofold(model.steps)
    given = model if way == "module" else exported(model)
    pruned = subprune_fx.prune(given, INPUTS, keep=0.5, skip=("before",), ridge=1e-9)
    assert sum(group.kept for group in pruned.report.groups) == HELD // 2 * CASES[name].get("num_layers", 1)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(INPUTS), model(INPUTS), rtol=1e-3, atol=1e-4)


def test_the_state_of_long_sequences_is_nearer_with_a_refitted_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Steps(nn.LSTM), torch.randn(64, 100, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.steps.weight_hh_l0.mul_(3)
        before = model(x)
        changes = []
        for _ in range(2):
            pruned = subprune_fx.prune(model, x, keep=0.5, skip=("before",))
            changes.append(float((pruned.module(x) - before).square().mean() / before.var()))
            monkeypatch.setattr(sweep, "refit", lambda *_: None)
    assert changes[0] < 0.7 * changes[1]


def test_a_unit_that_only_the_state_reads_counts() -> None:
    """The last unit is read behind the layer, but hardly; the first only by the next step, which needs it."""
    model = Steps(nn.RNN)
    with torch.no_grad():
        model.after.weight.view(3, 2, HELD)[:, :, 0] = 0
        model.after.weight.view(3, 2, HELD)[:, :, -1] = 1e-2
        model.steps.weight_hh_l0[:, 0] = 1
        model.steps.weight_hh_l0[:, -1] = 0
    pruned = subprune_fx.prune(model, INPUTS, keep=(HELD - 1) / HELD, skip=("before",))
    (made,) = pruned.plan.decisions
    assert made.kept == tuple(range(HELD - 1))


@pytest.mark.parametrize("name", ["LSTM", "both directions of a GRU", "no biases"])
def test_a_trial_takes_units_from_the_state_too(name: str) -> None:
    compiler = Compiler(Steps(**CASES[name]), INPUTS, Options())
    (group,) = (one for one in compiler.network.channels.groups if one.name == "steps")
    gone = [1, 4]
    alive = np.ones(compiler.network.channels.prunable.size, dtype=bool)
    alive[group.units[gone]] = False
    patch = compiler._evidence.reweighter.patches(group, alive)
    matrices = [value for name, value in patch.items() if "weight_hh" in name]
    assert len(matrices) == 1 + bool(CASES[name].get("bidirectional"))
    for matrix in matrices:
        assert (matrix[:, gone] == 0).all()
        assert (matrix[:, [k for k in range(HELD) if k not in gone]] != 0).all()


def packed() -> fx.GraphModule:
    """A recurrent layer that is told how long each sample is; torch's tracers do not look into the packing."""
    torch.manual_seed(0)
    layers = {"before": nn.Linear(5, 8), "between": nn.Linear(8, 8), "steps": nn.GRU(8, 6, batch_first=True)}
    root, graph = nn.ModuleDict({**layers, "after": nn.Linear(6, 3)}), fx.Graph()
    x = graph.call_function(torch.relu, (graph.call_module("before", (graph.placeholder("x"),)),))
    x = graph.call_module("between", (x,))
    lengths = graph.call_method("new_full", (x, (2,), STEPS - 2), {"dtype": torch.int64})
    x = graph.call_function(pack_padded_sequence, (x, lengths), {"batch_first": True})
    state = graph.call_function(operator.getitem, (graph.call_module("steps", (x,)), 1))
    last = graph.call_function(operator.getitem, (state, 0))
    graph.output(graph.call_module("after", (last,)))
    return fx.GraphModule(root, graph).eval()


def test_packed_sequences_stay() -> None:
    network = analyse(packed(), INPUTS[:2])
    assert [group.name for group in network.channels.groups] == ["before"]
    assert "between" in {row.name for row in subprune_fx.explain(packed(), INPUTS[:2]).frozen}


class Unrolled(nn.Module):
    """A cell called for each step, whose first state is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(5, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 16)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        out: Tensor = self.out(state)
        return out


def test_a_call_that_reads_zeros_does_not_count() -> None:
    torch.manual_seed(0)
    _, _, report = subprune_fx.prune(Unrolled().eval(), INPUTS[:, :3], keep=15 / 16)
    (row,) = report.groups
    assert row.kept == 15
    assert 0 < row.error < 0.05
