"""Both tracers give the same groups; what neither follows is refused with the line that stopped them."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support import against_masked
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx.errors import SubpruneError
from subprune_fx.frontends.describe import FxNetwork, describe
from subprune_fx.frontends.tracing import traces
from subprune_fx.passes.dependencies import clearest
from subprune_fx.passes.proof import halved


class Branching(nn.Module):
    """Does something else for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.b = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if x.sum() > 0:
            x = x.relu()
        return self.b(x)


def test_control_flow_on_data_is_refused_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    lines, start = inspect.getsourcelines(Branching.forward)
    line = start + next(i for i, text in enumerate(lines) if "x.sum()" in text)
    with pytest.raises(SubpruneError) as caught:
        subprune_fx.prune(Branching(), torch.randn(4, 3, 8, 8), keep=0.5)
    assert f"test_tracing.py:{line}: if x.sum() > 0:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # torch.export prints the graph that it had so far


class Eager(Branching):
    """As a mixture of experts of transformers that goes through them in a loop."""

    config = SimpleNamespace(_experts_implementation="eager")

    def _can_set_experts_implementation(self) -> bool:
        return True


def test_a_loop_over_experts_is_refused_with_its_setting() -> None:
    with pytest.raises(SubpruneError, match=r'call its set_experts_implementation\("batched_mm"\)'):
        next(traces(Eager(), torch.randn(2, 3, 8, 8)))


class Counting(nn.Module):
    """Asks how many samples there are as Python does, of a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x).relu(), x.new_ones(len(x), 8)]
        y: Tensor = self.last((parts[0] * parts[1]).view(len(x) * len(parts), -1)).reshape(len(x), -1)
        return y


class Flat(nn.Module):
    """Pixels as rows; the layout that its input is in makes `contiguous` superfluous, as far as a tracer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.contiguous(memory_format=torch.channels_last))
        y: Tensor = self.b(torch.relu(x).permute(0, 2, 3, 1).contiguous().view(-1, 8))
        return y.view(len(x), -1)


def test_no_layout_in_memory_is_relied_on() -> None:
    model = Flat().eval()
    exported = list(traces(model, torch.randn(2, 3, 4, 4)))[-1]
    layers = fx.Interpreter(exported)
    relu = next(node for node in exported.graph.nodes if "relu" in node.name)
    with relu.graph.inserting_after(relu):
        other = relu.graph.call_function(torch.clone, (relu,), {"memory_format": torch.contiguous_format})
    relu.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(layers.run(x), model(x))


def test_the_length_of_a_tensor_is_free() -> None:
    x = torch.randn(2, 6)
    graphs = list(traces(Counting(), x))
    assert len(graphs) == 2
    assert "len" not in Counting.forward.__globals__
    for graph in graphs:
        network = describe(graph, x)
        plan, small = halved(network)
        assert [group.units.size for group in network.channels.groups] == [4]
        assert against_masked(network, plan, small, torch.randn(2, 6)) < 1e-6
        assert len(small(torch.randn(5, 6))) == 5


@pytest.mark.parametrize(
    "activation",
    [
        *(torch.relu_, torch.sigmoid_, F.leaky_relu_, F.elu_, F.hardtanh_, operator.iadd, torch.Tensor.tanh_),
        *(lambda x: F.relu(x, True), lambda x: F.celu(x, inplace=True), lambda x: F.dropout(x, 0.5, False, True)),
    ],
)
def test_no_op_writes_into_what_it_reads(activation: Callable[..., Tensor]) -> None:
    """Each on what another node reads too: the passes run a node as often as they like."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            more = (0.5,) if activation is operator.iadd else ()
            return self.last(activation(self.first(x), *more))

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            before = {used: self.env[used].clone() for used in n.all_input_nodes}
            value = super().run_node(n)
            assert all(torch.equal(self.env[used], kept) for used, kept in before.items())
            return value

    x = torch.randn(4, 3)
    for graph in traces(Net(), x):
        Watch(graph).run(x)


class Unrolled(nn.Module):
    """Loops over its samples: torch.export takes as many as it is shown for all there are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.inner(row) for row in x])


def test_a_graph_of_as_many_samples_as_the_example_is_refused() -> None:
    with pytest.raises(SubpruneError, match=r"torch\.export: the traced graph is one of 2 samples, whatever it"):
        subprune_fx.prune(Unrolled().eval(), torch.randn(40, 8), ratio=2)


def test_a_network_that_gives_no_numbers() -> None:
    last = nn.Linear(4, 2)
    last.bias.data.fill_(torch.nan)
    net = nn.Sequential(nn.Linear(3, 4), last)
    with pytest.raises(SubpruneError, match="its outputs are NaN; check its weights"):
        subprune_fx.prune(net, torch.randn(4, 3), keep=0.5)


def test_a_random_network_is_refused_as_such() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out: Tensor = self.last(h + torch.randn_like(h))
            return out

    with pytest.raises(SubpruneError, match="Noisy: gives other outputs for the same input each time"):
        list(traces(Noisy(), torch.randn(2, 4)))


@pytest.mark.parametrize("pairs", [lambda y: y.view(2, -1), lambda y: y.view(len(y) // 2, 2, -1).sum(1)])
def test_a_number_of_samples_that_is_built_in_is_refused(pairs: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(pairs(self.first(x)).relu())  # type: ignore[no-any-return]

    with pytest.raises(SubpruneError, match="runs on 2 samples and neither on 1 nor on 3"):
        subprune_fx.prune(Net().eval(), torch.randn(8, 4), keep=0.5)


def test_a_network_that_fails_names_the_shape() -> None:
    with pytest.raises(SubpruneError, match=r"does not run on an input of shape \(2, 4\)"):
        subprune_fx.prune(nn.Linear(3, 2), torch.randn(2, 4), keep=0.5)


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.ChannelShuffle(4),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        nn.Conv2d(12, 4, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.PReLU(8),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
        nn.InstanceNorm2d(6, affine=True),
        nn.GELU(),
        nn.PixelUnshuffle(2),
        nn.Conv2d(24, 2, 1),
    )


def one_dimension() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(3, 8, 5, padding=2),
        nn.GLU(1),
        nn.GroupNorm(2, 4),
        nn.ConstantPad1d(1, 0.0),
        nn.Conv1d(4, 6, 3),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 2, 1),
    )


NETWORKS = {make.__name__: make for make in (grouped, decoder, one_dimension)}


def summary(network: FxNetwork) -> list[Any]:
    """Groups by their sizes and numbers of producers and consumers, whatever nodes are called."""
    channels = network.channels
    return sorted((g.units.size, len(g.producers), len(g.consumers)) for g in channels.groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_tracers_end_in_equivalent_groups(name: str) -> None:
    make: Callable[[], nn.Module] = NETWORKS[name]
    model, x = make().eval(), torch.randn(2, 3, 8, 8)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    symbolic, exported = [describe(graph, x) for graph in traces(model, x)]
    assert summary(symbolic) == summary(exported)
    for network in (symbolic, exported):
        assert len(network.channels.groups) >= 2
        assert {item.reason for item in network.channels.frozen} == {"it is an output of the network"}
        assert against_masked(network, *halved(network), x) < 1e-5


@fx.wrap
def _unsqueeze(x: Tensor, rank: int) -> tuple[Tensor, int]:
    """Called like an op of torch, and something else (torchvision's MViT)."""
    return (x.unsqueeze(1) if x.dim() == rank else x), rank


@fx.wrap
def clipped(sizes: list[int], most: int) -> list[int]:
    """Writes into its argument, which fx keeps immutable (torchvision's video Swin)."""
    for i, size in enumerate(sizes):
        sizes[i] = min(size, most)
    return sizes


class Namesake(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x, _ = _unsqueeze(self.a(x).relu(), 2)
        return self.b(x)


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return self.b(x).mean(clipped([2, 7], 3))


@pytest.mark.parametrize(("model", "shape"), [(Namesake, (4, 5)), (Writing, (4, 3, 9, 9))])
def test_functions_of_ones_own_send_it_to_torch_export(model: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, x = model().eval(), torch.randn(shape)
    pruned = subprune_fx.prune(network, x, keep=0.5)
    assert [row.kept for row in pruned.report.groups] == [4]
    assert pruned.module(x).shape == network(x).shape


@dataclasses.dataclass
class Scores:
    logits: Tensor
    loss: Tensor | None = None


class Own:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(("kind", "says"), [(Scores, r"register_dataclass\(Scores\)"), (Own, "in a tuple or dict")])
def test_outputs_in_a_class_of_ones_own_are_refused(kind: Callable[[Tensor], object], says: str) -> None:
    """No comparison of outputs would see what is in them."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> object:
            return kind(super().forward(x))  # type: ignore[no-untyped-call]

    with pytest.raises(SubpruneError, match=says):
        subprune_fx.prune(Net(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(24, 3), keep=0.5)


def test_a_cache_in_the_output_is_refused_by_the_setting_that_makes_it() -> None:
    """As language models of transformers are by default."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Own]:
            return super().forward(x), Own(x)  # type: ignore[no-untyped-call]

    net = Net(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net.config = SimpleNamespace(use_cache=True)  # type: ignore[assignment]
    with pytest.raises(SubpruneError, match=r"set its config\.use_cache to False, or"):
        subprune_fx.prune(net, torch.randn(24, 3), keep=0.5)


def test_a_registered_class_is_an_output() -> None:
    torch.export.register_dataclass(Registered)

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Registered:
            return Registered(super().forward(x))  # type: ignore[no-untyped-call]

    pruned = subprune_fx.prune(Net(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(24, 3), keep=0.5)
    assert pruned.module(torch.randn(5, 3)).logits.shape == (5, 2)


@dataclasses.dataclass
class Registered:
    logits: Tensor


def test_a_trace_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """symbolic_trace takes the argument that is not given for a tensor, and fx would print the graph."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            out: Tensor = super().forward(x if mask is None else x * mask)  # type: ignore[no-untyped-call]
            return out

    net = Net(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert len(list(traces(net, torch.randn(4, 3)))) == 1
    assert capfd.readouterr() == ("", "")


def test_gradients_asked_for_are_no_obstacle() -> None:
    """Implicit networks ask for those of their inputs."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.clone().detach().requires_grad_(True)
            return super().forward(x), x  # type: ignore[no-untyped-call]

    assert len(list(traces(Net(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 3)))) == 2


def _apart(x: Tensor) -> Tensor:
    """It asks for the rank, which fx cannot know."""
    return x.unsqueeze(1).squeeze(1) if x.dim() == 2 else x


fx.wrap("_apart")


def _through(y: Tensor) -> Tensor:
    return _apart(y)


class Between(nn.Module):
    """Two layers with what the test does between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(6, 8), nn.Linear(8, 2), between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.between(self.first(x)))
        return out


def test_graph_that_is_not_looked_into_comes_last() -> None:
    net = Between(_through).eval()
    calls = ["_apart" in str(graph.graph) for graph in traces(net, torch.randn(2, 6))]
    assert calls == [False, True]
    assert clearest(net, torch.randn(2, 6)).channels.unknown == ()


def _doubled_in_part(y: Tensor) -> Tensor:
    y = y + 1
    y[:, 1:] += y[:, 1:]
    return y


def test_program_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To decompose it would be to capture it again."""
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    assert len(list(traces(Between(_doubled_in_part).eval(), torch.randn(2, 6)))) == 1


def test_samples_that_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a graph that is right: some and one more to compare outputs and sizes, some to follow channels."""
    run, samples = fx.Interpreter.run, []

    def noted(interpreter: fx.Interpreter, *inputs: Any, **options: Any) -> Any:
        samples.append(len(inputs[0]))
        return run(interpreter, *inputs, **options)

    monkeypatch.setattr(fx.Interpreter, "run", noted)
    clearest(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3))
    assert samples == [3, 2]


class Rounded(nn.Module):
    """Half precision where its author asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    @torch.autocast("cpu", dtype=torch.bfloat16)  # type: ignore[untyped-decorator]
    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu()).relu()
        return out

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.middle(x)
        out: Tensor = self.c(hidden.float())
        return out


def test_autocast_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Rounded().eval(), torch.randn(32, 4)
    for graph in traces(model, x[:2]):
        whole = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU(), model.c)
        torch.testing.assert_close(graph(x), whole(x))
    small, _, report = subprune_fx.prune(model, x, keep=0.5)
    assert [(row.name, row.kept) for row in report.groups] == [("a", 4), ("b", 4)]
    assert small(x).dtype == torch.float32
    assert model.middle(x).dtype == torch.bfloat16  # the user's own still rounds
