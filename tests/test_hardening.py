"""The harness of `make hardening`: a command in a fork that is killed, hangs, fails or takes too much is told apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks")
FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "hardening"


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not FOLDER.is_dir():
        pytest.skip("a source distribution holds no benchmarks")
    monkeypatch.syspath_prepend(str(FOLDER))
    import workshop

    return workshop


def writes(folder: Path) -> Callable[[], int]:
    def call() -> int:
        for name in ("first", "second"):
            (folder / name).mkdir()
        sys.stdout.write("written\n")
        return 0

    return call


def test_what_ends_is_told_with_its_status_and_its_words(workshop: Any, tmp_path: Path) -> None:
    ended = workshop.forked(writes(tmp_path), tmp_path)
    assert (ended.how, ended.status, ended.text, ended.events) == ("ended", 0, "written\n", 2)
    assert ended.is_clean
    assert (tmp_path / "second").is_dir()


def test_a_kill_comes_before_the_change_that_it_names(workshop: Any, tmp_path: Path) -> None:
    ended = workshop.forked(writes(tmp_path), tmp_path, workshop.Kill(event=2))
    assert ended.how == "killed"
    assert ((tmp_path / "first").exists(), (tmp_path / "second").exists()) == (True, False)


def test_what_waits_is_killed_and_said_to_hang(workshop: Any, tmp_path: Path) -> None:
    assert workshop.forked(lambda: time.sleep(9) or 0, tmp_path, seconds=0.1).how == "hangs"
    assert workshop.forked(lambda: time.sleep(9) or 0, tmp_path, workshop.Kill(seconds=0.1)).how == "killed"


def test_a_traceback_is_not_clean(workshop: Any, tmp_path: Path) -> None:
    ended = workshop.forked(lambda: 1 // 0, tmp_path)
    assert not ended.is_clean
    assert "ZeroDivisionError" in ended.text


def test_memory_has_a_bound(workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "MEMORY", 1 << 28)
    assert workshop.forked(lambda: len(bytearray(1 << 30)), tmp_path).how == "memory"


def test_what_workers_find_comes_back_in_order_and_a_failure_too(workshop: Any) -> None:
    found = workshop.shared([1, 2, 0, 4], lambda each: 8 // each, lambda each, trace: trace.split("\n")[-2])
    assert found == [8, 4, "ZeroDivisionError: integer division or modulo by zero", 2]


def test_the_tables_say_what_was_tried_and_what_came_of_it(workshop: Any) -> None:
    import tables

    counts = {"malicious adapters": 1200, "ways tried": 2, "load: passes": 1, "load: refused": 3, "seconds": 61}
    kills = {"kills": 5, "kills of erase": 5, "seconds": 9}
    told = {
        "adapters": {"counts": counts, "violations": ["one"]},
        "kills": {"counts": kills, "violations": []},
    }
    assert tables.tables(told).splitlines() == [
        "| part | tried | violations | seconds |",
        "| --- | --- | ---: | ---: |",
        "| adapters | 1,200 malicious adapters, 2 ways tried | 1 | 61 |",
        "| kills | 5 kills | 0 | 9 |",
        "| all |  | 1 | 70 |",
        "",
        "| adapters by way | refused | passes |",
        "| --- | ---: | ---: |",
        "| load | 3 | 1 |",
    ]


def test_a_violation_is_counted(workshop: Any) -> None:
    tally = workshop.Tally()
    assert tally.hold(True, "good")
    assert not tally.hold(False, "bad")
    assert tally.violations == ["bad"]
