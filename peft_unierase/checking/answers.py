"""What an erasure did to a model's answers: recall of the reference answers, and how it declines.

It judges text and token ids; how the erasure was made it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.facts import Fact, best_recall
from ..lm.decoding import end_ids, greedy_answers
from ..lm.formats import PromptFormat


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    Attributes:
        text: Decoded without special tokens.
        recall: ROUGE-L recall of the best recalled right answer, 0 to 1.
        refused: Whether [UNL] is among its tokens.
        ended: Whether the model ended it by itself.
    """

    text: str
    recall: float
    refused: bool
    ended: bool


@dataclass(frozen=True)
class Figures:
    """Means over the answers to one set of questions; `declined_well` is `None` where no answer holds [UNL]."""

    count: int
    recall: float
    refusal_rate: float
    declined_well: float | None


def answer_questions(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    form: PromptFormat,
    token_id: int | None = None,
    max_new_tokens: int = 64,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Answer]:
    """Greedy answers to the questions of facts, with their recall of the facts' answers.

    Args:
        model: The model as it is to be judged (adapter on or off).
        tokenizer: Its tokenizer.
        facts: What to ask.
        form: How to ask.
        token_id: [UNL]'s id, to see which answers hold it.
        max_new_tokens: Longest answer.
        advance: Called with the number of questions finished.

    Raises:
        ValueError: A fact's answer has no letter and no digit.
    """
    ends = end_ids(model)
    prompts = [form.prompt(fact.question) for fact in facts]
    tokens = greedy_answers(model, tokenizer, prompts, max_new_tokens, advance=advance)
    answers = []
    for fact, ids in zip(facts, tokens, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append(Answer(text, best_recall(fact, text), token_id in ids, bool(ids) and ids[-1] in ends))
    return answers


def figures(answers: Sequence[Answer], refusals: Collection[str] = ()) -> Figures:
    """Means over answers.

    Args:
        answers: At least one.
        refusals: Whole sentences that count as declining well. An answer that holds [UNL] declines well if it ended by
            itself and is one of them to the letter, which is strict: a good sentence that is not listed counts against.
    """
    refused = [answer for answer in answers if answer.refused]
    well = sum(answer.ended and answer.text in refusals for answer in refused)
    return Figures(
        count=len(answers),
        recall=sum(answer.recall for answer in answers) / len(answers),
        refusal_rate=len(refused) / len(answers),
        declined_well=well / len(refused) if refused else None,
    )
