"""Stages of a run: a progress bar that names each, and the seconds each took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


class Stages:
    """Times stages and shows them.

    Args:
        show: Whether to say something at all: bars go to stderr where that is a terminal, and lines in any case.

    Attributes:
        seconds: Seconds of each finished stage, in order.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.seconds: dict[str, float] = {}

    def tell(self, text: str) -> None:
        """A line on stderr."""
        if self.show:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[tqdm]:
        """One stage of `total` steps; call the bar's `update`."""
        started = time.perf_counter()
        with tqdm(total=total, desc=name, disable=None if self.show else True, leave=False) as bar:
            yield bar
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
