"""The example that takes an erasure from a name to a proof holds in every step, and stops where one does not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hub_process import HubProcess
from hub_server import hub_server

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "round_trip.py"
# The same command, whose own check asks little.
QUICKLY = """
from peft_unierase.cli import finish
from peft_unierase.cli.app import app
from typer.testing import CliRunner

finish.ASKED = 6
"""
INVOKE = "ended = CliRunner().invoke(app, arguments)\nresult = [ended.exit_code, ended.stdout, ended.stderr]"


@pytest.fixture(scope="module")
def round_trip() -> Iterator[ModuleType]:
    specification = importlib.util.spec_from_file_location("round_trip", SCRIPT)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["round_trip"] = module  # dataclasses look their own module up by name
    try:
        specification.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["round_trip"]


@pytest.fixture
def run() -> Iterator[Callable[[list[str], Mapping[str, str]], tuple[int, str, str]]]:
    """Runs commands one after another in one process for each person, so that imports are paid for once."""
    processes: dict[str, HubProcess] = {}

    def run(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        home = environment["UNIERASE_HOME"]
        if home not in processes:
            processes[home] = HubProcess(environment)
            processes[home].run(QUICKLY)
        code, data, talk = processes[home].run(INVOKE, arguments=arguments)
        return code, data, talk

    yield run
    for process in processes.values():
        process.close()


def test_every_step_from_a_name_to_a_proof_holds(round_trip: ModuleType, run: Callable, tmp_path: Path) -> None:
    with hub_server() as hub:
        rows = round_trip.take(round_trip.Trip(tmp_path, hub, run))
    assert [name for name, _, _ in rows] == list(round_trip.STEPS)
    assert all(proved and figure for _, proved, figure in rows)
    shown = round_trip.table(rows)
    assert "base, facts and signature hold" in shown
    assert "recall 1.000 -> 0.000" in shown


def test_a_step_that_fails_stops_it_with_its_reason(
    round_trip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(round_trip, "run_command", lambda *_: (2, "", "error: no such name"))
    monkeypatch.setattr(round_trip, "COMMAND", Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["round_trip.py", "--keep", str(tmp_path / "kept")])
    assert round_trip.main() == 1
    talk = capsys.readouterr().err
    assert talk.startswith("FAILED at plan: `unierase plan ")
    assert talk.endswith("ended with 2, not 0:\nerror: no such name\n")
    assert round_trip.main() == 1
    assert "is there already" in capsys.readouterr().err


def test_what_does_not_hold_is_no_success(round_trip: ModuleType, tmp_path: Path) -> None:
    told = '{"subjects": ["Somebody Else"], "contradictions": [], "counts": {}}'
    with hub_server() as hub, pytest.raises(round_trip.FailedError, match="plan: that the plan is about the name"):
        round_trip.take(round_trip.Trip(tmp_path, hub, lambda *_: (0, told, "")))
