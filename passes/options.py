"""What the user chooses, whatever the ratio."""

from __future__ import annotations

import dataclasses

from subprune_fx.errors import SubpruneError
from subprune_fx.option_values import DEFAULT_PRECISION
from subprune_fx.passes.problems import Settings
from subprune_fx.plan import Layer
from subprune_fx.selectors import LABELLED, SELECTORS, Need
from subprune_fx.team import Team


@dataclasses.dataclass(frozen=True)
class Options:
    """Keywords of `subprune_fx.prune`, checked.

    Attributes:
        select: A row of `subprune_fx.selectors.SELECTORS`.
        variant: `asym`, `seq` or `layer`.
        target: What the ratio counts, a key of `passes.size.TARGETS`, or measures, one of `MEASURED`.
        file: Suffix of the file whose bytes are measured.
        threads: Of onnxruntime where latency is measured; 0 for all cores.
        budget: A rule of `passes.budgets.BUDGETS`; None: the selector's own, or else the default.
        only: Patterns of the groups to prune; none: all.
        skip: Patterns of groups to leave alone.
        align: What the widths of pruned layers are multiples of; None: what the target, or the layer, does best with.
        layers: What single groups are to keep, whatever the budget.
        reweight: False leaves consumers' weights as they are.
        settings: How least squares are posed.
        stochastic: Epsilon of stochastic greedy (paper App. B.3); None for exact greedy.
        distil: Steps of label-free distillation after pruning (training); 0: none.
        seed: Of everything random.
        batch: Most samples a forward pass.
        memory: Most bytes of activations that are kept in memory, see `passes.memory`; None: no limit.
        precision: What forward passes are computed in, see `subprune_fx.option_values.PRECISIONS`.
    """

    select: str = "inchange"
    variant: str = "asym"
    target: str = "params"
    file: str = ".onnx"
    threads: int = 1
    budget: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    align: int | None = None
    layers: tuple[Layer, ...] = ()
    reweight: bool = True
    settings: Settings = dataclasses.field(default_factory=Settings)
    stochastic: float | None = None
    distil: int = 0
    seed: int = 0
    batch: int = 64
    memory: int | None = None
    precision: str = DEFAULT_PRECISION


def check_gradients(options: Options) -> None:
    """Refuse what needs gradients, for a network that onnxruntime runs.

    Raises:
        SubpruneError: Something asked for does.
    """
    for unfit, what, remedy in (
        (options.distil > 0, "distillation", "leave distil out"),
        (Need.GRADIENTS in SELECTORS[options.select].needs, f"selector {options.select}", "choose another"),
    ):
        if unfit:
            said = f"{what} needs gradients, and onnxruntime gives none"
            raise SubpruneError(said, remedy=f"{remedy}, or start from the PyTorch network")


def check_shares(options: Options, team: Team, shares: int) -> None:
    """Refuse what several processes cannot share.

    Args:
        options: The user's choices.
        team: The processes.
        shares: How many inputs, or batches of a fixed size, there are to share.

    Raises:
        SubpruneError: Something asked for cannot be shared.
    """
    needs = SELECTORS[options.select].needs
    for unfit, what in (
        (bool(needs & LABELLED), f"selector {options.select}"),
        (options.distil > 0, "distillation"),
        (shares < team.size, f"a set of {shares} batches or inputs"),
    ):
        if unfit and team.size > 1:
            raise SubpruneError(f"{what} cannot be shared by {team.size} processes", remedy="run fewer, or one")
