"""The report as a page: complete, closed in itself, and as a real browser shows it on a phone."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subprune_fx.formats.charts import HEIGHT, WIDTH, chart, spark
from subprune_fx.formats.page import page
from subprune_fx.report import Cost, FileRow, FrozenRow, GroupRow, Report, Stage, Step

NAMES = ("conv1", "a." * 60 + "long", "<script>alert(1)</script>", "x&y\"'", "w" * 200)
VOID = {"meta", "br", "img", "input", "link", "hr"}


def report(ratio: float = 2.0, names: tuple[str, ...] = NAMES) -> Report:
    curve = tuple((k, 1.0 - k / 16) for k in range(17))
    rows = [GroupRow(name, 16, 5, float("nan") if i % 2 else 0.3, (f"reads {name}",), (name,), (f"{name}.bias",), curve)
            for i, name in enumerate(names)]  # fmt: skip
    rows.append(GroupRow("no curve", 8, 8, 0.0, ("fc",)))
    return Report(
        ratio=ratio,
        before=Cost(1_000_000, 2_000_000_000),
        after=Cost(round(1_000_000 / ratio), 700_000),
        groups=tuple(rows),
        frozen=tuple(FrozenRow(name, 4, f"because {name} is met by an op that is not known, " * 3) for name in names),
        agreement=0.99 - ratio / 100,
        accuracy_before=0.99,
        accuracy_after=0.97,
        settings=(("select", "inchange"), ("budget", "output")),
        seconds=(("select", 0.25),),
        notes=(f"a note about {NAMES[1]}",),
        files=(
            FileRow(f"{'deep/' * 40}small.onnx", 1000, 2500, 0.5, 0.9, 1e-6),
            FileRow("small.pt2", 1200),
        ),
        searched=(Step(2.0, 0.1), Step(4.0, 3.0), Step(2.8, 0.9)),
        drop=0.9,
        stages=(Stage("original", 2500, 0.9, 1.0, 0.99), Stage("int8", 400, 0.3, None, 0.96, "small-int8.onnx")),
    )


class Outline(HTMLParser):
    """Collects texts, and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(text: str) -> Outline:
    found = Outline()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def test_it_says_everything_and_nothing_in_it_runs_or_loads() -> None:
    text = page([report()], "net <b>.pt")
    found = outline(text)
    said = " ".join(" ".join(found.text).split())
    for expected in (
        *("net <b>.pt", *NAMES, "1,000,000", "500,000", "2.00x", "1.0 kB", "0.500 ms", "97.00 %", "0.90 points"),
        *("not known", "a note about", "int8", "0.4 kB", "96.00 %", "inchange", "0.25", "error 0.3000", "5 of 16"),
    ):
        assert expected in said, expected
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "b<"}
    links = [value for _, attributes in found.tags for name, value in attributes.items() if name in {"src", "href"}]
    assert links == []
    assert re.findall(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert "nan" not in said


def test_several_networks_have_a_curve() -> None:
    alone, several = (outline(page(reports, "net")) for reports in ([report()], [report(r) for r in (2.0, 4.0, 8.0)]))
    titles = "What each ratio costs"
    assert titles not in "".join(alone.text)
    assert titles in "".join(several.text)
    assert [text for text in several.text if text.startswith("Ratio ")] == ["Ratio 2", "Ratio 4", "Ratio 8"]


def test_a_page_of_little() -> None:
    """No scores, no files, nothing frozen, no searches."""
    little = Report(2.0, Cost(10, 20), Cost(5, 9), (GroupRow("fc", 4, 2, 0.1, ("out",)),), ())
    assert "Left alone" not in "".join(outline(page([little], "net")).text)


PAIRS = st.lists(st.tuples(st.floats(1, 1e4), st.floats(-1e3, 1e3)), min_size=1)


@given(st.dictionaries(st.sampled_from(["a", "b"]), PAIRS, min_size=1))
def test_charts_stay_inside_their_box(series: dict[str, list[tuple[float, float]]]) -> None:
    drawn = chart("t", "x", series, str)
    for line in drawn.lines:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in line.dots)
    assert all(b.at - a.at >= 26 for a, b in zip(drawn.x_ticks, drawn.x_ticks[1:], strict=False))


@pytest.mark.parametrize(
    ("values", "limits", "labels"),
    [
        ((1.0, 1.0), (0, 1), ["98.0", "100.0"]),
        ((0.0209, 0.0212), (0, math.inf), ["2.0", "2.1", "2.2"]),
        ((0.0, 0.0), (0, 1), ["0.0", "0.1"]),
        ((0.62, 0.97), (0, 1), ["60.0", "70.0", "80.0", "90.0", "100.0"]),
        ((-3.0, 4.0), (-math.inf, math.inf), ["-400.0", "-200.0", "0.0", "200.0", "400.0"]),
    ],
)
def test_axes_have_round_labels(values: tuple[float, float], limits: tuple[float, float], labels: list[str]) -> None:
    pairs = [(2.0, values[0]), (4.0, values[1])]
    drawn = chart("t", "x", {"a": pairs}, lambda value: f"{100 * value:.1f}", limits)
    assert [tick.text for tick in drawn.y_ticks] == labels


def test_error_curves_fall_from_the_top_to_the_bottom() -> None:
    assert spark([(0, 1.0), (5, 0.01), (10, 0.0)], 10) == "0.0,0.0 50.0,15.0 100.0,30.0"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    return found


MEASURE = """
const root = this.contentDocument.documentElement, own = document.documentElement.dataset;
own.scroll = root.scrollWidth; own.client = root.clientWidth;
own.paper = this.contentWindow.getComputedStyle(this.contentDocument.body).backgroundColor;
own.drawn = [...this.contentDocument.querySelectorAll('polyline, rect, .bar i')]
  .filter(item => item.getBoundingClientRect().width > 0).length;
own.done = 1;
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_browser_shows_it_at_360_pixels(several: bool, dark: bool, browser: str, tmp_path: Path) -> None:
    """Nothing on its console, no scrolling sideways, charts drawn, and a dark page where the system is dark."""
    text = page([report(ratio) for ratio in ((2.0, 4.0, 8.0) if several else (2.0,))], "net.pt")
    frame = tmp_path / "frame.html"  # a window cannot be as narrow as a phone, a frame can
    frame.write_text(
        f'<!doctype html><iframe width="360" height="800" style="border: 0" srcdoc="{html.escape(text)}" '
        f'onload="{html.escape(MEASURE)}"></iframe>',
        encoding="utf-8",
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", *(["--force-dark-mode"] if dark else []), "--dump-dom", frame.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', found.stdout[: found.stdout.index(">", 20)]))
    assert data["done"] == "1", found.stderr
    assert "CONSOLE" not in found.stderr
    assert 300 < int(data["client"]) <= 360
    assert int(data["scroll"]) == int(data["client"])
    assert int(data["drawn"]) > 10
    brightness = sum(int(part) for part in re.findall(r"\d+", data["paper"])[:3])
    assert (brightness < 200) == dark
