"""What a run says of its stages where stderr is no terminal: a line each, with a forecast that holds; and on one."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

import pytest

from peft_unierase.progress import Stages, Steps, forecast, rounded, spoken


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, steps: Steps, *seconds: float, n: int = 1) -> None:
        """Steps that take these seconds each."""
        for each in seconds:
            self.now += each
            steps.update(n)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Said = Callable[[], str]
Stream = TypeVar("Stream", bound=TextIO | None)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def stages(clock: Time) -> Stages:
    return Stages(clock=clock, time_of_day=lambda: "14:03:10")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().err


def test_a_stage_is_one_line_with_start_forecast_and_duration(stages: Stages, clock: Time, said: Said) -> None:
    with stages.stage("sampling", 100) as steps:
        assert said() == "14:03:10  sampling"
        clock.work(steps, *[1.0] * 9)
        assert said() == ""
        clock.work(steps, 1.0)
        assert said() == " · about 1 min 40 s"
        clock.work(steps, *[1.1] * 90)
        assert said() == ""
    assert said() == " · took 1 min 49 s\n"
    assert stages.seconds == {"sampling": pytest.approx(109.0)}


def test_a_short_stage_only_says_how_long_it_took(stages: Stages, clock: Time, said: Said) -> None:
    with stages.stage("opening", 20) as steps:
        clock.work(steps, *[0.2] * 20)
    assert said() == "14:03:10  opening · took 4.0 s\n"
    with stages.stage("asking", 10) as steps:
        clock.work(steps, *[1.0] * 10)  # after five seconds there are four left
    assert said() == "14:03:10  asking · took 10 s\n"


def test_a_log_that_is_watched_grows(stages: Stages, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as file, _stderr(file), stages.stage("fitting"):
        assert log.read_text(encoding="utf-8") == "14:03:10  fitting"


@pytest.mark.parametrize("told", [{"total": None}, {"total": 100, "even": False}])
def test_nothing_is_forecast_of_steps_that_are_not_alike(stages: Stages, clock: Time, said: Said, told: dict) -> None:
    with stages.stage("attacks", **told) as steps:
        clock.work(steps, *[1.0] * 100)
    assert said() == "14:03:10  attacks · took 1 min 40 s\n"


def test_what_comes_before_the_first_step_is_told_apart_from_the_pace(stages: Stages, clock: Time, said: Said) -> None:
    with stages.stage("fitting", 100) as steps:
        clock.now += 60
        clock.work(steps, *[1.0] * 100)
    assert said() == "14:03:10  fitting · about 2 min 40 s · took 2 min 40 s\n"


def test_whatever_is_written_in_between_has_lines_of_its_own(stages: Stages, clock: Time, said: Said) -> None:
    with stages.stage("fitting", 100) as steps:
        stages.tell("resuming")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: sys.stderr.write(f"warning: {message}\n")
            warnings.warn("too few", stacklevel=1)
        clock.work(steps, *[1.0] * 50)
        sys.stderr.write("no end")
        clock.work(steps, *[1.0] * 50)
    stages.tell("done")
    assert said().splitlines() == [
        "14:03:10  fitting",
        "resuming",
        "warning: too few",
        "14:03:10  fitting · about 1 min 40 s",
        "no end",
        "14:03:10  fitting · took 1 min 40 s",
        "done",
    ]


def test_loggers_have_lines_of_their_own_and_keep_their_stream(stages: Stages, said: Said) -> None:
    own, loggers = sys.stderr, [logging.getLogger(f"tests.progress.{when}") for when in ("before", "within")]
    loggers[0].addHandler(logging.StreamHandler())
    try:
        with stages.stage("fitting"):
            loggers[1].addHandler(logging.StreamHandler())
            for logger in loggers:
                logger.warning(logger.name)
        assert [handler.stream for logger in loggers for handler in logger.handlers] == [own, own]  # type: ignore[attr-defined]
    finally:
        for logger in loggers:
            logger.handlers.clear()
    names = [logger.name for logger in loggers]
    assert said().splitlines() == ["14:03:10  fitting", *names, "14:03:10  fitting · took 0.0 s"]


def test_a_stage_within_another_has_a_line_of_its_own(stages: Stages, clock: Time, said: Said) -> None:
    with stages.stage("outer"):
        with stages.stage("inner"):
            clock.now += 2
        clock.now += 1
    assert said() == "14:03:10  outer\n14:03:10  inner · took 2.0 s\n14:03:10  outer · took 3.0 s\n"
    assert stages.seconds == {"inner": 2.0, "outer": 3.0}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_ends_its_line_and_counts_as_nothing(
    stages: Stages, clock: Time, said: Said, error: type[BaseException]
) -> None:
    own = sys.stderr

    def fail() -> None:
        with stages.stage("fitting", 100) as steps:
            clock.work(steps, *[1.0] * 12)
            raise error

    with pytest.raises(error):
        fail()
    assert said() == "14:03:10  fitting · about 1 min 40 s · stopped after 12 s\n"
    assert stages.seconds == {}
    assert sys.stderr is own


def test_a_stage_that_an_earlier_run_has_done_is_named(stages: Stages, said: Said) -> None:
    stages.skip("asking the base")
    assert said() == "14:03:10  asking the base · done in an earlier run\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal, None])
def test_quiet_says_nothing_and_still_times(stream: type[io.StringIO] | None, clock: Time) -> None:
    with _stderr(stream and stream()) as written:
        stages = Stages(stream is None, clock)  # without a stderr there is nobody to tell
        stages.tell("resuming")
        stages.skip("asking")
        with stages.stage("fitting", 10) as steps:
            clock.work(steps, *[10.0] * 10)
        assert not written or written.getvalue() == ""
    assert stages.seconds == {"fitting": 100.0}


def test_a_program_is_told_of_every_step_and_stderr_is_not(clock: Time, said: Said) -> None:
    told: list[tuple[str, int, int | None]] = []
    stages = Stages(lambda *step: told.append(step), clock)
    with stages.stage("fitting", 3) as steps:
        clock.work(steps, 1.0, n=2)
        with stages.stage("solving") as inner:
            clock.work(inner, 2.0)
        clock.work(steps, 4.0)
    stages.tell("resuming")
    assert told == [("fitting", 0, 3), ("fitting", 2, 3), ("solving", 0, None), ("solving", 1, None), ("fitting", 3, 3)]
    assert stages.seconds == {"solving": 2.0, "fitting": 7.0}
    assert said() == ""


@pytest.mark.parametrize(("even", "forecasts"), [(True, True), (False, False)])
def test_on_a_terminal_a_stage_is_a_bar(clock: Time, even: bool, forecasts: bool) -> None:
    with _stderr(Terminal()) as written:
        stages = Stages(clock=clock)
        with stages.stage("fitting", 10, even) as steps:
            clock.work(steps, 1.0, n=10)
        stages.tell("done")
        assert written
        first, *_, last = written.getvalue().split("\r")
    assert "14:03:10" not in first
    assert "fitting" in written.getvalue()
    assert "| 0/10 [" in written.getvalue()
    assert ("<?" in written.getvalue()) is forecasts
    assert last.endswith("done\n")


PACES: dict[str, Callable[[float], float]] = {
    "even": lambda share: 1.0,
    "twice as slow in the end": lambda share: 1 + share,
    "five times as slow in the end": lambda share: 1 + 4 * share,
    "twice as fast in the end": lambda share: 2 - share,
    "five times as fast in the end": lambda share: 5 - 4 * share,
    "slow at first": lambda share: 10.0 if share < 0.02 else 1.0,
    "every tenth is slow": lambda share: 20.0 if round(1000 * share) % 10 == 5 else 1.0,
}


@pytest.mark.parametrize("steps", [10, 100, 1000])
@pytest.mark.parametrize("pace", list(PACES))
def test_a_forecast_holds_within_a_factor_of_two(pace: str, steps: int) -> None:
    now, marks, told = 0.0, [], []
    for step in range(1, steps + 1):
        now += PACES[pace](step / steps)
        marks.append((step, now))
        left = forecast(marks, steps)
        if left is not None:
            told.append(rounded(now + left))
    assert all(now / 2 < each < 2 * now for each in told)
    assert told or steps == 10


def test_a_forecast_takes_seconds_and_steps() -> None:
    def after(steps: int, each: float, n: int = 1) -> float | None:
        return forecast([(n * step, each * step) for step in range(1, steps + 1)], 100)

    assert after(9, 1.0) is None  # less than a tenth
    assert after(20, 0.2) is None  # less than five seconds
    assert after(2, 9.0, n=30) is None  # one batch says little
    assert after(10, 1.0) == pytest.approx(90)
    assert after(3, 9.0, n=30) == pytest.approx(3)
    assert after(100, 1.0) is None
    assert forecast([(0, 0.0), (50, 10.0), (50, 20.0)], 100) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.16, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (112, "1 min 52 s"),
        (3599.7, "1 h"),
        (7380, "2 h 3 min"),
    ],
)
def test_times_are_said_in_words_that_suit_them(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@contextmanager
def _stderr(stream: Stream) -> Iterator[Stream]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield stream
