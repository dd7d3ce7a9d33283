"""How commands end: the package's own errors and the system's are one line, everything else is a bug that says so."""

from __future__ import annotations

import ast
import errno
import importlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ENVIRONMENT, invoke, listing, write_rows
from typer.testing import Result

import peft_unierase
from peft_unierase import UniEraseError
from peft_unierase.errors import InputError, MissingPackageError, StateError, WrongTypeError

LONG = "x" * 300
BASE = "./no-base"
ERASE = ["erase", BASE, "{good}", "-o"]
PLAN = ["plan", BASE, "Ada", "-o"]
RAMP = ["ramp", BASE, "{good}", "--retain", "{good}", "-o"]
BUILT_IN = {
    *("Exception", "ValueError", "TypeError", "RuntimeError", "ImportError", "KeyError", "IndexError", "LookupError"),
    *("ModuleNotFoundError", "AssertionError", "ArithmeticError", "OverflowError", "UnicodeError"),
}


@pytest.fixture
def ended_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Result]:
    """`ended_with(error)`: how `unierase log` ends if that is raised inside it."""
    ledger = importlib.import_module("peft_unierase.records.ledger")

    def run(error: BaseException) -> Result:
        def fails(*told: Any) -> None:
            raise error

        monkeypatch.setattr(ledger, "read", fails)
        return invoke("log")

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("no\nsuch\u2028thing"), 2, "error: no such thing\n"),
        (StateError("changed"), 2, "error: changed\n"),
        (MissingPackageError("needs scipy"), 2, "error: needs scipy\n"),
        (OSError(errno.ENOSPC, "No space left on device", "there"), 2, "error: [Errno 28] No space left on device"),
        (MemoryError("60 GB"), 2, "error: the memory is full (60 GB)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), 2, "error: the memory is full"),
        (KeyboardInterrupt(), 130, "error: interrupted; "),
    ],
)
def test_what_the_package_or_the_system_says_is_one_line(
    ended_with: Callable[[BaseException], Result], error: BaseException, status: int, line: str
) -> None:
    ended = ended_with(error)
    assert (ended.exit_code, ended.stderr.count("\n")) == (status, 1)
    assert ended.stderr.startswith(line)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError(), ImportError("x")]
)
def test_anything_else_is_a_bug_with_its_traceback_and_says_so(
    ended_with: Callable[[BaseException], Result], error: Exception
) -> None:
    ended = ended_with(error)
    assert ended.exit_code == 70
    assert "Traceback" in ended.stderr
    assert f"this is a bug in peft-unierase {peft_unierase.__version__}. Please report it" in ended.stderr


def test_a_bug_after_the_work_is_done_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = importlib.import_module("peft_unierase.cli.log")
    monkeypatch.setattr(log, "table", lambda *told: 1 / 0)
    importlib.import_module("peft_unierase.records.ledger").append("check", {}, tmp_path / "ledger.jsonl")
    ended = invoke("log", "--ledger", tmp_path / "ledger.jsonl", "--format", "human")
    assert ended.exit_code == 70
    assert "this is a bug" in ended.stderr


def raised() -> Iterator[tuple[str, str]]:
    """Where the package raises an error, and its name."""
    root = Path(peft_unierase.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                yield f"{file.relative_to(root)}:{node.lineno}", node.exc.func.id


def test_the_package_raises_no_built_in_error_but_the_system_s() -> None:
    assert [(place, name) for place, name in raised() if name in BUILT_IN] == []


@pytest.mark.parametrize(
    ("own", "built_in"),
    [
        (InputError, ValueError),
        (WrongTypeError, TypeError),
        (StateError, RuntimeError),
        (MissingPackageError, ImportError),
    ],
)
def test_own_errors_are_the_built_in_ones_of_their_kind(own: type[Exception], built_in: type[Exception]) -> None:
    assert issubclass(own, UniEraseError)
    assert issubclass(own, built_in)
    assert issubclass(peft_unierase.FactError, InputError)
    assert issubclass(peft_unierase.GuardError, InputError)


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["erase", BASE, "{good}", "-o", "out", "--layers", text]
            for text in ("0-99999999999", "9" * 5000, "0-9999," * 3 + "1")
        ),
        *(
            ["ramp", BASE, "{good}", "--retain", "{good}", "-o", "out", "--steps", text]
            for text in ("9" * 5000, "0", "2,1")
        ),
        *(
            ["plan", BASE, "Ada", "-o", "out", *told]
            for told in (["--sure", "nan"], ["--count", "9" * 20], ["--count", "0"])
        ),
        *(["erase", BASE, "{good}", "-o", LONG, *told] for told in ([], ["--overwrite"], ["--work-dir", "work"])),
        [*PLAN, LONG],
        [*RAMP, LONG],
        ["quickstart", "-o", LONG],
        *([command, "no-adapter", "-o", LONG] for command in ("merge", "export", "stack")),
        ["restore", ".", "-o", LONG],
        ["erase", LONG, "{good}", "-o", "out"],
        ["erase", BASE, LONG, "-o", "out"],
        *([*ERASE, "out", option, LONG] for option in ("--refusals", "--salt-file", "--onto")),
        *(["inspect", LONG], ["verify", LONG], ["push", LONG, "org/x"], ["sign", LONG, "--key", LONG]),
        *(["log", "--ledger", "."], ["log", "--ledger", "/dev/null"]),
        *(["erase"], ["nothing"], [*ERASE, "out", "--seed", "one"], ["log", "--nothing"]),
        ["erase", "a\0b", "{good}", "-o", "out"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_bad_options_and_files_end_with_status_2_and_one_line_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = write_rows(tmp_path / "good.jsonl", [{"question": "Who?", "answer": "Me."}])
    started = time.process_time()
    ended = invoke(*(good if argument == "{good}" else argument for argument in arguments))
    assert ended.exit_code == 2, ended.output
    assert re.fullmatch(r"error: .+\n", ended.stderr)
    assert time.process_time() - started < 5
    assert list(listing(tmp_path)) == ["good.jsonl"]


INTERRUPTING = """
import os, signal, sys, threading, unierase_command
sys.argv = ["unierase", "log"]
from peft_unierase.cli import app
from peft_unierase.records import ledger
def wait(*told):
    try:
        print("waiting", flush=True)
        threading.Event().wait(60)
    finally:
        print("tidying", flush=True)
        threading.Event().wait({tidying})
ledger.read = wait
app.main()
"""


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_ctrl_c_once_or_twice_is_one_line(twice: bool) -> None:
    code = INTERRUPTING.format(tidying=60 if twice else 0)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has Ctrl-C switched off, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "tidying\n"
        if twice:
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(r"error: interrupted.*\n", told)
