"""What the ONNX exporter takes as it is gives the same file as what it decomposes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from subprune_fx.passes import export
from subprune_fx.passes.export import to_onnx


class Layers(nn.Module):
    """Two convolutions with what the test does between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)
        self.between = between
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.last(self.between(y, self.norm(y.relu())))
        return out


def written_in_turn(x: Tensor, y: Tensor) -> Tensor:
    y += x
    y.relu_()
    return y * x


def read_before_and_after(x: Tensor, y: Tensor) -> Tensor:
    z = y * 2
    y.sub_(x).sigmoid_()
    return y + z


def through_a_view(_x: Tensor, y: Tensor) -> Tensor:
    part = y[:, :1]
    y.mul_(3)
    return y * part


def into_slices(_x: Tensor, y: Tensor) -> Tensor:
    mask = y.new_zeros(6, 6)
    for number, part in enumerate((slice(0, 2), slice(2, -1), slice(-1, None))):
        mask[part, 1:] = number + 1
    y[:, 1:].relu_()
    y[:, 1:, 2:4].mul_(2)
    return y * mask


def into_a_slice_twice(_x: Tensor, y: Tensor) -> Tensor:
    y[:, 1:].mul_(2).add_(1)
    return y


def into_a_slice_that_is_read(_x: Tensor, y: Tensor) -> Tensor:
    part = y[:, 1:]
    part.mul_(2)
    return y * torch.cat([part[:, :1], part], 1)


def into_a_slice_of_what_is_seen(_x: Tensor, y: Tensor) -> Tensor:
    part = y.transpose(2, 3)
    y[:, 1:].relu_()
    return y + part


def value_of_a_slice_written_later(_x: Tensor, y: Tensor) -> Tensor:
    part = y[:, 1:].relu_()
    y[:, 1:].mul_(2)
    return y * torch.cat([part, part], 1)[:, :4]


def into_what_has_been_cut(_x: Tensor, y: Tensor) -> Tensor:
    first, _ = y.chunk(2, 1)
    y.mul_(3)
    return y * torch.cat([first, first], 1)


def added_to_a_slice(x: Tensor, y: Tensor) -> Tensor:
    y[:, 1:, 2:4] += x[:, 1:, :2]
    y[:, :2] *= x[:, 1:3]
    return y


def put_into_places(x: Tensor, y: Tensor) -> Tensor:
    y[:, 1] = x[:, 0]
    y[:, 2:, 0] = x[:, 1:3, 1]
    return y


def put_once_for_several(x: Tensor, y: Tensor) -> Tensor:
    y[:, 1:] = x[:, :1]
    return y


def put_and_read(x: Tensor, y: Tensor) -> Tensor:
    part = y[:, 1:].add_(x[:, 1:])
    y[:, :1] = part[:, :1]
    y[:, 1:] = part[:, :1]
    return y * torch.cat([part, part], 1)[:, :4]


def through_dropout(_x: Tensor, y: Tensor) -> Tensor:
    nn.functional.dropout(y, training=False).add_(1)
    return y


def of_a_wider_type(x: Tensor, y: Tensor) -> Tensor:
    return y.add_(x.double())


def dropped_in_place(_x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.dropout(y, training=False, inplace=True)


def pooled(_x: Tensor, y: Tensor) -> Tensor:
    return y * nn.functional.adaptive_avg_pool2d(y, 1)


def pooled_to_more(_x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(y, (2, 3))


def swapped(_x: Tensor, y: Tensor) -> Tensor:
    return y.swapaxes(2, 3)


def split_at_places(_x: Tensor, y: Tensor) -> Tensor:
    first, _, last = torch.tensor_split(y, (1, 3), dim=1)
    return y * torch.cat([last, first, first, last], 1) * torch.tensor_split(y[:2], (2,))[0]


def cast(x: Tensor, y: Tensor) -> Tensor:
    return y * (x > 0).to(torch.int64).float() * y.to(torch.float32)


TAKEN = (
    written_in_turn,
    read_before_and_after,
    into_slices,
    added_to_a_slice,
    put_into_places,
    put_once_for_several,
    dropped_in_place,
    pooled,
    swapped,
    split_at_places,
    cast,
)
DECOMPOSED = (
    through_a_view,
    into_a_slice_twice,
    into_a_slice_that_is_read,
    into_a_slice_of_what_is_seen,
    value_of_a_slice_written_later,
    into_what_has_been_cut,
    put_and_read,
    through_dropout,
    of_a_wider_type,
    pooled_to_more,
)


@pytest.mark.parametrize("between", [*TAKEN, *DECOMPOSED], ids=lambda between: between.__name__)
def test_same_file(
    between: Callable[[Tensor, Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = Layers(between).eval(), torch.randn(2, 3, 8, 8)
    decomposed = []
    usual = ExportedProgram.run_decompositions

    def noted(program: ExportedProgram, *args: object, **options: object) -> ExportedProgram:
        decomposed.append(program)
        found: ExportedProgram = usual(program, *args, **options)
        return found

    monkeypatch.setattr(ExportedProgram, "run_decompositions", noted)
    to_onnx(model, x, tmp_path / "a.onnx")
    assert bool(decomposed) == (between in DECOMPOSED)
    monkeypatch.setattr(export, "ready", lambda program: program)
    to_onnx(model, x, tmp_path / "b.onnx")
    with torch.no_grad():
        expected = model(x)
    kinds = []
    for name in ("a.onnx", "b.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32 over 27 products
        kinds.append(sorted(node.op_type for node in onnx.load(tmp_path / name).graph.node))
    if between is added_to_a_slice:  # decomposed, what is written is put there twice
        assert len(kinds[0]) < len(kinds[1])
    else:
        assert kinds[0] == kinds[1]


def test_program_stays_as_it_was(tmp_path: Path) -> None:
    model, x = Layers(written_in_turn).eval(), torch.randn(2, 3, 8, 8)
    program, _ = export.export(model, x)
    before = str(program.graph)
    to_onnx(program, x, tmp_path / "a.onnx")
    assert str(program.graph) == before


def test_operator_that_is_not_known_is_decomposed_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exchange the exporter finds no function for `swapaxes`, and is called again."""
    from subprune_fx.passes import export_ready  # noqa: PLC0415 - its table

    monkeypatch.delitem(export_ready.EXCHANGES, torch.ops.aten.swapaxes.default)
    model, x = Layers(swapped).eval(), torch.randn(2, 3, 8, 8)
    to_onnx(model, x, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x), rtol=1e-5, atol=1e-5)
