"""Validation catches files that disagree with the network, and passes those that merely round differently."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from subprune_fx.bundle import Bundle, Inputs
from subprune_fx.errors import SubpruneError, ValidationError
from subprune_fx.passes import differences, export, timing, validate
from subprune_fx.passes.timing import latencies_ms


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    return fx.symbolic_trace(nn.Sequential(*layers).eval())


def inputs(n: int = 40) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class OneSample(nn.Module):
    """A network that only takes a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.view(1, 12))
        return out


class Two(nn.Module):
    """A network with two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x.mean((2, 3))


def test_onnx_agrees_and_takes_any_batch(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export.to_onnx(network(), inputs(1), path)
    # Float32 rounding of a network this shallow is near 1e-7; a wiring fault would be near 1.
    assert validate.validate_onnx(path, network(), inputs()) < 1e-5
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    assert [output.name for output in session.get_outputs()] == ["output"]
    for n in (1, 2, 7):
        assert session.run(None, {session.get_inputs()[0].name: inputs(n).numpy()})[0].shape == (n, 5)


def test_onnx_has_folded_batchnorm_and_names_no_files_of_the_author(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export.to_onnx(network(), inputs(1), path)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    assert b".py" not in path.read_bytes()


def test_export_is_quiet_and_deterministic(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.onnx", "b.onnx"):
        export.to_onnx(network(), inputs(1), tmp_path / name)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_network_with_a_fixed_batch(tmp_path: Path) -> None:
    net = OneSample().eval()
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    program, dynamic = export.export(net, x[:1])
    assert not dynamic
    export.to_onnx(program, x[:1], tmp_path / "net.onnx")
    assert validate.validate_onnx(tmp_path / "net.onnx", net, x, fixed_batch=1) < 1e-5


def test_several_outputs(tmp_path: Path) -> None:
    export.to_onnx(Two().eval(), inputs(1), tmp_path / "net.onnx")
    assert [output.name for output in onnx.load(tmp_path / "net.onnx").graph.output] == [
        "output_0",
        "output_1",
    ]
    assert validate.validate_onnx(tmp_path / "net.onnx", Two(), inputs()) < 1e-5


def test_network_that_cannot_be_captured() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SubpruneError, match=r"torch\.export cannot capture") as caught:
        export.export(Branch(), inputs(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [1e-3, 1e-2, 1.0])
def test_a_changed_weight_fails(fault: float, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export.to_onnx(network(), inputs(1), path)
    other = network()
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if name.endswith("5.bias"))[0] += fault
    with pytest.raises(ValidationError, match="differs from torch's by") as caught:
        validate.validate_onnx(path, other, inputs())
    assert caught.value.exit_code == 1


def test_nan_and_wrong_shapes_fail() -> None:
    def nan(batch: Any) -> Sequence[npt.NDArray[Any]]:
        return [np.full((len(batch), 5), np.nan, np.float32)]

    def short(batch: Any) -> Sequence[npt.NDArray[Any]]:
        return [np.zeros((1, 5), np.float32)]

    def broken(batch: Any) -> Sequence[npt.NDArray[Any]]:
        raise RuntimeError("no such axis\nand more")

    for run, says in ((nan, "differs"), (short, "shapes"), (broken, r"fails on a batch of 1 .no such axis.")):
        with pytest.raises(ValidationError, match=says):
            validate.validate(run, network(), inputs(), where="net.onnx")


def test_network_whose_output_is_nan_fails() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    with pytest.raises(ValidationError, match="is NaN"):
        validate.validate(validate.torch_runner(Log()), Log(), inputs(), where="net.onnx")


def test_infinities_have_to_be_where_they_are_in_torch() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x < 0, -torch.inf)

    def moved(batch: Inputs) -> Any:
        (found,) = validate.torch_runner(Masked())(batch)
        found.flat[0] = 0.5 if np.isinf(found.flat[0]) else -np.inf
        return [found]

    assert validate.validate(validate.torch_runner(Masked()), Masked(), inputs(), where="net.onnx") == 0
    with pytest.raises(ValidationError, match="differs from torch's by inf"):
        validate.validate(moved, Masked(), inputs(), where="net.onnx")


def test_specialised_batch_fails(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    program = torch.export.export(network(), (inputs(1),))
    export.to_onnx(program, inputs(1), path)
    with pytest.raises(ValidationError, match="batch of 3"):
        validate.validate_onnx(path, network(), inputs())


def test_garbage_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"garbage")
    with pytest.raises(ValidationError, match="onnxruntime cannot load"):
        validate.validate_onnx(tmp_path / "net.onnx", network(), inputs())
    with pytest.raises(SubpruneError, match="is not valid ONNX"):
        export.check_onnx(tmp_path / "net.onnx")


class Cancelling(nn.Module):
    """Loses 12 of float32's 24 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 4096.0) - 4096.0


class Both(nn.Module):
    """The same, beside an output that loses none; of two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x + 4096.0) - 4096.0, y.relu()


def test_tolerance_follows_the_rounding_of_the_network() -> None:
    assert differences.tolerances_of(network(), inputs(4)) == [differences.FLOOR]
    (found,) = differences.tolerances_of(Cancelling(), inputs(4))
    assert differences.FLOOR < found <= differences.CEILING


def single(x: Tensor) -> Tensor:
    """Nothing, but not in float64, as operators of ONNX."""
    if x.dtype is torch.float64:
        raise NotImplementedError
    return x


fx.wrap("single")


class Single(nn.Module):
    """As `Cancelling`, of inputs by name."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return single(x + 4096.0) - 4096.0 + 0 * y


def test_tolerance_without_float64_follows_other_roundings() -> None:
    graph = fx.symbolic_trace(Single())
    for given in (Bundle((inputs(4), inputs(4))), Bundle((inputs(4), inputs(4)), ("x", "y"))):
        (found,) = differences.tolerances_of(graph, given)
        assert differences.FLOOR < found <= differences.CEILING
    assert differences.tolerances_of(Single(), given) == []


@pytest.mark.parametrize("names", [None, ("x", "y")])
def test_each_output_of_several_inputs_has_its_own_tolerance(names: tuple[str, str] | None) -> None:
    found = differences.tolerances_of(Both(), Bundle((inputs(4), inputs(4)), names))
    assert differences.FLOOR < found[0] <= differences.CEILING
    assert found[1] == differences.FLOOR


class Detector(nn.Module):
    """Boxes, scores and classes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.flatten(1)
        return 640 * flat[:, :4].sigmoid(), flat[:, 4:14].sigmoid(), flat[:, 14:94].argmax(1)


@pytest.mark.parametrize(
    ("place", "says"),
    [(0, "its output 0 differs from torch's by 0.1"), (1, "its output 1 differs from torch's by 0.01"),
     (2, "its output 2 differs from torch's in 1 of its numbers, allowed are 0.0001")],
)  # fmt: skip
def test_every_output_is_checked(place: int, says: str) -> None:
    """Scores are wrong by far less than what boxes may differ, classes by less than their number."""

    def run(batch: Any) -> Sequence[npt.NDArray[Any]]:
        found = [value.numpy() for value in Detector()(batch)]
        found[place] = found[place] + (0.1, 0.01, 1)[place]
        return found

    with pytest.raises(ValidationError, match=says):
        validate.validate(run, Detector(), inputs(), where="net.onnx")


def test_where_large_values_cancel_their_rounding_is_allowed() -> None:
    """An output of zeros, but for float32 rounding of values as large as another output's."""

    class Zeros(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x - x

    def run(batch: Any) -> Sequence[npt.NDArray[Any]]:
        return [batch.numpy(), np.spacing(batch.numpy())]

    assert validate.validate(run, Zeros(), inputs(), where="net.onnx") < 1e-6  # a rounding of values below 5


class Rare(nn.Module):
    """Probabilities near 0."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return (0.1 * x.mean((2, 3)) - 8 + self.shift).sigmoid()


def off(amount: float) -> validate.Run:
    """A runtime that rounds sigmoids as onnxruntime does: by so much of 1."""
    return lambda x: [np.float32(amount) + validate.torch_runner(Rare())(x)[0]]


def test_small_probabilities_are_rounded_as_parts_of_one() -> None:
    assert validate.validate(off(2.4e-7), Rare(), inputs(), where="net.onnx") > 1e-4 * float(Rare()(inputs()).max())


@pytest.mark.parametrize("run", [off(1e-6), validate.torch_runner(Rare(1e-2))], ids=["rounded more", "another network"])
def test_small_probabilities_of_another_network_are_refused(run: validate.Run) -> None:
    with pytest.raises(ValidationError, match="differs from torch's"):
        validate.validate(run, Rare(), inputs(), where="net.onnx")


def test_what_should_be_zero_is_refused() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.mean((2, 3))

    with pytest.raises(ValidationError, match="differs from torch's"):
        validate.validate(lambda x: [Zero()(x).numpy() + np.float32(1e-3)], Zero(), inputs(), where="net.onnx")


def test_small_numbers_of_either_sign_are_no_probabilities() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e-4 * x.mean((2, 3))

    with pytest.raises(ValidationError, match="differs from torch's"):
        validate.validate(lambda x: [Small()(x).numpy() + np.float32(2.4e-7)], Small(), inputs(), where="net.onnx")


def test_network_is_run_in_float64_only_where_that_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []

    def noted(net: nn.Module, _: Inputs) -> list[float]:
        asked.append(net)
        return [differences.CEILING]

    monkeypatch.setattr(validate, "tolerances_of", noted)
    net = network()

    def off(share: float) -> validate.Run:
        return lambda x: [(1 + share) * validate.torch_runner(net)(x)[0]]

    for share, runs in ((0.5 * differences.FLOOR, 0), (5 * differences.FLOOR, 1)):
        validate.validate(off(share), net, inputs(), where="x")
        assert len(asked) == runs


def test_every_batch_size_is_tried() -> None:
    seen: list[int] = []

    def run(batch: Any) -> Sequence[npt.NDArray[Any]]:
        seen.append(len(batch))
        return [net(batch).detach().numpy()]

    net = network()
    validate.validate(run, net, inputs(200), where="x")
    assert tuple(seen) == validate.BATCH_SIZES
    assert 1 in seen
    assert any(n % 2 and n > 1 for n in seen)


def test_latency_is_quick_and_positive(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export.to_onnx(network(), inputs(1), path)
    assert 0 < latencies_ms([path], inputs(1), seconds=0.05)[0] < 1000


@pytest.mark.parametrize(("long", "calls"), [(0.0, 1 + timing.ROUNDS_OF_LONG), (60.0, timing.WARM_UP + timing.ROUNDS)])
def test_calls_that_take_long_are_few(long: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def runner(path: str, threads: int) -> Callable[[object], None]:
        def run(_: object) -> None:
            made.append(path)
            time.sleep(timing.STRETCH)  # once is enough for the clock

        return run

    monkeypatch.setattr(timing, "onnx_runner", runner)
    monkeypatch.setattr(timing, "LONG", long)
    latencies_ms(["a", "b"], inputs(1), seconds=0.0)
    assert Counter(made) == {"a": calls, "b": calls}
