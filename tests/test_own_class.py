"""Plans of graphs that torch.export gave, applied to the user's own class: its layers hold the sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone calls it F
from torch import Tensor, fx, nn

from subprune_fx import Plan, SubpruneError, apply, prune

DIM, HEAD, LENGTH = 16, 4, 6


class Block(nn.Module):
    """Attention and an MLP; how many heads there are follows from the width."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(DIM), nn.RMSNorm(DIM)
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(DIM, DIM), nn.Linear(DIM, 24), nn.Linear(24, DIM)

    def forward(self, x: Tensor) -> Tensor:
        read = self.before(x)
        parts = (layer(read).unflatten(2, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        hidden: Tensor = self.up(self.between(x))
        return x + self.down(F.gelu(hidden))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Its forward asks for the length, which a symbolic trace does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(3, DIM), nn.Conv1d(DIM, DIM, 3, padding=1, groups=DIM)
        self.blocks, self.norm = nn.ModuleList([Block(), Block()]), nn.GroupNorm(4, DIM)
        self.head = nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > LENGTH:
            x = x[:, :LENGTH]
        x = self.mix(self.embed(x).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.transpose(1, 2)).mean(2))  # type: ignore[no-any-return]


class Spelled(nn.Module):
    """A size of its layer that its forward writes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, DIM), nn.PReLU(DIM), nn.Linear(DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.layer_norm(self.first(x), (DIM,), self.norm.weight))  # type: ignore[no-any-return]


def random(model: nn.Module) -> nn.Module:
    """Scales and shifts other than one and zero, which look the same whatever channel they are taken from."""
    for name, value in model.named_parameters():
        if value.ndim == 1:
            nn.init.uniform_(value, *((0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)))
    return model.eval()


def test_exported_transformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = random(Transformer()), torch.randn(32, LENGTH, 3)
    with pytest.raises(Exception, match="symbolically traced"):
        fx.symbolic_trace(model)
    pruned = prune(model, x, keep=0.5)
    assert {constant.attribute[1] for constant in pruned.plan.constants} == {
        *("groups", "normalized_shape", "num_groups"),
    }
    pruned.plan.save(tmp_path / "plan")
    own = apply(Plan.load(tmp_path / "plan"), model)
    assert isinstance(own, Transformer)
    assert own.blocks[0].before.normalized_shape == (DIM // 2,)  # type: ignore[union-attr]
    assert (own.norm.num_groups, own.norm.num_channels, own.mix.groups) == (2, DIM // 2, DIM // 2)
    assert model.norm.num_groups == 4  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(own(x), pruned.module(x))
    fresh = apply(pruned.plan, Transformer())
    fresh.load_state_dict(own.state_dict())


def test_a_size_that_no_layer_holds_is_a_reason() -> None:
    torch.manual_seed(0)
    model = random(Spelled())
    pruned = prune(model, torch.randn(32, 3), keep=0.5)
    with pytest.raises(SubpruneError, match=r"changes 1 sizes written in the code of its forward \(layer_norm\)"):
        apply(pruned.plan, model)


class Waves(nn.Module):
    """Computes in its forward what its channels are multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, DIM), nn.Linear(DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > LENGTH:
            x = x[:, :LENGTH]
        hidden = self.first(x).relu() * torch.arange(DIM).div(DIM).cos()
        return self.last(hidden)  # type: ignore[no-any-return]


def test_numbers_that_a_forward_computes_are_not_the_class_s_own() -> None:
    torch.manual_seed(0)
    model = Waves().eval()
    pruned = prune(model, torch.randn(64, LENGTH, 3), keep=0.5)
    assert pruned.module.get_parameter("first.weight").shape[0] == DIM // 2
    with pytest.raises(SubpruneError, match="its forward computes it from others: apply the plan to the traced graph"):
        apply(pruned.plan, model)


class Unread(nn.Module):
    """Its forward asserts sizes, and calls a layer whose output nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unread, self.last = nn.Linear(3, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] * 2 == 6, "three numbers")
        hidden = self.first(x).relu()
        self.unread(hidden)
        out: Tensor = self.last(hidden)
        return out


def test_a_layer_that_nobody_reads_is_cut_along() -> None:
    torch.manual_seed(0)
    model, x = random(Unread()), torch.randn(32, 3)
    small, plan, _ = prune(model, x, keep=0.5)
    own = apply(plan, model)
    torch.testing.assert_close(own(x), small(x))
    assert own.get_parameter("unread.weight").shape == (DIM, DIM // 2)
    assert not [node for node in small.graph.nodes if node.target in (torch._assert, "size")]
