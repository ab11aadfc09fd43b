"""Every selector agrees with a direct, slow computation; every one works from the library, with and without labels."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subprune_fx
from subprune_fx.cli.main import main
from subprune_fx.errors import SubpruneError
from subprune_fx.numerics.blocks import Block
from subprune_fx.numerics.prefixes import kept_errors, reweighted_errors
from subprune_fx.passes.dependencies import analyse
from subprune_fx.passes.sensitivities import sensitivities
from subprune_fx.selectors import LABELLED, SELECTORS, Evidence, Need, Ranking, Sensitivity


def net() -> nn.Sequential:
    """Two prunable groups: 6 channels into a flatten (4 positions each), 8 neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def inputs(samples: int = 32) -> Tensor:
    return torch.randn(samples, 1, 5, 5, generator=torch.Generator().manual_seed(1))


class Labelled(TypedDict):
    labels: Tensor
    training: tuple[Tensor, Tensor]


LABELS = Labelled(labels=torch.arange(32) % 3, training=(inputs(40), torch.arange(40) % 3))


def problem(units: int, columns: int, targets: int) -> tuple[Tensor, Tensor, Tensor, Block]:
    """B, Y, W and the block made of them; unit i has columns i, i + units, ..."""
    b = torch.randn(40, units * columns, dtype=torch.float64)
    w = torch.randn(units * columns, targets, dtype=torch.float64)
    y = b @ w + 0.1 * torch.randn(40, targets, dtype=torch.float64)
    unit = torch.arange(units * columns) % units
    return b, y, w, Block(b.mT @ b, b.mT @ y, unit, float(y.square().sum()), 0.5)


@pytest.mark.parametrize("columns", [1, 3])
def test_prefix_errors_are_those_of_least_squares_and_of_plain_cuts(columns: int) -> None:
    b, y, w, block = problem(5, columns, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    solved = reweighted_errors([block, block], order)
    kept = kept_errors([block, block], [w, w], order)
    for k in range(6):
        chosen = torch.isin(block.unit, order[:k])
        x = b[:, chosen]
        best = y - x @ torch.linalg.lstsq(x, y).solution if k else y
        plain = y - x @ w[chosen]
        torch.testing.assert_close(solved[k], best.square().sum())
        torch.testing.assert_close(kept[k], plain.square().sum())


def kept_by_layer(module: nn.Module, select: str, ratio: float = 2, **more: object) -> dict[str, list[int]]:
    arguments = {**LABELS, "seed": 3, "budget": "uniform", **more}
    pruned = subprune_fx.prune(module, inputs(), ratio=ratio, select=select, **arguments)  # type: ignore[arg-type]
    return {decision.group: list(decision.kept) for decision in pruned.plan.decisions}


def test_layerweightnorm_keeps_the_largest_columns_of_the_next_layer() -> None:
    module = net()
    linear, last = (module.state_dict()[name] for name in ("3.weight", "5.weight"))
    conv_scores = [float(linear[:, 4 * i : 4 * i + 4].abs().sum()) for i in range(6)]
    linear_scores = [float(last[:, i].abs().sum()) for i in range(8)]
    for name, scores in (("0", conv_scores), ("3", linear_scores)):
        kept = kept_by_layer(module, "layerweightnorm")[name]
        assert kept == sorted(np.argsort(scores)[::-1][: len(kept)].tolist())


def test_weightnorm_ranks_all_layers_by_weights_per_connection() -> None:
    module = net()
    scores = {("0", i): float(module.state_dict()["3.weight"][:, 4 * i : 4 * i + 4].abs().mean()) for i in range(6)}
    scores |= {("3", i): float(module.state_dict()["5.weight"][:, i].abs().mean()) for i in range(8)}
    kept = kept_by_layer(module, "weightnorm", budget=None, reweight=False)
    chosen = {(name, i) for name, units in kept.items() for i in units}
    alone = {name for name, units in kept.items() if len(units) == 1}  # at least one a layer, however bad
    best_dropped = max(score for unit, score in scores.items() if unit not in chosen)
    assert all(scores[unit] >= best_dropped for unit in chosen if unit[0] not in alone)


@pytest.mark.parametrize("select", ["random", "layerrandom", "stochastic"])
def test_random_selectors_follow_the_seed(select: str) -> None:
    module = net()
    found = [kept_by_layer(module, select, seed=seed, ridge=1e-3) for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert any(other != found[0] for other in found[2:])


@pytest.mark.parametrize("budget", [None, "uniform", "error", "accuracy"])
@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_meets_the_ratio_with_every_budget(select: str, reweight: bool, budget: str | None) -> None:
    target = "flops" if reweight else "params"
    pruned = subprune_fx.prune(
        net(), inputs(), ratio=2, select=select, reweight=reweight, budget=budget, target=target, **LABELS
    )
    assert {"params": pruned.report.achieved, "flops": pruned.report.speedup}[target] >= 2
    assert pruned.module(inputs(2)).shape == (2, 3)


def test_the_largest_seed_is_one() -> None:
    found = [kept_by_layer(net(), "layerrandom", seed=seed) for seed in (2**63 - 1, 2**63 - 2)]
    assert found[0] != found[1]
    for seed in (2**63, -1, 0.5):
        with pytest.raises(SubpruneError, match=f"seed {seed} is not a whole number from 0 to 9223372036854775807"):
            kept_by_layer(net(), "layerrandom", seed=seed)


@pytest.mark.parametrize("select", [name for name, row in SELECTORS.items() if row.needs & LABELLED])
def test_labels_are_asked_for(select: str) -> None:
    with pytest.raises(SubpruneError, match=f"selector {select} needs (the class of each|labelled training) "):
        subprune_fx.prune(net(), inputs(), ratio=2, select=select)


def test_an_unknown_selector_is_refused() -> None:
    with pytest.raises(SubpruneError, match="no selector 'best'; use one of inchange"):
        subprune_fx.prune(net(), inputs(), ratio=2, select="best")


def test_ratios_share_a_calibration_and_change_nothing() -> None:
    module = net()
    x = inputs()
    each = subprune_fx.prune_each(module, x, ratios=(2, 3), select="stochastic", seed=5)
    for ratio, shared in zip((2, 3), each, strict=True):
        alone = subprune_fx.prune(module, x, ratio=ratio, select="stochastic", seed=5)
        assert shared.plan.decisions == alone.plan.decisions


def test_moments_are_taken_only_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from subprune_fx.passes import pipeline  # noqa: PLC0415

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pipeline, "calibrate", refuse)
    for name, row in SELECTORS.items():
        if Need.MOMENTS not in row.needs:
            kept_by_layer(net(), name, reweight=False)


def gated(module: nn.Sequential, x: Tensor, gates: tuple[Tensor, Tensor]) -> Tensor:
    """The network with each unit's activations multiplied by a gate of its own, by sample."""
    hidden = module[1](module[0](x)) * gates[0][:, :, None, None]
    hidden = module[4](module[3](module[2](hidden))) * gates[1]
    found: Tensor = module[5](hidden)
    return found


def importances(module: nn.Sequential) -> list[Tensor]:
    """|dL/d gate| by unit, mean over samples, of both groups."""
    gates = (torch.ones(32, 6, requires_grad=True), torch.ones(32, 8, requires_grad=True))
    loss = nn.functional.cross_entropy(gated(module, inputs(), gates), LABELS["labels"], reduction="sum")
    return [gradient.abs().mean(0) for gradient in torch.autograd.grad(loss, gates)]


def test_layeractgrad_is_the_derivative_of_the_loss_by_a_gate() -> None:
    module = net()
    for name, score in zip(("0", "3"), importances(module), strict=True):
        kept = kept_by_layer(module, "layeractgrad")[name]
        assert kept == sorted(score.argsort(descending=True)[: len(kept)].tolist())


def test_actgrad_ranks_normalised_derivatives_over_the_network() -> None:
    module = net()
    scores: dict[tuple[str, int], float] = {}
    for name, score in zip(("0", "3"), importances(module), strict=True):
        scores |= {(name, i): float(value) for i, value in enumerate(score / score.norm())}
    kept = kept_by_layer(module, "actgrad", budget=None, reweight=False)
    chosen = {(name, i) for name, units in kept.items() for i in units}
    assert 2 < len(chosen) < 14
    assert min(scores[unit] for unit in chosen) >= max(scores[unit] for unit in scores if unit not in chosen)


def test_a_unit_that_two_layers_read_counts_for_both() -> None:
    """The derivative by a gate on a shared activation is the sum over its readers."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(25, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x.flatten(1)))
            out: Tensor = torch.sin(self.left(hidden)) * self.right(hidden)
            return out

    module = Two().eval()
    hidden = torch.tanh(module.first(inputs().flatten(1)))
    gate = torch.ones(32, 5, requires_grad=True)
    out = torch.sin(module.left(hidden * gate)) * module.right(hidden * gate)
    loss = nn.functional.cross_entropy(out, LABELS["labels"], reduction="sum")
    score = torch.autograd.grad(loss, gate)[0].abs().mean(0)
    kept = kept_by_layer(module, "layeractgrad", ratio=1.5)["first"]
    assert 1 < len(kept) < 5
    assert kept == sorted(score.argsort(descending=True)[: len(kept)].tolist())


@pytest.mark.parametrize("signed", [True, False])
def test_sensitivity_is_the_largest_share_of_an_output(signed: bool) -> None:
    """Definition 1 of Liebenwein et al. by its four sums, for every row, output and column one by one."""
    module = net()
    if signed:
        module[1] = nn.Identity()
    network = analyse(module, inputs(2))
    found = sensitivities(network, [inputs()[:20], inputs()[20:]])
    x, weight = module[:3](inputs()).detach(), module.state_dict()["3.weight"]
    shares = torch.zeros(24)
    for row, out in itertools.product(range(32), range(8)):
        for s, t in itertools.product((1, -1), (1, -1)):
            parts = (s * x[row]).clamp(min=0) * (t * weight[out]).clamp(min=0)
            if parts.sum() > 1e-6:
                shares = torch.maximum(shares, parts / parts.sum())
    (name,) = (name for name in found if network.channels.contractions[name].module == "3")
    torch.testing.assert_close(found[name][0], shares)


def sampled(seed: int, chance: Tensor) -> Ranking:
    evidence = Evidence(
        len(chance), torch.Generator().manual_seed(seed), sensitivity=Sensitivity(chance, patches=4, taps=9)
    )
    return SELECTORS["layersampling"].rank(evidence, None)


def test_units_are_sampled_in_proportion_to_their_sensitivity() -> None:
    chance = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    firsts = torch.bincount(torch.tensor([int(sampled(seed, chance).order[0]) for seed in range(2000)]), minlength=4)
    # three standard deviations of a binomial of 2000
    assert ((firsts / 2000 - chance).abs() <= 3 * (chance * (1 - chance) / 2000).sqrt()).all()
    pairs = [sampled(seed, chance).order[:2].tolist() for seed in range(2000)]
    wanted = 0.5 * 0.3 / 0.5  # unit 1 after unit 0, without replacement
    assert abs(pairs.count([0, 1]) / 2000 - wanted) <= 3 * (wanted * (1 - wanted) / 2000) ** 0.5
    ranking = sampled(0, chance)
    assert ranking.order[-1] == 3
    assert ranking.factors is not None
    for k in (1, 2, 3):  # drawn / (samples x chance), so the chances times the factors are shares of the samples
        assert float((ranking.factors(k) * chance[ranking.order[:k]]).sum()) == pytest.approx(1)


def test_the_sampling_budget_is_one_error_for_all_layers() -> None:
    rankings = {"a": sampled(0, torch.rand(9, dtype=torch.float64)), "b": sampled(1, torch.rand(30).double() ** 4)}
    allot = SELECTORS["layersampling"].allot

    def size(keep: Mapping[str, int]) -> int:
        return 10 * keep["a"] + keep["b"]

    assert allot is not None
    keep = allot(rankings, size, 90)
    assert size(keep) <= 90
    levels = [math.exp(e / 50) for e in range(-1500, 1500)]
    demands = [{n: r.demand(eps) for n, r in rankings.items() if r.demand is not None} for eps in levels]
    assert keep == next(demand for demand in demands if size(demand) <= 90)


def test_demand_is_the_expected_number_of_different_samples() -> None:
    chance = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    ranking = sampled(0, chance)
    assert ranking.demand is not None
    for epsilon in (5.0, 20.0, 60.0, 200.0):
        samples = math.ceil(3 * (6 + 2 * epsilon) * 2 * 3 * math.log(8 * 5 * 9 / 1e-16) / epsilon**2)
        assert ranking.demand(epsilon) == math.ceil(sum(1 - (1 - p) ** samples for p in chance.tolist()) - 1e-9)


def forward_selection(module: nn.Module, keep: dict[str, int]) -> dict[str, list[int]]:
    """Layer by layer, all subsets one larger tried on a copy whose columns are zero or multiplied by n / k."""
    found = {}
    for name, reader, n, taps in (("0", "3", 6, 4), ("3", "5", 8, 1)):
        weight, kept = module.state_dict()[f"{reader}.weight"], list[int]()
        original = weight.clone()

        def loss(units: list[int], weight: Tensor = weight, original: Tensor = original, n: int = n, taps: int = taps
                 ) -> float:  # fmt: skip
            weight.zero_()
            for unit in units:
                columns = slice(unit * taps, unit * taps + taps)
                weight[:, columns] = original[:, columns] * n / len(units)
            return float(nn.functional.cross_entropy(module(inputs()).detach(), LABELS["labels"]))

        for _ in range(keep[name]):
            kept.append(min((i for i in range(n) if i not in kept), key=lambda i: loss([*kept, i])))
        loss(kept)  # later layers see this one pruned
        found[name] = sorted(kept)
    return found


@pytest.mark.parametrize("select", ["layergreedyfs", "layergreedyfs-fd"])
def test_greedy_forward_selection_is_the_direct_one(select: str) -> None:
    module = net()
    same = (inputs(), LABELS["labels"])
    pruned = subprune_fx.prune(
        module, inputs(), ratio=2, select=select, reweight=False, budget="uniform",
        labels=LABELS["labels"], training=same,
    )  # fmt: skip
    keep = {decision.group: len(decision.kept) for decision in pruned.plan.decisions}
    slow = copy.deepcopy(module)
    assert {decision.group: list(decision.kept) for decision in pruned.plan.decisions} == forward_selection(slow, keep)
    torch.testing.assert_close(pruned.module(inputs()), slow(inputs()))  # with the outgoing weights multiplied


@pytest.mark.parametrize("variant", ["asym", "seq", "layer"])
def test_reweighting_by_variant_is_the_direct_one(variant: str) -> None:
    """Least squares layer by layer, after a selection that does not depend on the inputs."""
    module, x = net(), inputs().double()
    pruned = subprune_fx.prune(
        module,
        inputs(),
        ratio=2,
        select="layerweightnorm",
        variant=variant,
        budget="uniform",
        intercept=False,
        ridge=1e-9,
        feedback=False,
        rounds=0,
    )
    first, second = (torch.tensor(decision.kept) for decision in pruned.plan.decisions)
    columns = (first[:, None] * 4 + torch.arange(4)).flatten()
    state = {name: value.double() for name, value in module.state_dict().items()}
    w3, w5 = state["3.weight"].T, state["5.weight"].T
    a3 = copy.deepcopy(module)[:3].double()(x).detach()
    a5 = torch.relu(a3 @ w3 + state["3.bias"])
    new3 = torch.linalg.lstsq(a3[:, columns], a3 @ w3).solution  # nothing is pruned before: the same for all variants
    b5 = torch.relu(a3[:, columns] @ new3 + state["3.bias"])
    seen, aim = {"asym": (b5, a5 @ w5), "seq": (b5, b5 @ w5), "layer": (a5, a5 @ w5)}[variant]
    new5 = torch.linalg.lstsq(seen[:, second], aim).solution
    wanted = b5[:, second] @ new5 + state["5.bias"]
    torch.testing.assert_close(pruned.module(inputs()).double(), wanted, rtol=1e-3, atol=1e-4)  # float32 moments


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_works_from_the_command_line(select: str, reweight: bool, tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "net.pt")
    x, y = inputs(40).numpy(), (np.arange(40) % 3)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    out = tmp_path / "small.pt"
    arguments = [str(tmp_path / "net.pt"), "--ratio", "2", "-o", str(out), "--calib", str(tmp_path / "xy.npz")]
    arguments += ["--select", select, "--train", str(tmp_path / "xy.npz"), "-q"]
    assert main([*arguments, *([] if reweight else ["--no-reweight"])]) == 0
    assert out.exists()


@pytest.mark.parametrize("select", [name for name, row in SELECTORS.items() if row.needs & LABELLED])
def test_without_labels_the_command_line_says_so_in_one_line(
    select: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net(), tmp_path / "net.pt")
    np.savez(tmp_path / "x.npz", x=inputs().numpy())
    out = tmp_path / "small.pt"
    arguments = [str(tmp_path / "net.pt"), "--ratio", "2", "-o", str(out), "--calib", str(tmp_path / "x.npz")]
    assert main([*arguments, "--select", select]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"selector {select} needs" in line
    assert ("y beside x" in line) != ("--train" in line)
    assert not out.exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as an ONNX file."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    batch = ({0: torch.export.Dim("n")},)
    program = torch.onnx.export(net(), (inputs(2),), dynamo=True, dynamic_shapes=batch, verbose=False)
    assert program is not None
    program.save(path)
    return path


@pytest.mark.parametrize(
    ("select", "code"), [("layersampling", 0), ("weightnorm", 0), ("layergreedyfs", 0), ("actgrad", 2)]
)
def test_onnx_networks_have_every_kind_of_selector_but_those_with_gradients(
    exported: Path, select: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xy = tmp_path / "xy.npz"
    np.savez(xy, x=inputs(40).numpy(), y=np.arange(40) % 3)
    arguments = [str(exported), "--ratio", "2", "-o", str(tmp_path / "small.onnx"), "--calib", str(xy), "-q"]
    assert main([*arguments, "--select", select]) == code
    assert ("needs gradients, and onnxruntime gives none" in capsys.readouterr().err) == bool(code)


class Heads(nn.Module):
    """Attention over the rows of an image, four heads of two, and a product with a weight as the second operand."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((5, 8), (5, 8), (5, 8), (8, 6)))
        self.last = nn.Parameter(torch.randn(3, 6))

    def mixed(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        q, k, v = (layer(rows).reshape(rows.shape[0], 5, 4, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        heads: Tensor = attended.transpose(1, 2).reshape(rows.shape[0], 5, 8)
        return heads

    def classify(self, mixed: Tensor) -> Tensor:
        scores: Tensor = (self.last @ torch.relu(self.out(mixed)).mean(1)[:, :, None])[:, :, 0]
        return scores

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.mixed(x))


@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_prunes_attention_heads(select: str) -> None:
    pruned = subprune_fx.prune(Heads().eval(), inputs(), ratio=1.5, select=select, **LABELS)
    assert pruned.report.achieved >= 1.5
    assert pruned.module(inputs(2)).shape == (2, 3)


def test_a_heads_importance_is_the_derivative_of_the_loss_by_its_gate() -> None:
    module = Heads().eval()
    gate = torch.ones(32, 4, requires_grad=True)
    mixed = module.mixed(inputs()).detach() * gate.repeat_interleave(2, 1)[:, None]
    loss = nn.functional.cross_entropy(module.classify(mixed), LABELS["labels"], reduction="sum")
    score = torch.autograd.grad(loss, gate)[0].abs().mean(0)
    (kept,) = kept_by_layer(module, "layeractgrad", only=["v"], ratio=1.2).values()
    assert kept == sorted(score.argsort(descending=True)[: len(kept)].tolist())
    assert len(kept) < 4
