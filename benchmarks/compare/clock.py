"""Seconds and peak memory of each stage of a run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from peft_unierase.progress import Stages

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Clock:
    """Times stages, which do not lie within each other, and shows them on stderr: a line each.

    Args:
        show: Whether to show them.

    Attributes:
        stages: By name: `seconds`, and `peak_bytes`, the largest memory meanwhile (of the accelerator if there is one,
            otherwise of the whole process, base and reference model included); `None` if the system does not tell.
    """

    def __init__(self, show: bool = True) -> None:
        self._shown = Stages(show)
        self.stages: dict[str, dict[str, Any]] = {}

    def tell(self, text: str) -> None:
        """A line on stderr."""
        self._shown.tell(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside. A stage that fails has no figures."""
        told = _forget_peak()
        started = time.perf_counter()
        with self._shown.stage(name):
            yield
        self.stages[name] = {"seconds": time.perf_counter() - started, "peak_bytes": _peak() if told else None}

    def together(self, names: list[str]) -> dict[str, Any]:
        """Several stages as one: the sum of their seconds, the largest of their peaks."""
        found = [self.stages[name] for name in names]
        peaks = [each["peak_bytes"] for each in found if each["peak_bytes"] is not None]
        return {"seconds": sum(each["seconds"] for each in found), "peak_bytes": max(peaks, default=None)}


def _forget_peak() -> bool:
    """Begin to look for the peak; whether the system lets us."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        CLEAR.write_text("5")  # resets the peak of this process (proc(5))
    except OSError:
        return False
    return True


def _peak() -> int | None:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else None
