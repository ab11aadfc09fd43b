"""What all tests share: the repository, one thread, a fixed seed, the network that a pruned one must equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from torch import Tensor, fx

from subprune_fx import Plan
from subprune_fx.frontends.describe import FxNetwork
from subprune_fx.graph.labels import survivors

# A slow machine must not fail a property, and a red build must be red again on the next run.
settings.register_profile("subprune_fx", deadline=None, derandomize=True)
settings.load_profile("subprune_fx")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def masked() -> Callable[[FxNetwork, Plan], Callable[[Tensor], Any]]:
    """Makes the function that a pruned network must compute.

    It is the original network at its original size, with the plan's new values put where they belong, in which every
    layer reads zeros in place of the dropped channels.
    """
    return lambda network, plan: _Masked(network, plan).run


class _Masked(fx.Interpreter):
    def __init__(self, network: FxNetwork, plan: Plan) -> None:
        self._network = network
        kept = {decision.group: np.asarray(decision.kept) for decision in plan.decisions}
        groups = network.channels.groups
        self._keep = network.channels.keep([group.units[kept[group.name]] for group in groups], groups)
        module = copy.deepcopy(network.graph_module)
        for name, value in plan.values.items():
            _put(module, name, self._widened(name, value))
        super().__init__(module)

    def _widened(self, name: str, value: Tensor) -> Tensor:
        """A new value at the original size; what the plan does not know of a parameter stays as it was."""
        channels = self._network.channels
        module = self._network.graph_module
        old: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        if name in old:
            full = old[name].detach().clone()
        else:  # a bias that its layer did not have
            owner = name.rpartition(".")[0]
            (outputs,) = [c.outputs for c in channels.contractions.values() if c.module == owner]
            return torch.zeros(outputs.size, dtype=value.dtype).index_put(
                (torch.from_numpy(self._keep[outputs]),), value
            )
        per_axis: list[NDArray[np.int64]] = [np.arange(size) for size in full.shape]
        for axis, labels in channels.axes.get(name, {}).items():
            per_axis[axis] = np.flatnonzero(self._keep[labels])
        if name in channels.elements:
            found = survivors(channels.elements[name], self._keep)
            per_axis = [all_ if some is None else some for all_, some in zip(per_axis, found, strict=True)]
        full[np.ix_(*per_axis)] = value
        return full

    def run_node(self, n: fx.Node) -> Any:
        consumer = self._network.channels.contractions.get(n.name)
        if consumer is None:
            return super().run_node(n)
        source = next(used for used in n.all_input_nodes if used.name == consumer.source)
        value = self.env[source]
        mask = torch.from_numpy(self._keep[consumer.labels]).to(value.dtype)
        shape = [-1 if d == consumer.data % value.ndim else 1 for d in range(value.ndim)]
        self.env[source] = value * mask.reshape(shape)
        out = super().run_node(n)
        self.env[source] = value
        return out


def _put(module: fx.GraphModule, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf)
    setattr(owner, leaf, torch.nn.Parameter(value) if old is None or isinstance(old, torch.nn.Parameter) else value)
