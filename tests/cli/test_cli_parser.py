"""Options of a command as a dataclass, those of a group that it shares with others among them."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from peft_unierase.cli import app as commands
from peft_unierase.cli.parser import parameters_of, parsed


@dataclass(frozen=True, kw_only=True)
class Group:
    colour: Annotated[str, typer.Option(help="Which colour.")] = "red"


@dataclass(frozen=True, kw_only=True)
class Options:
    name: Annotated[str, typer.Argument()]
    group: Group
    count: Annotated[int, typer.Option(min=0)] = 1


def test_fields_are_options_and_come_back_in_their_classes() -> None:
    seen = []

    def run(options: Options, loud: bool = False) -> None:
        """What it does."""
        seen.append((options, loud))

    app = typer.Typer()
    app.command()(parsed(run))
    ended = CliRunner().invoke(app, ["Ada", "--colour", "blue", "--loud"])
    assert ended.exit_code == 0, ended.output
    assert seen == [(Options(name="Ada", group=Group(colour="blue"), count=1), True)]
    assert CliRunner().invoke(app, ["Ada", "--count", "-1"]).exit_code == 2
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "What it does." in shown
    assert "Which colour." in shown


@pytest.mark.parametrize("module", ["check", "erase", "export", "merge", "plan", "push", "ramp", "restore", "verify"])
def test_no_option_is_declared_twice_in_a_command(module: str) -> None:
    (kind,) = [each for each in vars(getattr(commands, module)).values() if is_options(each, module)]
    names = [parameter.name for parameter in parameters_of(kind)]
    assert len(names) == len({*names})


def is_options(value: object, module: str) -> bool:
    return isinstance(value, type) and is_dataclass(value) and value.__name__ == f"{module.capitalize()}Options"
