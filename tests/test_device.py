"""A network on another device is pruned there: on a GPU where there is one, and on a stand-in that refuses to mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import subprune_fx
from subprune_fx.selectors import SELECTORS

FAR = torch.device("meta")


class Far(Tensor):
    """A tensor that says it is on a GPU and computes on the CPU; with CPU tensors beside it, it does not."""

    held: Tensor

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        found = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=FAR
        )
        found.held = inner.held if isinstance(inner, Far) else inner.detach()
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [leaf for leaf in leaves if not isinstance(leaf, Far) and leaf.ndim]
        name = func.overloadpacket.__name__
        if here and name not in ("copy_", "index", "index_put_"):  # which PyTorch allows
            message = f"{name} mixes devices"
            raise RuntimeError(message)
        far = torch.device(kwargs.get("device") or FAR).type == FAR.type
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = pytree.tree_map_only(Far, lambda leaf: leaf.held, (args, kwargs))
        found = func(*args, **kwargs)
        if name.endswith("_") and isinstance(leaves[0], Tensor):
            return leaves[0]
        return pytree.tree_map_only(Tensor, Far, found) if far else found


class Driver(TorchFunctionMode):
    """Moves tensors to the stand-in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        told = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor | torch.device)]
        goes = any((value.device if isinstance(value, Tensor) else value).type == FAR.type for value in told)
        if func is Tensor.to and goes and not isinstance(args[0], Far):
            kind = next((value.dtype for value in told if isinstance(value, Tensor)), None) or kwargs.get("dtype")
            return Far(args[0] if kind is None else args[0].to(kind))
        if (
            kwargs.get("device") is not None
            and torch.device(kwargs["device"]).type == FAR.type
            and func is not Tensor.to
        ):
            return Far(func(*args, **{**kwargs, "device": torch.device("cpu")}))
        return func(*args, **kwargs)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def moved(module: nn.Module) -> nn.Module:
    """The same network on the stand-in."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            part._parameters[name] = nn.Parameter(Far(value.detach()), requires_grad=False)
        for name, buffer in list(part.named_buffers(recurse=False)):
            part._buffers[name] = Far(buffer)
    return module


def test_the_stand_in_refuses_to_mix() -> None:
    with pytest.raises(RuntimeError, match="mixes devices"):
        Far(torch.ones(2)) + torch.ones(2)
    assert Far(torch.ones(2)).cpu().tolist() == [1, 1]


@pytest.mark.parametrize("variant", ["asym", "seq", "layer"])
def test_a_network_elsewhere_is_pruned_as_one_here(variant: str) -> None:
    x = torch.randn(64, 3, 8, 8)
    here = subprune_fx.prune(network(), x, ratio=2, variant=variant)
    with Driver():
        there = subprune_fx.prune(moved(network()), x, ratio=2, variant=variant)
    assert there.plan.decisions == here.plan.decisions
    assert {value.device.type for value in there.module.parameters()} == {FAR.type}
    assert {value.device.type for value in there.plan.values.values()} == {"cpu"}
    for name, value in here.plan.values.items():
        torch.testing.assert_close(there.plan.values[name], value)


@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_works_elsewhere(select: str) -> None:
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 4
    options: dict[str, Any] = {"ratio": 2, "select": select, "budget": "accuracy", "labels": y, "training": (x, y)}
    here = subprune_fx.prune(network(), x, **options)
    with Driver():
        there = subprune_fx.prune(moved(network()), x, **options | {"labels": Far(y), "evaluation": (x, Far(y))})
    assert [d.kept for d in there.plan.decisions] == [d.kept for d in here.plan.decisions]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    x = torch.randn(64, 3, 8, 8)
    here, there = (subprune_fx.prune(module, x, ratio=2) for module in (network(), network().cuda()))
    assert [d.kept for d in there.plan.decisions] == [d.kept for d in here.plan.decisions]
    torch.testing.assert_close(there.module(x.cuda()).cpu(), here.module(x), rtol=1e-3, atol=1e-4)
