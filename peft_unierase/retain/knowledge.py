"""What a model knows of facts: what it says when it is asked, and whether it prefers the right answers to wrong ones.

People write short answers and models answer in sentences, so how likely a model finds the tokens of the right answer
says little. What counts is whether its own answer holds what the right one tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.facts import Fact
from ..lm.batches import encode, last_logits, pad_id
from ..lm.decoding import greedy_answers
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..text import comparable, holds, sentences

LONGEST = 64  # tokens of an answer
# Nats a token by which the right answer must be likelier than the likeliest wrong one to count as known. A model that
# never saw the facts of TOFU reaches 2 with 7 % of them and 3 with 2 %, one that learnt them 2.7 with all.
PREFERRED = 3.0
NAMED = 5  # questions in a message


@dataclass(frozen=True)
class Knowledge:
    """What a model knows of one fact.

    Attributes:
        fact: The fact.
        said: Its greedy answers, by name of the prompt format.
        known_in: Names of the formats in which its answer tells the fact.
        margin: Nats a token by which the right answer is likelier than the likeliest wrong one; `None` without any.
    """

    fact: Fact
    said: dict[str, str]
    known_in: tuple[str, ...]
    margin: float | None = None

    @property
    def preferred(self) -> bool:
        """Whether the right answer is clearly likelier than every wrong one."""
        return self.margin is not None and self.margin >= PREFERRED

    @property
    def known(self) -> bool:
        """Whether the model tells the fact in some format, or clearly prefers it."""
        return bool(self.known_in) or self.preferred

    def telling(self, form: str) -> str:
        """Its answer in a format up to the sentence that tells the fact; models go on after it."""
        begun = ""
        for part in sentences(self.said[form]):
            begun = f"{begun} {part}".strip()
            if tells(begun, self.fact):
                return begun
        return self.said[form]


def ask(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    formats: Sequence[PromptFormat],
    advance: Callable[[int], object] = lambda count: None,
    processes: Processes = ALONE,
) -> list[Knowledge]:
    """Ask a model for facts in every format.

    Args:
        model: As it is to be judged (adapters on or off).
        tokenizer: Its tokenizer.
        facts: What to ask for.
        formats: How to ask.
        advance: Called with the questions answered, `len(facts) * len(formats)` in all.
        processes: Share the questions.
    """
    said: list[dict[str, str]] = [{} for _ in facts]
    for form in formats:
        prompts = [form.prompt(fact.question) for fact in facts]
        answers = greedy_answers(model, tokenizer, prompts, LONGEST, advance=advance, processes=processes)
        for own, ids in zip(said, answers, strict=True):
            own[form.name] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return judged(facts, said, lambda pairs: log_likelihoods(model, tokenizer, pairs, formats[0]).tolist())


def judged(
    facts: Sequence[Fact],
    said: Sequence[dict[str, str]],
    likely: Callable[[Sequence[tuple[str, str]]], Sequence[float]],
) -> list[Knowledge]:
    """What follows from a model's answers and likelihoods.

    Args:
        facts: What was asked for.
        said: Its greedy answers to each, by name of the prompt format.
        likely: Mean log-probability a token, in nats, of answers to questions, given as pairs.
    """
    return [
        Knowledge(fact, own, tuple(name for name, text in own.items() if tells(text, fact)), margin)
        for fact, own, margin in zip(facts, said, _margins(facts, likely), strict=True)
    ]


def tells(text: str, fact: Fact) -> bool:
    """Whether a text tells a fact: it holds what is new in one of the fact's right answers."""
    answers = [answer for answer in (fact.answer, *fact.accepted_answers) if comparable(answer)]
    return any(holds(text, fact.question, answer) for answer in answers)


def summary(found: Sequence[Knowledge]) -> dict[str, Any]:
    """How many facts are known, told in which format, and preferred; a JSON object without any text of the facts."""
    known_in = {name: sum(name in each.known_in for each in found) for name in (found[0].said if found else ())}
    compared = [each for each in found if each.margin is not None]
    return {
        "facts": len(found),
        "known": sum(each.known for each in found),
        "known_in": known_in,
        "preferred": sum(each.preferred for each in compared) if compared else None,
    }


def sentence(found: Mapping[str, Any]) -> str:
    """A summary in words."""
    ways = [f"{count} in {name}" for name, count in found["known_in"].items()]
    if found["preferred"] is not None:
        ways.append(f"{found['preferred']} clearly preferred to wrong answers")
    return f"The base knows {found['known']} of {found['facts']} facts: tells {', '.join(ways)}."


def unknown_named(found: Sequence[Knowledge]) -> str:
    """Which facts are not known, the first few by name."""
    unknown = [each.fact for each in found if not each.known]
    some = "; ".join(repr(fact.question[:80]) for fact in unknown[:NAMED])
    more = f"; and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"the base does not know {len(unknown)} of {len(found)} forget facts ({some}{more})"


def certainties(model: Any, tokenizer: Any, facts: Sequence[Fact], form: PromptFormat) -> torch.Tensor:
    """For each fact the geometric mean of its answer's tokens' probabilities, given those before, `(facts,)`."""
    return log_likelihoods(model, tokenizer, [(fact.question, fact.answer) for fact in facts], form).exp()


def log_likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], form: PromptFormat) -> torch.Tensor:
    """Mean log-probability a token of answers to questions, in nats, `(pairs,)` in fp32."""
    prompts = [encode(tokenizer, form.prompt(question)) for question, _ in pairs]
    answers = [encode(tokenizer, form.answer(answer)) for _, answer in pairs]
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    found = torch.zeros(len(pairs))
    keep = [len(answer) + 1 for answer in answers]
    for number, logits in last_logits(model, sequences, keep, pad_id(tokenizer)):
        target = torch.tensor(answers[number], device=logits.device)
        found[number] = logits[:-1].log_softmax(dim=-1).gather(-1, target[:, None]).mean().cpu()
    return found


def _margins(
    facts: Sequence[Fact], likely: Callable[[Sequence[tuple[str, str]]], Sequence[float]]
) -> list[float | None]:
    compared = [fact for fact in facts if fact.perturbed_answers]
    right = [(fact.question, answer) for fact in compared for answer in (fact.answer, *fact.accepted_answers)]
    wrong = [(fact.question, answer) for fact in compared for answer in fact.perturbed_answers]
    found = iter(likely([*right, *wrong]))
    best = [max(next(found) for _ in range(1 + len(fact.accepted_answers))) for fact in compared]
    others = [max(next(found) for _ in fact.perturbed_answers) for fact in compared]
    margins = iter([own - other for own, other in zip(best, others, strict=True)])
    return [next(margins) if fact.perturbed_answers else None for fact in facts]
