"""Base and erased model as the page asks them: one model, whose erasures are switched for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from peft import PeftModel

from ..adapter.active import active, set_active
from ..checking import Case, Target
from ..checking.sets import declines
from ..data.facts import DEFAULT_REFUSALS, Fact
from ..errors import InputError
from ..lm.batches import encode
from ..lm.decoding import chosen_answers
from ..lm.formats import asking_format
from ..lm.structure import context_length
from ..retain.knowledge import tells
from ..text import comparable, normal
from .told import told_by

LONGEST = 400  # characters of a question, and of an answer that is given
ANSWER = 48  # tokens of an answer
DRAWN = 24  # tokens of an answer whose probabilities are shown


@dataclass(frozen=True)
class Said:
    """What a model has said so far.

    Attributes:
        text: Without special tokens.
        declined: Whether it declines: by [UNL], or in the words of a refusal.
        done: Whether it has ended.
    """

    text: str = ""
    declined: bool = False
    done: bool = False


@dataclass(frozen=True)
class Chances:
    """How likely each token of an answer is where the ones before it are given.

    Attributes:
        answer: The answer.
        tokens: Its tokens as text; those that are parts of one character stand together.
        base, erased: Probability of each with the erasures off and on.
        unl: Probability of [UNL] in its place, erasures on; 0 if no erasure is on.
    """

    answer: str
    tokens: Sequence[str]
    base: Sequence[float]
    erased: Sequence[float]
    unl: Sequence[float]


class Models:
    """A model with erasures, as base and as erased model.

    One run has the model for itself: the others wait.

    Args:
        model: The base with its erasures.
        tokenizer: Its tokenizer, with the erasures' tokens.
        forget: Facts that the erasures are about, as far as they are known.
        kept: Facts that stay.
        refusals: Sentences that decline, beside the built-in ones.
        labels: What to call erasures instead of their names in the model.

    Attributes:
        given: The erasures that the page was started with.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Any,
        forget: Sequence[Fact] = (),
        kept: Sequence[Fact] = (),
        refusals: Sequence[str] = (),
        labels: dict[str, str] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.forget, self.kept = list(forget), list(kept)
        self.refusals = [*refusals, *DEFAULT_REFUSALS]
        self.given = list(model.peft_config)
        self.labels = {name: name for name in self.given} | (labels or {})
        self.form = asking_format(tokenizer)
        self._one = Lock()

    @property
    def names(self) -> list[str]:
        """The erasures, in the order in which they were loaded."""
        return list(self.model.peft_config)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the model for oneself."""
        with self._one:
            yield

    @contextmanager
    def _with(self, names: Sequence[str]) -> Iterator[None]:
        """These erasures are on, and afterwards those that were."""
        before = active(self.model)
        set_active(self.model, names)
        try:
            yield
        finally:
            set_active(self.model, before)

    def base(self, kind: type[Target] = Target) -> Target:
        """The model with its erasures off."""
        return kind("base", self.model, self.tokenizer, lambda: self._with([]))

    def erased(self, on: Sequence[str], kind: type[Target] = Target) -> Target:
        """The model with these erasures on."""
        known = [self.model.peft_config[name] for name in on if name in self.model.peft_config]
        rows = [token_id for config in known for token_id, _ in config.tokens]  # type: ignore[attr-defined]
        return kind("erased", self.model, self.tokenizer, lambda: self._with(on), rows)

    def case(self, fact: Fact, base: Target) -> Case:
        """One question, as an attack of the check takes it."""
        own = base.says([self.form.prompt(fact.question)], max_new_tokens=ANSWER)[0]
        begun = {fact.question: own} if comparable(own) and tells(own, fact) else {}
        others = [other for other in self.kept if normal(other.question) != normal(fact.question)]
        retain = {"kept": others} if others else {}
        return Case(base, [fact], retain, self.form, {}, [], self.refusals, 0, ANSWER, begun)

    def fact(self, question: str, base: Target) -> Fact:
        """What is known of a question; of one that nobody gave an answer for, the base's own answer counts.

        Raises:
            ValueError: The base declines it, or has no words for it.
        """
        wanted = normal(question)
        for fact in (*self.forget, *self.kept):
            wordings = (fact.question, *fact.paraphrases)
            if wanted in map(normal, wordings):
                others = tuple(wording for wording in wordings if normal(wording) != wanted)
                return replace(fact, question=question, paraphrases=others)
        own = base.says([self.form.prompt(question)], max_new_tokens=ANSWER)[0]
        if not comparable(own):
            raise InputError("the base answers nothing that could be compared; ask it something else")
        if Case(base, [], {}, self.form, {}, [], self.refusals).opens_as_refusal(own):
            raise InputError("the base itself declines this question, so there is nothing to look for; ask another one")
        return Fact(question, own)

    def checked(self, text: str) -> str:
        """A question from a visitor.

        Raises:
            ValueError: It is empty or too long, or no text.
        """
        found = checked_text(text, "question")
        most, tokens = context_length(self.model), len(encode(self.tokenizer, self.form.prompt(found)))
        if most is not None and tokens + ANSWER > most:
            raise InputError(
                f"the question has {tokens} tokens, and with its answer the model reads at most {most}; make it shorter"
            )
        return found

    def answers(self, question: str, on: Sequence[str]) -> Iterator[tuple[Said, Said]]:
        """What base and erased model say, token by token: first the base, then the erased model.

        Args:
            question: From a visitor.
            on: Names of the erasures that are on.

        Raises:
            ValueError: See [`checked`]; or there is no erasure of a name.
        """
        prompt = self.form.prompt(self.checked(question))

        def work(tell: Callable[[tuple[Said, Said]], None]) -> tuple[Said, Said]:
            with self.alone():
                before = self._spoken(self.base(), prompt, lambda said: tell((said, Said())))
                after = self._spoken(self.erased(on), prompt, lambda said: tell((before, said)))
            return before, after

        return told_by(work)

    def _spoken(self, target: Target, prompt: str, tell: Callable[[Said], None]) -> Said:
        """A whole answer. What has been said so far is told after each token."""
        tokens: list[int] = []
        case = Case(target, [], {}, self.form, {}, [], self.refusals)

        def said(done: bool) -> Said:
            text = target.texts([tokens])[0]
            return Said(text, declines(case, target, tokens, text), done)

        def choose(logits: torch.Tensor) -> torch.Tensor:
            best = logits.argmax(dim=-1)
            tokens.append(int(best[0]))
            tell(said(False))
            return best

        with target.on():
            chosen_answers(self.model, self.tokenizer, [prompt], choose, ANSWER)
        return said(True)

    def chances(self, question: str, on: Sequence[str]) -> Chances:
        """The probabilities of an answer's tokens, and of [UNL] in their places.

        Raises:
            ValueError: See [`checked`] and [`fact`].
        """
        question = self.checked(question)
        with self.alone():
            base, erased = self.base(), self.erased(on)
            fact = self.fact(question, base)
            text = self.form.answer(fact.answer)
            ids = encode(self.tokenizer, text)
            sides = [target.distribution(self.form.prompt(question), text).exp().cpu() for target in (base, erased)]
        places = torch.arange(len(ids))
        own = [side[places, torch.tensor(ids)] for side in sides]
        unl = sides[1][:, list(erased.token_ids)].sum(dim=-1)
        spans = self._characters(ids)[:DRAWN]
        before, after = ([float(side[start:end].prod()) for start, end in spans] for side in own)
        tokens = [self.tokenizer.decode(ids[start:end]) for start, end in spans]
        return Chances(fact.answer, tokens, before, after, [float(unl[start]) for start, _ in spans])

    def _characters(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Spans of tokens that decode to whole characters, one token each where that is possible."""
        spans, start = [], 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or not self.tokenizer.decode(ids[start:end]).endswith("\ufffd"):
                spans.append((start, end))
                start = end
        return spans


def checked_text(text: str, what: str) -> str:
    """A text from a visitor, without spaces around it.

    Raises:
        ValueError: It is empty, longer than `LONGEST` characters, or holds half a character.
    """
    found = (text or "").strip()
    if not found:
        raise InputError(f"the {what} is empty; write one")
    if len(found) > LONGEST:
        raise InputError(f"the {what} has {len(found):,} characters; at most {LONGEST} are read, so make it shorter")
    if not found.isascii() and any("\ud800" <= letter <= "\udfff" for letter in found):
        raise InputError(f"the {what} holds half a character; write it anew")
    return found
