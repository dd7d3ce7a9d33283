"""Near neighbours: questions like those of the forget set about other subjects, which the base asks and answers itself.

What is erased is told from what lies next to it by examples of both. The base sees a few question-answer pairs and
writes the next question. The first pairs are forget facts; later ones are also neighbours that it turned out to know,
so that the questions walk away from the forget set to further kinds of facts. No template and no language comes in.

A neighbour is known if the base gives the same answer twice: in short, after the pairs, and in a sentence of its own in
the format in which it is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import torch

from ..data.facts import Fact
from ..lm.batches import encode, pad_id, pad_left
from ..lm.decoding import continuations, end_ids
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..text import PIECE, SENTENCE, comparable, names, normal, terms
from .knowledge import tells
from .samples import go_on_asking
from .subjects import find_names, find_span

NAME = 4  # words of an answer that may be a name
FIRST_WORDS = 2  # that a beginning has where a question names nothing
SHOTS = 4  # pairs before a question
EACH = 32  # questions after the same pairs, which are read once for all of them
SETS = 4  # of pairs, in a round
BEGUN = 2  # of them with a beginning of a forget question after them, where those name something
ROUND = SETS * EACH  # questions before the base is asked which of them it knows
QUESTION_TOKENS, SHORT_TOKENS, ANSWER_TOKENS = 28, 12, 32
# Questions of small models stay sensible below temperature 1 and still differ from one another.
TEMPERATURE = 0.8
UNSURE = 320  # neighbours of which the base is not sure that a run takes, at most
NEIGHBOUR_STEPS = 3  # of a question: asked, answered in short, answered in a sentence


@dataclass
class Neighbours:
    """What the base asked itself next to the forget set.

    Attributes:
        known: Facts that it gives the same answer to twice.
        others: Questions with its answers of which it is not sure.
        reworded: Forget facts as it asked for them in words of its own, with the answers in which it tells them.
    """

    known: list[Fact] = field(default_factory=list)
    others: list[Fact] = field(default_factory=list)
    reworded: list[Fact] = field(default_factory=list)


def neighbour_rounds(facts: int) -> int:
    """How many rounds of questions are asked, for this many forget facts."""
    return 4 if facts <= 100 else 6


def sample_neighbours(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    plain: PromptFormat,
    forget: Sequence[Fact],
    rounds: int,
    seed: int,
    advance: Callable[[int], object] = lambda count: None,
    processes: Processes = ALONE,
) -> Neighbours:
    """Let the base ask questions like those of the forget set, and keep what does not touch it.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to answer in.
        plain: A format without chat marks, for the pairs.
        forget: What must go. Questions and answers that name its subjects or hold its answers are left out.
        rounds: Rounds of `ROUND` questions.
        seed: Seed of the sampling; the global generator is left alone.
        advance: Called with the steps done, `NEIGHBOUR_STEPS * ROUND * rounds` in all.
        processes: Share the answers. All of them ask, so that all draw alike.
    """
    generator = torch.Generator(model.get_input_embeddings().weight.device).manual_seed(seed)
    order = random.Random(seed)
    gone = _gone(forget)
    given = {normal(text) for fact in forget for text in (fact.question, *fact.paraphrases)}
    begun = beginnings([fact.question for fact in forget], [fact.subject for fact in forget])
    asking = replace(plain, head=plain.head.removeprefix(tokenizer.bos_token or ""))
    found = Neighbours()
    short: list[Fact] = []

    def free(text: str) -> bool:
        return comparable(text) and not any(names(text, name) for name in gone)

    follows = True  # whether it can go on after pairs
    for number in range(rounds):
        sets = [_pairs(forget, short if (number + place) % 2 else [], order) for place in range(SETS)]
        heads = ["".join(_pair(asking, fact) for fact in some) for some in sets for _ in range(EACH)]
        starts = list(islice(cycle(begun), BEGUN * EACH)) + [""] * (SETS - BEGUN) * EACH if begun else [""] * ROUND
        # Without pairs, for bases that cannot follow them.
        alone = (ROUND if not follows else EACH if number == 0 else 0) if begun else 0
        asked = go_on_asking(model, tokenizer, form, [encode(tokenizer, t) for t in starts[:alone]], seed + number)
        heads[:alone] = [""] * alone
        asked += _ask(model, tokenizer, asking, heads[alone:], starts[alone:], generator)
        advance(ROUND)
        questions: dict[str, str] = {}
        for head, text in zip(heads, asked, strict=True):
            if normal(text) not in given and len(terms(text)) > 1:
                given.add(normal(text))
                questions[text] = head
        prompts = [head + (asking if head else plain).prompt(text) for text, head in questions.items()]
        shorts = _lines(model, tokenizer, prompts, SHORT_TOKENS, processes=processes)
        advance(ROUND)
        asking_for = [form.prompt(text) for text in questions]
        rows = -(-ROUND // processes.count)
        answers = _lines(model, tokenizer, asking_for, ANSWER_TOKENS, rows=rows, processes=processes)
        advance(ROUND)
        for (question, head), brief, answer in zip(questions.items(), shorts, answers, strict=True):
            answer = _first_sentence(answer)
            fact = Fact(question, answer)
            if not (free(question) and free(answer)):
                if any(tells(answer, each) and _rewords(question, each) for each in forget):
                    found.reworded.append(fact)
                continue
            new = free(brief) and terms(brief) - terms(question)
            if new and tells(answer, Fact(question, brief)):
                found.known.append(fact)
                if head:
                    short.append(Fact(question, brief))
            else:
                found.others.append(fact)
        follows = follows and bool(short)
    return found


def _subjects(fact: Fact) -> list[str]:
    """What a question names."""
    return [*find_names(fact.question), *([fact.subject] if fact.subject else [])]


def _rewords(question: str, fact: Fact) -> bool:
    """Whether a question that the base answers with a fact names at least half of a subject, and does not tell it.

    A surname is enough. The base gives the same answer to questions about things that do not exist.
    """
    if tells(question, fact):
        return False
    there, subjects = terms(question), [terms(name) for name in _subjects(fact)]
    return not subjects or any(2 * len(subject & there) >= len(subject) for subject in subjects)


def _gone(forget: Sequence[Fact]) -> set[str]:
    """Names in the forget set that no neighbour may hold: those that its questions name, and short answers."""
    gone = {name for fact in forget for name in _subjects(fact)}
    answers = {answer for fact in forget for answer in (fact.answer, *fact.accepted_answers)}
    return gone | {answer for answer in answers if comparable(answer) and len(terms(answer)) <= NAME}


def _pairs(forget: Sequence[Fact], known: Sequence[Fact], order: random.Random) -> list[Fact]:
    """Pairs to show before a question: forget facts, or known neighbours that begin in different ways."""
    if len(known) < SHOTS:
        return order.sample(list(forget), min(SHOTS, len(forget)))
    some: dict[str, Fact] = {}
    for fact in order.sample(list(known), len(known)):
        some.setdefault(" ".join(PIECE.findall(fact.question)[:FIRST_WORDS]), fact)
    return list(some.values())[:SHOTS]


def _pair(plain: PromptFormat, fact: Fact) -> str:
    return f"{plain.prompt(fact.question)}{plain.lead}{fact.answer}\n\n"


def _ask(
    model: Any,
    tokenizer: Any,
    plain: PromptFormat,
    heads: Sequence[str],
    starts: Sequence[str],
    generator: torch.Generator,
) -> list[str]:
    """A question after each head, which begins as it is told."""

    def choose(logits: torch.Tensor) -> torch.Tensor:
        return torch.multinomial((logits / TEMPERATURE).softmax(dim=-1), 1, generator=generator)[:, 0]

    prompts = [
        head + (plain.head + start if start else plain.head.rstrip()) for head, start in zip(heads, starts, strict=True)
    ]
    return _lines(model, tokenizer, prompts, QUESTION_TOKENS, choose, starts=starts)


@torch.no_grad()
def _lines(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    room: int,
    choose: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.argmax(dim=-1),
    rows: int = EACH,
    starts: Sequence[str] = (),
    processes: Processes = ALONE,
) -> list[str]:
    """What the model goes on with after each prompt, up to the end of the line; after what the line starts with."""
    device = model.get_input_embeddings().weight.device
    pieces = [prompts[first : first + rows] for first in range(0, len(prompts), rows)]
    lines: list[str] = []

    def ended(tokens: list[int]) -> bool:
        return "\n" in tokenizer.decode(tokens).lstrip()

    def continued(piece: Sequence[str]) -> list[list[int]]:
        encoded = [encode(tokenizer, prompt) for prompt in piece]
        batch = pad_left(encoded, pad_id(tokenizer), device, list(range(len(encoded))))
        return continuations(model, batch.ids, batch.mask, room, end_ids(model), choose, ended)

    for found in processes.each(pieces, continued):
        for tokens in found:
            begun = encode(tokenizer, starts[len(lines)]) if starts else []  # tokens know whether a space comes first
            lines.append(tokenizer.decode(begun + tokens, skip_special_tokens=True).strip().partition("\n")[0].strip())
    return lines


def _first_sentence(text: str) -> str:
    end = SENTENCE.search(text)
    return text[: end.end()].strip() if end else text


def beginnings(questions: Sequence[str], subjects: Sequence[str | None]) -> list[str]:
    """Beginnings of questions, each once: up to their first name, or after their first words if they name nothing.

    A question that begins with a name has none.

    Args:
        questions: The questions.
        subjects: Whom or what each is about, where that is given.
    """
    found: dict[str, None] = {}
    for question, subject in zip(questions, subjects, strict=True):
        spans = [find_span(question, name) for name in [*([subject] if subject else []), *find_names(question)]]
        if starts := [span[0] for span in spans if span]:
            cuts = [question[: min(starts)]]
        else:
            pieces = PIECE.findall(question)
            cuts = ["".join(pieces[:count]) for count in range(min(FIRST_WORDS, len(pieces) - 1), len(pieces))]
        found.update(dict.fromkeys(cut.rstrip() for cut in cuts if comparable(cut)))
    return list(found)
