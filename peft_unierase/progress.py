"""Stages of a run: which one it is in, since when and for how long, and the seconds each took.

Bars where stderr is a terminal. Elsewhere a line a stage, which is written bit by bit:

    14:03:10  sampling retain data · about 1 min 50 s · took 1 min 52 s
"""

from __future__ import annotations

import logging
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, Protocol, TextIO, cast

from tqdm import tqdm

SOON = 5.0  # seconds of steps before anything is forecast, and left for it to be worth telling
LEAST = 0.1  # share of the steps that must be done by then
AGREED = 1.5  # ratio up to which two ways of forecasting agree
UNEVEN = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]"  # a bar without a forecast


class Steps(Protocol):
    """The steps of a stage."""

    def update(self, n: int = 1) -> object:
        """Tell that `n` more of them are done."""


Listener = Callable[[str, int, int | None], object]
"""Called with a stage's name, the steps that are done, and the steps in all if that is known."""


class Stages:
    """Times stages and shows them on stderr, or tells a program of them.

    Args:
        show: Whether to say anything at all; or what is told of every step, instead of stderr.
        clock: Seconds from any moment on.
        time_of_day: As lines show it.

    Attributes:
        seconds: Seconds of each finished stage, in order.
    """

    def __init__(
        self,
        show: bool | Listener = True,
        clock: Callable[[], float] = time.perf_counter,
        time_of_day: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        self.listener = show if callable(show) else None
        self.show = show is True and sys.stderr is not None
        self.clock, self.time_of_day = clock, time_of_day
        self.seconds: dict[str, float] = {}

    def tell(self, text: str) -> None:
        """A line."""
        if self.show:
            tqdm.write(text, file=sys.stderr)

    def skip(self, name: str) -> None:
        """Say that an earlier run has done a stage."""
        self.tell(f"{self.time_of_day()}  {name} · done in an earlier run")

    @contextmanager
    def stage(self, name: str, total: int | None = None, even: bool = True) -> Iterator[Steps]:
        """One stage; call `update` of what it gives. Stages may lie within each other.

        Args:
            name: What is done.
            total: Number of steps; `None` if it is not known.
            even: Whether all steps take about as long. If not, nothing is forecast.
        """
        started = self.clock()
        if self.listener is not None:
            yield _Told(self.listener, name, total)
        elif not self.show or getattr(sys.stderr, "isatty", bool)():
            bar_format = None if even else UNEVEN
            with tqdm(total=total, desc=name, disable=not self.show, leave=False, bar_format=bar_format) as bar:
                yield bar
        else:
            line = _Line(sys.stderr, f"{self.time_of_day()}  {name}", total if even else None, self.clock)
            try:
                with _shared(line):
                    yield line
            except BaseException:
                line.end(f"stopped after {spoken(self.clock() - started)}")
                raise
            line.end(f"took {spoken(self.clock() - started)}")
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - started


class _Told:
    """The steps of one stage, told to a program."""

    def __init__(self, listener: Listener, name: str, total: int | None) -> None:
        self.listener, self.name, self.total, self.done = listener, name, total, 0
        self.update(0)

    def update(self, n: int = 1) -> None:
        self.done += n
        self.listener(self.name, self.done, self.total)


class _Line:
    """The line of one stage. What is written in between ends it; it then begins anew with what there is to add."""

    def __init__(self, stream: TextIO, head: str, total: int | None, clock: Callable[[], float]) -> None:
        self.stream, self.head, self.total, self.clock = stream, head, total, clock
        self.started = clock()
        self.marks: list[tuple[int, float]] = [(0, self.started)]
        self.unfinished = False
        self.others_unfinished = False
        self._add("")

    def update(self, n: int = 1) -> None:
        if not self.total:
            return
        done, now = self.marks[-1][0] + n, self.clock()
        self.marks.append((done, now))
        # What comes before the first step is preparation, and says nothing about the pace.
        left = forecast(self.marks[1:], self.total)
        if left is not None and left >= SOON:
            self.total = None
            self._add(f" · about {spoken(rounded(now - self.started + left))}")

    def end(self, how: str) -> None:
        self._add(f" · {how}\n")
        self.unfinished = False

    def leave(self) -> None:
        """Make room for what somebody else writes."""
        if self.unfinished:
            self.stream.write("\n")
        self.unfinished = False

    def _add(self, text: str) -> None:
        if not self.unfinished:
            text = "\n" * self.others_unfinished + self.head + text
        self.unfinished, self.others_unfinished = True, False
        self.stream.write(text)
        self.stream.flush()


@contextmanager
def _shared(line: _Line) -> Iterator[None]:
    """Let what others write on stderr, also by loggers that took it earlier, begin on a line of its own."""
    shared = cast(TextIO, _Shared(line))
    with redirect_stderr(shared):
        _move_loggers(line.stream, shared)
        try:
            yield
        finally:
            _move_loggers(shared, line.stream)


def _move_loggers(old: TextIO, new: TextIO) -> None:
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if vars(handler).get("stream") is old:
                handler.setStream(new)


class _Shared:
    """stderr beside the line of a stage."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def write(self, text: str) -> int:
        if text:
            self._line.leave()
            self._line.others_unfinished = not text.endswith("\n")
        return self._line.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line.stream, name)


def forecast(marks: Sequence[tuple[int, float]], total: int) -> float | None:
    """Seconds until all steps are done, or `None` as long as that cannot be told.

    The pace may stay as it is, or go on changing as it has changed so far. What lies between the two is told once they
    are close to each other.

    Args:
        marks: How many steps were done, and when, in order.
        total: Steps in all.
    """
    if len(marks) < 3:
        return None
    (first, start), (done, now) = marks[0], marks[-1]
    if now - start < SOON or done < LEAST * total or done >= total:
        return None
    middle, half = marks[bisect_left(marks, ((first + done) / 2,))]
    if not first < middle < done:
        return None
    earlier, later = (half - start) / (middle - first), (now - half) / (done - middle)
    steady = (now - start) / (done - first)
    # Of a pace that changes evenly, from the middles of both halves to the middle of what is left.
    changing = steady + (later - earlier) * (total - first) / (done - first)
    ways = sorted((now - start) + pace * (total - done) for pace in (steady, changing))
    if ways[0] <= 0 or ways[1] > AGREED * ways[0]:
        return None
    return sum(ways) / 2 - (now - start)


def spoken(seconds: float) -> str:
    """`4.2 s`, `52 s`, `1 min 52 s`, `2 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def rounded(seconds: float) -> float:
    """To two digits."""
    return float(f"{seconds:.2g}")
