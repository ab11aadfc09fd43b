"""The command line: options, exit codes, one-line errors, and no file unless all went well."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

import subprune_fx
from subprune_fx import api
from subprune_fx.cli.main import main
from subprune_fx.cli.options import command
from subprune_fx.cli.sections import SECTIONS, name_of, options_of
from subprune_fx.cli.table import show
from subprune_fx.errors import SubpruneError
from subprune_fx.report import Cost, FileRow, FrozenRow, GroupRow, Report, Stage

SHAPE = (1, 8, 8)
ROOT = Path(subprune_fx.__path__[0]).parent


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 32), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(32, 4)).eval()


class Mixing(nn.Module):
    """Its samples depend on each other, so that its batch cannot be freed."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, entered, with a network and arrays in it."""
    x = np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        y = network()(torch.from_numpy(x)).argmax(1).numpy()
    torch.save(network(), tmp_path / "net.pt")
    torch.export.save(torch.export.export(network(), (torch.from_numpy(x[:1]),)), tmp_path / "net.pt2")
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        return Result(code, *capsys.readouterr())

    return call


class Stub(NamedTuple):
    """As `api.Pruned`."""

    module: fx.GraphModule
    plan: object
    report: Report


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a `prune` that prunes nothing in the place of the real one; the dict gets its arguments."""
    seen: dict[str, Any] = {}

    def prune(model: nn.Module, calibration: Tensor, **options: Any) -> Stub:
        seen.update(options, model=model, calibration=calibration)
        options["progress"]("select", 1, 2)
        report = Report(
            ratio=options["ratio"],
            before=Cost(1000, 2_000_000),
            after=Cost(500, 700_000),
            groups=(GroupRow("conv[0]", 8, 3, float("nan"), ("fc",)),),
            frozen=(FrozenRow("fc", 4, "network output"),),
            agreement=0.987,
            accuracy_before=0.99 if options["evaluation"] else None,
            accuracy_after=0.95 if options["evaluation"] else None,
            seconds=(("select", 0.25),),
            notes=("a note of the compiler",),
        )
        return Stub(fx.symbolic_trace(model), None, report)

    monkeypatch.setattr(api, "prune", prune)
    return seen


# The real thing.


@pytest.mark.parametrize("model", ["net.pt", "net.pt2"])
def test_end_to_end(model: str, run: Callable[..., Result], folder: Path) -> None:
    arguments = (model, "--ratio", "2", "--calib", "x.npz", "--eval", "xy.npz", "--json", "r.json")
    result = run(*arguments, "-o", "a.onnx", "-o", "a.pt2", "-o", "a.pt")
    assert result.code == 0, result.err
    report = json.loads((folder / "r.json").read_text())
    assert report["achieved"] >= 2
    assert [Path(row["path"]).name for row in report["files"]] == ["a.onnx", "a.pt2", "a.pt"]
    assert all(row["bytes"] < row["bytes_before"] for row in report["files"])
    assert report["accuracy_before"] == 1.0  # the labels are the network's own predictions
    assert "wrote a.onnx" in result.out
    # What was written compiles again.
    again = run("a.pt2", "--ratio", "1.2", "--calib", "x.npz", "-o", "b.onnx")
    assert again.code == 0, again.err


def test_end_to_end_without_calibration_warns(run: Callable[..., Result], folder: Path) -> None:
    result = run("net.pt2", "--ratio", "2", "-o", "a.onnx")
    assert result.code == 0, result.err
    assert re.search(r"warning: no --calib: .*made-up inputs.*keep more accuracy", result.err)
    assert (folder / "a.onnx").exists()


class Pair(nn.Module):
    """Tokens, a vector and a number a sample; scores and a number a sample come out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 12)
        self.mix = nn.Linear(4, 12)
        self.kinds = nn.Embedding(3, 12)
        self.hidden = nn.Linear(12, 32)
        self.score = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, vector: Tensor, kind: Tensor) -> dict[str, Tensor]:
        score: Tensor = self.score(self.hidden(self.table(tokens).mean(1) + self.mix(vector) + self.kinds(kind)).relu())
        return {"score": score, "size": score.square().mean(1)}


@pytest.mark.parametrize("model", ["pair.pt", "pair.pt2", "fixed.pt2"])
def test_several_inputs(model: str, run: Callable[..., Result], folder: Path) -> None:
    rng = np.random.default_rng(0)
    tokens, vector = rng.integers(0, 9, (40, 5)), rng.standard_normal((40, 4)).astype(np.float32)
    kind = rng.integers(0, 3, 40)
    network = Pair().eval()
    with torch.no_grad():
        scores = network.forward(torch.from_numpy(tokens), torch.from_numpy(vector), torch.from_numpy(kind))["score"]
    np.savez(folder / "pair.npz", kind=kind, vector=vector, tokens=tokens, y=scores.argmax(1).numpy())
    torch.save(network.state_dict(), folder / "pair.pt")
    given = {"tokens": tokens, "vector": vector, "kind": kind}
    example = {name: torch.from_numpy(array)[:2] for name, array in given.items()}
    shapes = None if model == "fixed.pt2" else {name: {0: torch.export.Dim("n")} for name in example}
    if model != "pair.pt":
        torch.export.save(torch.export.export(network, (), example, dynamic_shapes=shapes), folder / model)
    arch = ("--arch", f"{__file__}:Pair") if model == "pair.pt" else ()
    arguments = (model, *arch, "--ratio", "2", "--calib", "pair.npz", "--eval", "pair.npz", "--json", "r.json")
    result = run(*arguments, "-o", "a.onnx", "-o", "a.pt2", "-o", "a.pt")
    assert result.code == 0, result.err
    report = json.loads((folder / "r.json").read_text())
    assert report["accuracy_before"] == 1.0  # the labels are the network's own predictions
    assert all(row["bytes"] < row["bytes_before"] for row in report["files"])
    again = run("a.pt2", "--ratio", "1.2", "--calib", "pair.npz", "-o", "b.onnx")
    assert again.code == 0, again.err
    if model == "pair.pt":
        stated = [word for shape in ("1,5", "1,4", "1") for word in ("--input-shape", shape)]
        made_up = run(model, *arch, "--ratio", "2", *stated, "-o", "c.onnx")
        assert made_up.code == 0, made_up.err


def test_unreachable_ratio_is_bad_input(run: Callable[..., Result], folder: Path) -> None:
    result = run("net.pt", "--ratio", "1e9", "--calib", "x.npz", "-o", "a.onnx")
    assert result.code == 2
    assert not (folder / "a.onnx").exists()
    assert one_line(result)


# What the command does around it.


def test_options_reach_prune(run: Callable[..., Result], stub: dict[str, Any]) -> None:
    options = ("--variant", "seq", "--budget", "uniform", "--no-reweight", "--no-intercept", "--seed", "7")
    result = run("net.pt", "--ratio", "2.5", "--calib", "xy.npz", "--stochastic", "0.1", *options, "-o", "a.onnx")
    assert result.code == 0, result.err
    given = {key: stub[key] for key in ("ratio", "variant", "budget", "reweight", "intercept", "stochastic", "seed")}
    assert given == {
        "ratio": 2.5, "variant": "seq", "budget": "uniform", "reweight": False, "intercept": False,
        "stochastic": 0.1, "seed": 7,
    }  # fmt: skip
    assert stub["calibration"].shape == (32, *SHAPE)
    assert stub["labels"].shape == (32,)  # the calibration file has y
    assert stub["evaluation"] is None


def test_table(run: Callable[..., Result], stub: dict[str, Any]) -> None:
    del stub
    result = run("net.pt", "--ratio", "2", "--calib", "x.npz", "--eval", "xy.npz", "-o", "a.onnx")
    for text in (
        "conv[0]",
        "1,000",
        "2.00x",
        "2,000,000",
        "98.70 %",
        "99.00 %",
        "95.00 %",
        "file size, .onnx",
        "ms",
    ):
        assert text in result.out
    assert "network output" not in result.out
    assert "\x1b" not in result.out  # no colours where stdout is no terminal
    assert result.err == "subprune-compile: warning: a note of the compiler\n"


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_narrow_terminal_folds_names_and_cuts_no_figure(width: int) -> None:
    name = "backbone.layer3.block.5.attention.self.query_projection"
    report = Report(
        *(
            2.0,
            Cost(123_456_789, 2_000_000_000),
            Cost(61_728_394, 7_000_000),
            (GroupRow(name, 1024, 512, 0.3, ("x",)),),
        ),
        *((FrozenRow("fc", 4, "it is an output of the network"),), 0.98765, 0.99, 0.97),
        files=(FileRow("small.onnx", 1000, 2500, 0.5, 0.9, 1e-6),),
        stages=(Stage("int8", 400, 0.3, None, 0.96, "small-int8.onnx"),),
    )
    for reports in ([report], [report, report]):
        console = Console(width=width, force_terminal=True, no_color=True, file=io.StringIO())
        show(reports, verbose=True, console=console)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        for figure in ("123,456,789", "2,000,000,000", "2.5 kB", "0.900 ms", "98.77 %", "1024", "512"):
            assert figure in text, figure
        assert "…" not in text
        assert name in re.sub(r"\s+|1024|0\.3000|512", "", text)


COLOURED = """
from subprune_fx.cli.progress import Progress
from subprune_fx.cli.table import show
from subprune_fx.report import Cost, FileRow, GroupRow, Report
row = GroupRow("fc", 4, 2, 0.1, ("out",))
with Progress(shown=True) as progress:
    progress("select", 1, 2)
    show([Report(2.0, Cost(10, 20), Cost(5, 9), (row,), (), files=(FileRow("small.onnx", 1, 2),))], verbose=True)
"""


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color(no_color: str | None, coloured: bool) -> None:
    """In a terminal; bold and italics may stay, and an empty variable means nothing (https://no-color.org)."""
    terminal, end = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    environment |= {} if no_color is None else {"NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", COLOURED], stdout=end, stderr=end, env=environment, check=True)
    said = os.read(terminal, 1 << 16).decode()
    os.close(end)
    os.close(terminal)
    assert "small.onnx" in said
    assert bool(re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])[;m]", said)) == coloured


def test_verbose_lists_frozen_channels(run: Callable[..., Result], stub: dict[str, Any]) -> None:
    del stub
    result = run("net.pt", "--ratio", "2", "--calib", "x.npz", "-o", "a.onnx", "-v")
    assert "network output" in result.out
    assert all(f" {stage} " in result.out for stage in ("load", "inputs", "write", "in all"))
    assert "0.25" in result.out


def test_few_inputs_are_worth_a_warning(run: Callable[..., Result], stub: dict[str, Any], folder: Path) -> None:
    del stub
    for count, warned in ((1, True), (31, True), (32, False)):
        np.save(folder / "few.npy", np.zeros((count, *SHAPE), np.float32))
        said = run("net.pt", "--ratio", "2", "--calib", "few.npy", "-o", "a.pt").err
        assert (f"calibrated on {count} input" in said) == warned


def test_quiet_says_nothing(run: Callable[..., Result], stub: dict[str, Any]) -> None:
    del stub
    result = run("net.pt2", "--ratio", "2", "-o", "a.onnx", "-q")
    assert result == (0, "", "")


def test_a_page_is_written_with_the_rest(run: Callable[..., Result], stub: dict[str, Any], folder: Path) -> None:
    del stub
    assert run("net.pt", "--ratio", "2", "--calib", "x.npz", "-o", "a.onnx", "--report", "r.html").code == 0
    text = (folder / "r.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "net.pt" in text
    assert "conv[0]" in text


def test_a_file_of_one_batch_size_is_warned_of(
    run: Callable[..., Result], stub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from subprune_fx.passes import export  # noqa: PLC0415

    capture = export._capture

    def fails(module: nn.Module, example: Tensor, *, dynamic: bool) -> Any:
        if dynamic:
            raise ValueError
        return capture(module, example, dynamic=False)

    monkeypatch.setattr(export, "_capture", fails)
    result = run(*GOOD, "-o", "a.onnx", "-o", "a.pt")
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if "batches" in line]
    assert line.startswith("subprune-compile: warning: a.onnx takes batches of exactly 1: torch.export")


def test_json_has_no_nan(run: Callable[..., Result], stub: dict[str, Any], folder: Path) -> None:
    del stub
    assert run("net.pt", "--ratio", "2", "--calib", "x.npz", "-o", "a.onnx", "--json", "r.json").code == 0
    report = json.loads((folder / "r.json").read_text(), parse_constant=pytest.fail)
    assert report["groups"][0]["error"] is None
    assert report["files"][0]["path"] == "a.onnx"


def test_nothing_that_is_said_holds_data(run: Callable[..., Result], folder: Path) -> None:
    """Neither inputs nor labels nor weights are in tables, tracebacks, JSON or page."""
    found = {**np.load("xy.npz")}
    found["x"][:, 0, 3, 3] += 77031.5
    # Whole numbers only: the digits of a time or an error may hold any four of them.
    secret = re.compile(r"(?<![\d.])(770[23]\d|7\.70[23]\d*e\+?0?4|409[67]\d)(?!\d)")
    shown = (f"{found['x'][0, 0, 3, 3]}", f"{found['x'][0, 0, 3, 3]:e}", f"{found['y'] + 40961}")
    assert all(secret.search(text) for text in shown)
    np.savez("secret.npz", **found)
    np.savez("broken.npz", x=np.where(found["x"] > 77031, np.nan, found["x"]), y=found["y"])
    np.savez("foreign.npz", x=found["x"], y=found["y"] + 40961)
    said = ("--ratio", "2", "--eval", "secret.npz", "-o", "a.pt", "-v", "--json", "r.json", "--report", "r.html")
    results = [run("net.pt", "--calib", f"{name}.npz", *said) for name in ("secret", "broken")]
    results.append(run("net.pt", "--calib", "foreign.npz", *said, "--budget", "accuracy"))
    assert [result.code for result in results] == [0, 2, 2]
    written = [(folder / name).read_text(encoding="utf-8") for name in ("r.json", "r.html")]
    for text in [*written, *(result.out + result.err for result in results)]:
        assert not secret.search(text)


def test_input_shape_gives_synthetic_inputs(run: Callable[..., Result], stub: dict[str, Any]) -> None:
    result = run("net.pt", "--ratio", "2", "--input-shape", "1,1,8,8", "-o", "a.onnx")
    assert result.code == 0
    assert stub["calibration"].shape[1:] == SHAPE
    assert "made-up inputs" in result.err


def test_pareto_writes_a_network_for_each_ratio(run: Callable[..., Result], folder: Path) -> None:
    arguments = ("net.pt", "--pareto", "1.5,2.5", "--calib", "x.npz", "--eval", "xy.npz", "--json", "r.json")
    result = run(*arguments, "-o", "a.onnx", "-o", "a.pt")
    assert result.code == 0, result.err
    tree = json.loads((folder / "r.json").read_text())
    assert [point["ratio"] for point in tree["curve"]] == [1.5, 2.5]
    written = [Path(row["path"]).name for report in tree["reports"] for row in report["files"]]
    assert written == [f"a-{ratio}{suffix}" for ratio in ("1.5", "2.5") for suffix in (".onnx", ".pt")]
    for point, report in zip(tree["curve"], tree["reports"], strict=True):
        assert point["parameters"] * point["ratio"] <= report["before"]["parameters"]
        assert (folder / f"a-{point['ratio']:g}.onnx").stat().st_size == point["bytes"]
        assert point["accuracy"] == report["accuracy_after"]
    assert result.out.count("wrote ") == 4
    assert all(heading in result.out for heading in ("kept, 2.5x", "file size", "latency", "same class", "accuracy"))


def test_max_drop_reports_what_it_measured(run: Callable[..., Result], folder: Path) -> None:
    result = run(
        "net.pt", "--max-drop", "30", "--calib", "x.npz", "--verify", "xy.npz", "-o", "a.onnx", "--json", "r.json"
    )
    assert result.code == 0, result.err
    report = json.loads((folder / "r.json").read_text())
    assert report["drop"] <= 30
    assert {"ratio": report["ratio"], "value": report["drop"]} in report["searched"]
    assert f"{report['drop']:.2f} points" in result.out


def test_layers_and_alignment(run: Callable[..., Result], folder: Path) -> None:
    (folder / "layers.toml").write_text('[channels]\n"4" = 12\n', encoding="utf-8")
    result = run("net.pt", "--layers", "layers.toml", "--calib", "x.npz", "-o", "a.pt", "--json", "r.json")
    assert result.code == 0, result.err
    assert [row["kept"] for row in json.loads((folder / "r.json").read_text())["groups"]] == [8, 12]
    result = run("net.pt", "--ratio", "1.5", "--align", "8", "--calib", "x.npz", "-o", "a.pt", "--json", "r.json")
    assert result.code == 0, result.err
    assert [row["kept"] for row in json.loads((folder / "r.json").read_text())["groups"]] == [8, 16]


# Bad input: arguments -> what is said. The output is always a.onnx unless the arguments name another.

GOOD = ("net.pt", "--calib", "x.npz", "--ratio", "2")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no arguments": ((), "Missing argument 'MODEL'"),
    "no ratio": (("net.pt",), "Missing option '--ratio'"),
    "ratio 1": (("net.pt", "--ratio", "1"), "1 is not a number above 1"),
    "ratio NaN": (("net.pt", "--ratio", "nan"), "nan is not a number above 1"),
    "ratio inf": (("net.pt", "--ratio", "inf"), "inf is not a number above 1"),
    "ratio text": (("net.pt", "--ratio", "much"), "not a valid float"),
    "drop": (("net.pt", "--max-drop", "0"), "0 is not between 0 and 100"),
    "pareto text": (("net.pt", "--pareto", "2,many"), "'2,many' is not a list of ratios"),
    "pareto 1": (("net.pt", "--pareto", "1,2"), "1 is not a number above 1"),
    "pareto twice": (("net.pt", "--pareto", "2,4,2"), "names a ratio twice"),
    "two goals": ((*GOOD, "--pareto", "2,4"), "--ratio and --pareto exclude each other"),
    "three goals": ((*GOOD, "--pareto", "2,4", "--max-drop", "1"), "--ratio and --max-drop and --pareto exclude"),
    "pareto in the way": (("net.pt", "--pareto", "2,4", "-o", "./a.onnx"), "named twice"),
    "report is no page": ((*GOOD, "--report", "r.pdf"), "r.pdf: is no page; end it in .html"),
    "report twice": ((*GOOD, "--report", "r.html", "--json", "r.html"), "named twice"),
    "explain and goals": (
        ("net.pt", "--explain", "--ratio", "2", "--json", "r.json", "--report", "r.html", "--no-feedback"),
        "--explain prunes nothing; leave --ratio and --feedback and --json and --report out",
    ),
    "explain no drawing": (("gone.pt", "--explain", "-o", "a.svg"), "a.onnx: '.onnx' is no drawing; end it in .svg"),
    "plan has decided": (("net.pt", "--plan", "a.plan", "--align", "8"), "--plan has decided already; leave --align"),
    "align 0": ((*GOOD, "--align", "0"), "0 is not in the range"),
    "layers missing": ((*GOOD, "--layers", "gone.toml"), "gone.toml: no such file"),
    "layers no toml": ((*GOOD, "--layers", "x.npz"), "x.npz: is not TOML"),
    "layers output": ((*GOOD, "--layers", "x.onnx", "-o", "x.onnx"), "is an input as well as an output"),
    "unknown option": ((*GOOD, "--fast"), "No such option"),
    "unknown variant": ((*GOOD, "--variant", "best"), "'best' is not one of"),
    "stochastic": ((*GOOD, "--stochastic", "1.5"), "1.5 is not between 0 and 1"),
    "memory without a unit": ((*GOOD, "--memory", "4"), "'4' is less than 1 MiB; write a unit, such as 4GiB"),
    "memory beyond numbers": ((*GOOD, "--memory", "9" * 400), "is not a size such as"),
    "shape": ((*GOOD, "--input-shape", "1,x"), "not a shape"),
    "quiet and verbose": ((*GOOD, "-q", "-v"), "exclude each other"),
    "missing model": (("gone.pt", *GOOD[1:]), "gone.pt: no such file"),
    "missing calibration": (("net.pt", "--calib", "gone.npz", "--ratio", "2"), "gone.npz: no such file"),
    "missing evaluation": ((*GOOD, "--eval", "gone.npz"), "gone.npz: no such file"),
    "evaluation without y": ((*GOOD, "--eval", "x.npz"), "x.npz: has no array 'y'"),
    "suffix": ((*GOOD, "-o", "a.zip"), "a.zip: has the suffix '.zip'.*.onnx, .pt2, .pt"),
    "no folder": ((*GOOD, "-o", "gone/a.onnx"), "gone does not exist"),
    "no folder for json": ((*GOOD, "--json", "gone/r.json"), "gone does not exist"),
    "twice": ((*GOOD, "-o", "./a.onnx"), "named twice"),
    "output is input": ((*GOOD, "-o", "net.pt"), "is an input as well as an output"),
    "no shape": (("net.pt", "--ratio", "2"), "--input-shape"),
    "wrong shape": (("net.pt", "--ratio", "2", "--input-shape", "1,3,8,8"), r"fails on .* shape \(2, 3"),
    "shape of archive": (("net.pt2", "--ratio", "2", "--calib", "wide.npz"), r"network takes \(n, 1, 8, 8\)"),
    "fixed batch": (("mixing.pt2", *GOOD[1:]), "takes batches of exactly 4.*dynamic_shapes"),
    "nothing in archive": (("single.pt2", *GOOD[1:]), "single.pt2: nothing to prune"),
    "two inputs": (("two.pt", *GOOD[1:]), "takes 2 inputs, and there is no array 'input1', 'input2'"),
    "two inputs without": (("two.pt", "--ratio", "2", "--input-shape", "1,2"), r"not known \(input2\).*once for each"),
    "huge shape": (("net.pt", "--ratio", "2", "--input-shape", "1,1,99999999,99999999"), "half of this machine"),
    "three shapes": (("two.pt", "--ratio", "2", *3 * ("--input-shape", "1,2")), "given 3 times.*takes 2 inputs"),
}  # fmt: skip


def one_line(result: Result) -> bool:
    return result.err.startswith("subprune-compile: error: ") and result.err.count("\n") == 1 and result.out == ""


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_2_and_no_file(name: str, run: Callable[..., Result], folder: Path) -> None:
    arguments, says = BAD[name]
    torch.save(nn.Bilinear(2, 2, 2), folder / "two.pt")
    torch.export.save(torch.export.export(Mixing(), (torch.zeros(4, *SHAPE),)), folder / "mixing.pt2")
    single = torch.export.export(nn.Conv2d(SHAPE[0], 2, 1), (torch.zeros(4, *SHAPE),))
    torch.export.save(single, folder / "single.pt2")
    np.savez(folder / "wide.npz", x=np.zeros((4, 1, 9, 9), np.float32))
    before = sorted(folder.iterdir())
    result = run(*arguments, *(("-o", "a.onnx") if arguments else ()))
    assert result.code == 2
    assert one_line(result), result
    assert re.search(says, result.err), result.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("goal", ["--ratio", "--pareto"])
def test_the_size_of_no_network_is_no_target(goal: str, run: Callable[..., Result]) -> None:
    result = run("net.pt", "--calib", "x.npz", goal, "2", "--target", "size", "-o", "w.safetensors", "-o", "a.plan")
    assert result.code == 2
    assert one_line(result), result
    assert "--target size needs an output that holds the network: .onnx, .pt2, .pt;" in result.err


def test_validation_failure_is_exit_1_and_no_file(
    run: Callable[..., Result], folder: Path, stub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del stub
    from subprune_fx.passes import validate  # noqa: PLC0415

    wrong = [np.ones((1, 4), np.float32)]
    monkeypatch.setattr(validate, "onnx_runner", lambda path, threads=0: lambda batch: wrong * len(batch))
    before = sorted(folder.iterdir())
    result = run(*GOOD, "-o", "a.pt", "-o", "a.onnx", "--json", "r.json")
    assert result.code == 1
    assert one_line(result)
    assert "a.onnx: its output" in result.err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["a.onnx", "r.json", "r.html"])
def test_a_full_disk_is_said_of_the_file_that_was_asked_for(
    name: str, run: Callable[..., Result], folder: Path, stub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del stub
    stem, suffix = Path(name).stem, Path(name).suffix
    fsync, write_text = os.fsync, Path.write_text

    def full(path: Path) -> None:
        if path.name.startswith(f".{stem}.") and path.suffix == suffix:
            raise OSError(28, "No space left on device")

    def flush(handle: int) -> None:
        full(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def write(path: Path, *arguments: Any, **options: Any) -> int:
        full(path)
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "write_text", write)
    before = sorted(folder.iterdir())
    result = run(*GOOD, "-o", "a.onnx", "--json", "r.json", "--report", "r.html")
    assert result.code == 2
    assert result.err == f"subprune-compile: error: {name}: cannot be written (No space left on device)\n"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            SubpruneError("nothing to prune", where="net.pt", remedy="train it"),
            2,
            "net.pt: nothing to prune; train it",
        ),
        (ZeroDivisionError("a\nb"), 70, "unexpected ZeroDivisionError: a b; run again with -v"),
        (MemoryError(), 2, "out of memory; give fewer calibration inputs, or --memory 4GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory; give"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device; check space and rights (TMPDIR"),
        (OSError(30, "Read-only file system", "/tmp/a"), 2, "error: /tmp/a: Read-only file system; check space and"),
        (KeyboardInterrupt(), 130, "interrupted, nothing was written"),
        (SubpruneError("named \x1b[31m"), 2, "named ?[31m"),
    ],
)
def test_errors_inside(
    error: BaseException,
    code: int,
    says: str,
    run: Callable[..., Result],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "prune", fail)
    result = run(*GOOD, "-o", "a.onnx")
    assert result.code == code
    assert one_line(result)
    assert says in result.err
    assert not (folder / "a.onnx").exists()
    verbose = run(*GOOD, "-o", "a.onnx", "-v")
    assert "Traceback" in verbose.err
    assert verbose.err.splitlines()[-1].startswith("subprune-compile: error: ")


# As a process of its own.

INTERRUPTED = """
import os, signal, sys
from torch import fx
from subprune_fx import api
from subprune_fx.cli.main import main
from subprune_fx.passes import export
from subprune_fx.report import Cost, Report

class Pruned:
    report, plan = Report(2.0, Cost(2, 2), Cost(2, 2), (), ()), None

def prune(model, calibration, **options):
    Pruned.module = fx.symbolic_trace(model)
    return Pruned

api.prune = prune
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
export.to_onnx = lambda *arguments: os.kill(os.getpid(), signal.{name})
sys.exit(main(["net.pt", "--ratio", "2", "--calib", "x.npz", "-o", "a.onnx"]))
"""


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    start = time.perf_counter()
    result = python("-m", "subprune_fx.cli", "--help")
    assert time.perf_counter() - start < 1.0
    assert result.returncode == 0
    assert "--ratio" in result.stdout
    code = "import sys, subprune_fx.cli.main; print({'torch', 'numpy', 'onnx'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_help_has_every_option_under_one_heading() -> None:
    options = options_of(command, click.Context(command))
    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted(placed) == sorted(map(name_of, options))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_fits_the_terminal(width: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width)}
    arguments = [sys.executable, "-m", "subprune_fx.cli", "-h"]
    shown = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True).stdout
    options = shown[: shown.index("Examples:")]  # which are to be copied, not folded
    assert max(map(len, options.splitlines())) <= max(width, 50)  # click folds nothing narrower than 50


def test_version_and_usage() -> None:
    assert re.match(r"subprune-compile \S", python("-m", "subprune_fx.cli", "--version").stdout)
    assert python("-m", "subprune_fx.cli").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """What the documentation has people source, and what that script asks for when a key is pressed."""
    program = [str(Path(sys.executable).with_name("subprune-compile"))]

    def completing(what: str, **variables: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "_SUBPRUNE_COMPILE_COMPLETE": what, **variables}
        return subprocess.run(program, capture_output=True, text=True, env=environment, check=False).stdout

    def offered(words: str) -> set[str]:
        *_, last = words.split(" ")
        where = last if shell == "fish" else str(words.count(" "))
        return set(re.split(r"[\s,]+", completing(f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=where)))

    assert "_SUBPRUNE_COMPILE_COMPLETE" in completing(f"{shell}_source")
    assert "--target" in offered("subprune-compile net.pt --tar")
    assert {"params", "flops", "size", "latency"} <= offered("subprune-compile net.pt --target ")


def test_imported_under_its_folder_name_it_refuses() -> None:
    result = python("-c", "import cli", cwd=ROOT)
    assert "import subprune_fx.cli, not cli" in result.stderr


@pytest.mark.parametrize("name", [signal.SIGINT.name, signal.SIGTERM.name])
def test_interrupt_leaves_no_file(name: str, folder: Path) -> None:
    """Ctrl-C in the middle of the work: exit 130, one line, and no temporary file."""
    before = sorted(folder.iterdir())
    result = python("-c", INTERRUPTED.replace("{name}", name), cwd=folder)
    assert result.returncode == 130, result.stderr
    assert result.stderr == "subprune-compile: error: interrupted, nothing was written\n"
    assert sorted(folder.iterdir()) == before
