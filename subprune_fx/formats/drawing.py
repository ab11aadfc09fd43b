"""Drawings of a dependency graph that need nothing to be looked at: SVG, HTML, and Graphviz's DOT.

A row a group: who makes its channels on the left, who reads them on the right; what stays is listed below.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

from subprune_fx.errors import SubpruneError
from subprune_fx.explanation import Coupled, Explanation

WIDTH, LINE, GAP = 260, 18, 14
COLUMNS = (10, 330, 650)
COLOURS = {"producers": "#dbe9ff", "group": "#fff3cd", "consumers": "#dff5e1", "frozen": "#e8e8e8"}
LONGEST = 38
"""Letters of a name that fit into a box."""


def svg(explanation: Explanation) -> str:
    """A self-contained SVG."""
    parts: list[str] = []
    y = 46
    for group in explanation.groups:
        height = LINE * max(len(group.producers), len(group.consumers), len(_middle(group))) + 8
        parts += _row(group, y, height)
        y += height + GAP
    frozen = [*map(str, explanation.frozen)]
    if frozen:
        parts += _box(COLUMNS[0], y, COLUMNS[2] + WIDTH - COLUMNS[0], frozen, COLOURS["frozen"], 130)
        y += LINE * len(frozen) + 8 + GAP
    width = COLUMNS[2] + WIDTH + 10
    heads = ("made by", "channels, and what is cut along", "read by")
    titles = "".join(
        f'<text x="{x + 4}" y="34" font-weight="bold">{t}</text>' for x, t in zip(COLUMNS, heads, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="14" y="16" font-weight="bold">{escape(explanation.network)}</text>'
        f"{titles}{''.join(parts)}</svg>\n"
    )


def _middle(group: Coupled) -> list[str]:
    return [f"{group.name}: {group.channels}", *group.followers]


def _row(group: Coupled, y: int, height: int) -> list[str]:
    boxes = (
        (COLUMNS[0], group.producers, COLOURS["producers"]),
        (COLUMNS[1], _middle(group), COLOURS["group"]),
        (COLUMNS[2], group.consumers, COLOURS["consumers"]),
    )
    found = [piece for x, names, colour in boxes for piece in _box(x, y, WIDTH, names, colour, LONGEST, height)]
    middle = y + height // 2
    for start, end in ((COLUMNS[0], COLUMNS[1]), (COLUMNS[1], COLUMNS[2])):
        found.append(
            f'<path d="M{start + WIDTH} {middle}H{end - 6}" stroke="#555"/>'
            f'<path d="M{end} {middle}l-7 -4v8z" fill="#555"/>'
        )
    return found


def _box(x: int, y: int, width: int, lines: Sequence[str], colour: str, longest: int, height: int = 0) -> list[str]:
    height = height or LINE * len(lines) + 8
    found = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{colour}" stroke="#999"/>']
    for place, line in enumerate(lines):
        short = line if len(line) <= longest else f"...{line[3 - longest :]}"
        found.append(
            f'<text x="{x + 6}" y="{y + LINE * (place + 1) - 2}">{escape(short)}<title>{escape(line)}</title></text>'
        )
    return found


def html(explanation: Explanation) -> str:
    """A page with the drawing and the text, without scripts or anything from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(explanation.network)}</title></head>\n"
        f'<body style="font-family: sans-serif">\n{svg(explanation)}'
        f"<pre>{escape(str(explanation))}</pre>\n</body></html>\n"
    )


def dot(explanation: Explanation) -> str:
    """Input for Graphviz: `dot -Tsvg graph.dot`. Layers are boxes, groups ellipses; what stays is grey."""
    lines = ["digraph {", "  rankdir=TB; node [shape=box, style=filled, fillcolor=white, fontname=sans];"]
    for place, group in enumerate(explanation.groups):
        label = "\\n".join(json.dumps(line)[1:-1] for line in _middle(group))
        lines.append(f'  group{place} [shape=ellipse, fillcolor="{COLOURS["group"]}", label="{label}"];')
        lines += [f"  {json.dumps(name)} -> group{place};" for name in group.producers]
        lines += [f"  group{place} -> {json.dumps(name)};" for name in group.consumers]
    for place, row in enumerate(explanation.frozen):
        label = json.dumps(f"{row.channels or 'all'} of {row.name} stay: {row.reason}")
        lines.append(f'  frozen{place} [shape=note, fillcolor="{COLOURS["frozen"]}", label={label}];')
        lines.append(f"  {json.dumps(row.name)} -> frozen{place} [style=dashed];")
    return "\n".join([*lines, "}", ""])


DRAWINGS: Mapping[str, Callable[[Explanation], str]] = MappingProxyType({".svg": svg, ".html": html, ".dot": dot})


def drawing_of(path: str | os.PathLike[str]) -> Callable[[Explanation], str]:
    """What draws a file, by its suffix.

    Raises:
        SubpruneError: No drawing has this suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in DRAWINGS:
        raise SubpruneError(f"{suffix!r} is no drawing", where=str(path), remedy=f"end it in {', '.join(DRAWINGS)}")
    return DRAWINGS[suffix]
