"""Sphinx's settings: `pip install -e '.[docs]' && sphinx-build -W docs site`."""

from __future__ import annotations

import importlib.metadata
import re

import click
from sphinx.application import Sphinx

from subprune_fx.cli.options import command
from subprune_fx.cli.sections import records_of

project = "subprune_fx"
author = "the authors of subprune_fx"
release = importlib.metadata.version("subprune_fx")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"subprune_fx {release}"
html_show_sphinx = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
myst_heading_anchors = 3
OPTIONS = "{{ options }}"


def table() -> str:
    """Every option of the command with its help, under the headings of `--help`."""
    parts = []
    for heading, records in records_of(command, click.Context(command)).items():
        rows = [(name.replace("|", "\\|"), _coded(text).replace("|", "\\|")) for name, text in records]
        parts += [f"## {heading}", "", "| option | meaning |", "|---|---|"]
        parts += [*(f"| `{name}` | {text} |" for name, text in rows), ""]
    return "\n".join(parts)


def _coded(text: str) -> str:
    """Options in it as code: elsewhere two hyphens become a dash."""
    return re.sub(r"(?<![\w-])--?[a-z][a-z-]*", r"`\g<0>`", text)


def _fill_in(_app: Sphinx, _name: str, source: list[str]) -> None:
    source[0] = source[0].replace(OPTIONS, table()) if OPTIONS in source[0] else source[0]


def setup(app: Sphinx) -> None:
    """Called by Sphinx: a page that says `{{ options }}` gets the tables."""
    app.connect("source-read", _fill_in)
