"""One state for each forward pass, whatever other threads switch meanwhile.

A pass notes at the model's entry which adapters are on, and every layer goes by that note. Notes are kept by thread. In
a model that torch has compiled, the compiled graph is the note: it is chosen, by what is on, as the pass begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import StateError


class Note(NamedTuple):
    """What one thread's pass goes by: the adapters that are on, those of each row of a mixed batch, and whether it is
    that of a whole call, which may be many passes."""

    on: list[str]
    rows: list[list[str]] | None
    whole: bool


class Switch:
    """What the adapter layers of one model share. Which adapters are on it reads off the first of them."""

    def __init__(self) -> None:
        self.first: Any = None
        self.lock = threading.RLock()
        self.notes: dict[int, Note] = {}
        self.mixed = 0  # how many calls with mixed batches are under way
        self.off_by: threading.Thread | None = None
        self.refused: set[int] = set()  # threads that were not let off beside the one that is
        self.own_change = False
        self.owner: Callable[[], Any] = lambda: None  # the `PeftModel` around it, as far as it is known
        self.hooks: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """For copies of the model: locks and threads stay behind."""
        return {"first": self.first, "hooks": self.hooks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def on(self) -> list[str]:
        """The adapters that are on at this moment."""
        return [] if self.first is None else self.first.on()

    def now(self) -> tuple[list[str], list[list[str]] | None] | None:
        """The adapters that are on in this thread's pass, and those of each row of a mixed batch; `None` outside of a
        pass."""
        if torch.compiler.is_compiling() and not self.mixed:
            return None
        note = self.notes.get(get_ident())
        return None if note is None else (note.on, note.rows)

    def watch(self, model: nn.Module) -> None:
        """Take a note whenever `model` is called."""
        if not self.hooks:
            self.hooks = [
                model.register_forward_pre_hook(self._enter),
                model.register_forward_hook(self._leave, always_call=True),
            ]

    def unwatch(self) -> None:
        """Stop that."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _enter(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        with self.lock:
            note = self.notes.get(get_ident())
            # One that is not of a whole call is left from a pass that was interrupted.
            if note is None or not note.whole:
                self.notes[get_ident()] = Note(self.on(), None, False)

    def _leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        note = self.notes.get(get_ident())
        if note is not None and not note.whole:
            del self.notes[get_ident()]

    @contextmanager
    def whole_call(self, rows: Callable[[], list[list[str]]] | None = None) -> Iterator[None]:
        """One note for all passes of a `with` block.

        Args:
            rows: Tells the adapters of each row of a mixed batch; it may refuse them.
        """
        here = get_ident()
        with self.lock:
            before = self.notes.get(here)
            outer = before if before is not None and before.whole else None
            if outer is None or rows is not None:
                self.notes[here] = Note(self.on(), rows() if rows else None, True)
            self.mixed += rows is not None
        try:
            yield
        finally:
            with self.lock:
                self.mixed -= rows is not None
                if outer is None:
                    self.notes.pop(here, None)
                else:
                    self.notes[here] = outer

    @contextmanager
    def change(self, alone: str = "", own: bool = False) -> Iterator[None]:
        """A change of what is on, which passes that begin meanwhile wait for.

        Args:
            alone: What cannot be done while other threads' passes are under way, if it is such a change.
            own: One that keeps the choice as it is, and so may set it while adapters are off.

        Raises:
            RuntimeError: It is such a change, and one is under way; nothing was changed.
        """
        with self.lock:
            living = {thread.ident for thread in threading.enumerate()} - {get_ident()}
            if alone and (others := len(living & self.notes.keys())):
                raise StateError(
                    f"cannot {alone} while a forward pass of this model runs in another thread ({others}): it would "
                    "see some layers as they were and others as they are then; wait until it has finished"
                )
            before, self.own_change = self.own_change, self.own_change or own
            try:
                yield
            finally:
                self.own_change = before
