"""Work in a thread of its own that tells how far it is, as an iterator for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Left(BaseException):
    """Raised in work whose reader has left, so that it ends at its next word. No error, and nothing catches it."""


def told_by(work: Callable[[Callable[[T], None]], T]) -> Iterator[T]:
    """What work tells while it runs, and at last what it returns.

    Only the newest word counts: if several come before the reader asks again, it gets the last one.

    Args:
        work: Called in a thread with a function that it tells a value by.

    Raises:
        Exception: What the work raised.
    """
    words: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    left = Event()

    def tell(value: T) -> None:
        if left.is_set():
            raise Left
        words.put(("told", value))

    def run() -> None:
        try:
            words.put(("end", work(tell)))
        except Left:
            pass
        except BaseException as error:  # raised again where it is read
            words.put(("error", error))

    Thread(target=run, daemon=True).start()
    try:
        kind = "told"
        while kind == "told":
            kind, value = words.get()
            while kind == "told" and not words.empty():
                kind, value = words.get()
            if kind == "error":
                raise value
            yield value
    finally:
        left.set()
