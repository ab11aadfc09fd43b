"""Every contraction is its design matrix times its weight matrix, whatever its geometry."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from subprune_fx.frontends.describe import describe
from subprune_fx.numerics import collect, dense, grams, shifts
from subprune_fx.numerics.collect import Collector
from subprune_fx.numerics.conv_reader import ConvReader, same_padding
from subprune_fx.numerics.moments import Moments
from subprune_fx.numerics.readers import LinearReader, Reader
from subprune_fx.numerics.targets import Targets
from subprune_fx.numerics.thinned_reader import ThinnedReader, positions

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def reader_of(layer: nn.Module, x: Tensor) -> Reader:
    """The reader that the front end makes for a layer."""
    network = describe(fx.symbolic_trace(nn.Sequential(layer)), x)
    (found,) = network.readers.values()
    return found


def check(layer: nn.Module, x: Tensor) -> None:
    """columns' matrix == the layer's output less its bias, and the weight survives the round trip."""
    reader, weight = reader_of(layer, x), layer.get_parameter("weight").detach()
    bias = dict(layer.named_parameters())["bias"].detach()
    with torch.no_grad():
        y = layer(x)
    shape = [-1 if d == (y.ndim - 1 if isinstance(layer, nn.Linear) else 1) else 1 for d in range(y.ndim)]
    matrix = reader.matrix(weight)
    columns, targets = reader.columns(x), reader.targets(y - bias.reshape(shape))
    assert matrix.shape[:2] == columns.shape[:2]
    assert (columns.shape[1] * reader.groups) % reader.taps == 0
    torch.testing.assert_close(columns.transpose(1, 2) @ matrix, targets.transpose(1, 2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reader.output(x, matrix), y - bias.reshape(shape), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(reader.cross(x, y), columns @ reader.targets(y).mT, rtol=1e-10, atol=1e-10)
    check_moments(reader, x)
    if isinstance(reader, ConvReader):
        check_thinned(reader, x, matrix)
    again = reader.weight(matrix, weight)
    assert again.is_contiguous()
    assert torch.equal(again, weight)


def check_thinned(reader: ConvReader, x: Tensor, matrix: Tensor) -> None:
    """At some positions only, a convolution reads and gives what it does there."""
    whole, columns = reader.output(x, matrix), reader.columns(x)
    for share in (0.1, 0.5, 1):
        thin = ThinnedReader(reader, share)
        at = positions(tuple(whole.shape[2:]), share)
        assert torch.equal(thin.read(whole), whole.flatten(2)[:, :, at])
        torch.testing.assert_close(thin.output(x, matrix), thin.read(whole), rtol=1e-10, atol=1e-10)
        rows = torch.arange(columns.shape[2]).reshape(len(x), -1)[:, at].flatten()
        assert torch.equal(thin.columns(x), columns[:, :, rows])
        check_moments(thin, x)


def check_moments(reader: Reader, x: Tensor) -> None:
    """The Gram matrix that the design matrix gives, in each way that there is; rows and sums likewise."""
    columns = reader.columns(x)
    expected = columns @ columns.mT
    plain, convolution = reader.plain(x)
    if convolution is not None:
        assert torch.equal(convolution.columns(plain), columns)
    if convolution is not None and isinstance(reader, ConvReader) and reader.taps <= 9:  # larger: seconds in 3-D
        for way in (shifts.Shifts, dense.Dense):
            known = way(convolution.geometry(plain))
            known.add(plain[:1])
            known.add(plain[1:])
            total = known.total()
            torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
            assert torch.equal(total, total.mT)
    y = torch.randn_like(reader.output(x, columns.new_ones(*columns.shape[:2], 2))) + 3
    batches = [(x, y), (x + 5, 2 * y)]
    collector, wanted = Collector(reader), Moments.zeros(columns.shape[0], columns.shape[1], 2)
    for inputs, outputs in batches:
        collector.add(inputs)
        wanted.add(reader.columns(inputs), reader.targets(outputs))
    targets = Targets(collector.moments().untargeted(2), reader)
    for inputs, outputs in batches:
        targets.add(inputs, outputs)
    found = targets.moments()
    for field in dataclasses.fields(Moments):
        torch.testing.assert_close(getattr(found, field.name), getattr(wanted, field.name), rtol=1e-9, atol=1e-9)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a convolution of `rank` spatial dimensions is made with, and the size of its input."""

    rank: int
    groups: int
    inputs: int
    outputs: int
    size: tuple[int, ...]
    options: dict[str, Any]


@st.composite
def geometries(draw: st.DrawFn, *, transposed: bool) -> Geometry:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    groups = draw(st.sampled_from([1, 2, 3]))
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    if transposed:
        options["padding"] = each(0, 2)
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if set(stride) == {1} and draw(st.booleans()):
            options["padding"] = draw(st.sampled_from(["same", "valid"]))
        else:
            options["padding"] = each(0, 2)
    return Geometry(
        rank, groups, groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), each(4, 7), options
    )


def build(kinds: dict[int, Any], case: Geometry) -> tuple[nn.Module, Tensor]:
    layer = kinds[case.rank](case.inputs, case.outputs, groups=case.groups, **case.options).double()
    x = torch.randn(2, case.inputs, *case.size, dtype=torch.float64)
    try:
        with torch.no_grad():
            layer(x)
    except RuntimeError:  # the kernel is larger than the input, or the output would be empty
        assume(False)
    return layer, x


@given(geometries(transposed=False))
@examples(max_examples=150)
def test_convolutions(case: Geometry) -> None:
    assume(case.groups < case.inputs or case.groups == 1)  # depthwise: no channel is read by another
    check(*build(CONVOLUTIONS, case))


@given(geometries(transposed=True))
@examples(max_examples=150)
def test_transposed_convolutions(case: Geometry) -> None:
    assume(case.groups < case.inputs or case.groups == 1)  # as above
    check(*build(TRANSPOSED, case))


@given(lead=st.lists(st.integers(1, 3), min_size=1, max_size=3), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)))
@examples(max_examples=30)
def test_linear_of_any_rank(lead: list[int], sizes: tuple[int, int]) -> None:
    check(nn.Linear(*sizes).double(), torch.randn(*lead, sizes[0], dtype=torch.float64))


def test_linear_with_a_transposed_weight() -> None:
    reader, x, weight = LinearReader(transposed=True), torch.randn(2, 3, 4), torch.randn(4, 5)
    product = reader.columns(x).transpose(1, 2) @ reader.matrix(weight)
    torch.testing.assert_close(product, reader.targets(x @ weight).transpose(1, 2))
    assert torch.equal(reader.weight(reader.matrix(weight), weight), weight)


def test_fewer_columns_give_a_narrower_weight() -> None:
    """After pruning, matrices are smaller than the weight they are written like; only the kernel is taken from it."""
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        layer = kind(6, 4, (2, 3), groups=2).double()
        x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
        reader, weight = reader_of(layer, x), layer.weight.detach()
        matrix = reader.matrix(weight)[:, : 2 * reader.taps]
        narrow = kind(4, 4, (2, 3), groups=2, bias=False).double()
        narrow.weight.data = reader.weight(matrix, weight)
        kept = torch.tensor([0, 1, 3, 4])
        product = reader.columns(x[:, kept]).transpose(1, 2) @ matrix
        y = reader.targets(narrow(x[:, kept])).transpose(1, 2)
        torch.testing.assert_close(product, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", range(1, 6))
def test_same_padding_keeps_the_size(kernel: int) -> None:
    for dilation in (1, 2, 3):
        ((before, after),) = same_padding((kernel,), (dilation,))
        assert before + after == dilation * (kernel - 1)
        assert after - before in (0, 1)


def test_collecting_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The design matrix is built for as many samples as fit; the sums do not depend on how many."""
    reader = ConvReader((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=2)
    x, y = torch.randn(7, 4, 5, 5, dtype=torch.float64), torch.randn(7, 6, 5, 5, dtype=torch.float64)
    sums = []
    for limit in (1, 2000, 1 << 24):
        for module in (collect, grams, shifts):
            monkeypatch.setattr(module, "ROWS_AT_ONCE", limit)
        monkeypatch.setattr(grams, "ELEMENTS_AT_ONCE", limit)
        collector = Collector(reader)
        collector.add(x)
        targets = Targets(collector.moments().untargeted(3), reader)
        targets.add(x, y)
        sums.append(targets.moments())
    for other in sums[1:]:
        for field in dataclasses.fields(Moments):
            torch.testing.assert_close(getattr(other, field.name), getattr(sums[0], field.name))


@pytest.mark.parametrize("groups", [1, 2])
def test_what_varies_little_about_a_large_mean_is_not_lost(groups: int) -> None:
    """Squares of what is near 4,096 do not fit into float32, yet the centred moments are those of the deviations."""
    reader = ConvReader((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), groups=groups)
    near = torch.randn(20, 4, 6, 6), torch.randn(20, 2, 4, 4)
    far = tuple((part + 2**12).float() for part in near)
    exact = tuple(part.double() - 2**12 for part in far)
    found = []
    for x, y in (far, exact):
        collector = Collector(reader)
        collector.add(x)
        targets = Targets(collector.moments().untargeted(2 // groups), reader)
        targets.add(x, y)
        found.append(targets.moments().centred())
    for name in ("gram", "cross", "energy"):
        size = float(getattr(found[1], name).abs().max())
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=0, atol=3e-5 * size)
