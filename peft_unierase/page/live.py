"""Erasing one fact while a visitor waits, on a model of the visitor's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ..data.facts import Fact
from ..engine import erase
from ..errors import InputError
from ..progress import Listener
from ..retain.knowledge import tells
from ..text import normal
from .models import ANSWER, Models, checked_text

MOST = 3  # erasures that one visitor can make, one on top of the other


@dataclass(frozen=True)
class Made:
    """An erasure that a visitor made.

    Attributes:
        models: The visitor's own base and erased model, with it.
        name: Its name in the model.
        fact: What was erased.
        folder: Where it was saved.
        packed: The same as one file.
    """

    models: Models
    name: str
    fact: Fact
    folder: Path
    packed: Path


@dataclass(frozen=True)
class Live:
    """What it takes to erase on the page.

    Attributes:
        load: Loads the page's models anew, for one visitor.
        save: Called with model, tokenizer and a new folder; saves the erasure that was made last.
        place: A folder for what visitors make. It goes with the page.
    """

    load: Callable[[], Models]
    save: Callable[[Any, Any, Path], object]
    place: Path

    def erase(self, mine: Models | None, question: str, answer: str, tell: Listener) -> Made:
        """Erase a fact.

        Args:
            mine: The visitor's models, if an erasure was made on them before.
            question: From a visitor.
            answer: What the base answers; the base is asked if it is empty.
            tell: Told of every step.

        Raises:
            ValueError: One of the texts cannot be used, the base does not tell the fact, or there are `MOST` erasures
                already.
        """
        models = mine or self.load()
        question = models.checked(question)
        if len(models.labels) - len(models.given) >= MOST:
            raise InputError(f"this page keeps {MOST} erasures of one visitor; reload it to begin anew")
        with models.alone():
            fact = self._fact(models, question, answer)
            kept = [other for other in models.kept if normal(other.question) != normal(fact.question)]
            model = erase(
                models.model,
                models.tokenizer,
                [fact],
                kept[::2],
                refusals=models.refusals,
                progress=tell,
            )
        name = model.erasure.adapter
        folder = Path(mkdtemp(dir=self.place)) / "erased-live"
        self.save(model, models.tokenizer, folder)
        packed = Path(shutil.make_archive(str(folder), "zip", folder))
        models.labels[name] = f"erased live: {fact.question}"
        models.forget.append(fact)
        models.kept = [other for other in models.kept if normal(other.question) != normal(fact.question)]
        return Made(models, name, fact, folder, packed)

    def forget(self, made: Sequence[Made]) -> None:
        """Remove what a visitor made, who has gone."""
        for each in made:
            shutil.rmtree(each.folder.parent, ignore_errors=True)

    def _fact(self, models: Models, question: str, answer: str) -> Fact:
        base = models.base()
        known = models.fact(question, base)
        own = base.says([models.form.prompt(question)], max_new_tokens=ANSWER)[0]
        fact = known if not answer.strip() else Fact(question, checked_text(answer, "answer"))
        if not tells(own, fact):
            raise InputError(f"the base does not tell this fact, so there is nothing to erase; it says: {own}")
        return fact
