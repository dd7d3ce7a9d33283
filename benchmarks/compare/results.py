"""Rows of figures in files that only grow: one JSON line a method, one file a task.

A row is a plain dictionary. `key_of` says what makes two rows the same measurement; of those the last one counts.
Nothing that was written is changed or removed, whoever wrote it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

SCHEMA = "unierase-compare/1"
LIBRARIES = ("peft-unierase", "torch", "transformers", "peft", "numpy", "scipy", "torchao")
DONE, FAILED = "done", "failed"
BASE = "base"  # the row of the model that nothing was erased from
Row = dict[str, Any]
Key = tuple[str, str, int, tuple[tuple[str, int], ...]]


def key_of(row: Mapping[str, Any]) -> Key:
    """Task, method, seed and budget."""
    return row["task"], row["method"], row["seed"], tuple(sorted(row["budget"].items()))


class Results:
    """The rows in a folder.

    Args:
        folder: Holds a file `TASK.jsonl` for each task; made when the first row is added.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a row behind those that are there, in one piece; numbers that are none (`nan`, `inf`) become `null`.

        A line that a killed process left unfinished is ended first, so it costs no other row.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{row['task']}.jsonl"
        line = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"
        with FileLock(path.with_suffix(".lock")), open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, task: str) -> list[Row]:
        """All rows of a task, in the order in which they were written; a line that is no whole row is left out."""
        path = self.folder / f"{task}.jsonl"
        found: list[Row] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(row, dict) and row.get("schema") == SCHEMA:
                    found.append(row)
        return found

    def tasks(self) -> list[str]:
        """Names of the tasks that have rows."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def latest(self, task: str, seed: int | None = None) -> dict[str, Row]:
        """The last row of each method, by its name; a method that was done once does not go by failing later."""
        found: dict[str, Row] = {}
        for row in self.rows(task):
            there = found.get(row["method"])
            if (seed is None or row["seed"] == seed) and not (there and there["status"] == DONE != row["status"]):
                found[row["method"]] = row
        return found

    def done(self, task: str) -> set[Key]:
        """Keys of the rows that need not be measured again. What failed is tried again."""
        return {key_of(row) for row in self.rows(task) if row["status"] == DONE}

    def settings(self, task: str | None, method: str, seed: int) -> dict[str, Any] | None:
        """The settings that a method chose on a task, if that is stored."""
        row = self.latest(task, seed).get(method) if task else None
        return row["settings"] if row and row["status"] == DONE else None


def surroundings() -> dict[str, Any]:
    """Versions, machine (CPU and cores, nothing else), commit, and when."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count()},
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that is checked out, with `+` if files were changed since; none outside a repository."""

    def git(*words: str) -> str:
        told = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
