"""What the command line offers without importing torch is what the library has, defaults included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from subprune_fx import option_values
from subprune_fx.cli.compile import CHOICES
from subprune_fx.cli.options import command
from subprune_fx.passes.budgets import BUDGETS
from subprune_fx.passes.forward import WITHIN
from subprune_fx.passes.gauges import GAUGES
from subprune_fx.passes.options import Options
from subprune_fx.passes.size import MEASURED, TARGETS
from subprune_fx.selectors import SELECTORS


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (SELECTORS, option_values.SELECTORS),
        (BUDGETS, option_values.BUDGETS),
        ((*TARGETS, *MEASURED), option_values.TARGETS),
        (WITHIN, option_values.PRECISIONS),
        (GAUGES, tuple(MEASURED)),
    ],
)
def test_names_are_the_keys_of_their_table(table: Iterable[str], names: tuple[str, ...]) -> None:
    assert tuple(table) == names


def test_the_command_has_the_defaults_of_the_library() -> None:
    options = Options()
    defaults: dict[str, Any] = {**vars(options), **vars(options.settings)}
    offered = command.make_context("subprune-compile", ["net.pt", "--ratio", "2", "-o", "small.onnx"]).params
    assert {name: offered[name] for name in CHOICES} == {name: defaults[name] for name in CHOICES}


def test_every_setting_is_an_option_of_the_command() -> None:
    settings = {field.name for field in dataclasses.fields(Options().settings)} - {"samples"}  # they are counted
    assert settings <= set(CHOICES)
