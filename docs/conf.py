"""Sphinx's settings: `pip install -e '.[docs]' && sphinx-build -W docs site`."""

from __future__ import annotations

import importlib.metadata

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
