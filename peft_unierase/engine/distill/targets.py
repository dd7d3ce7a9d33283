"""What recipe `distill` trains on, made of the facts of a run: what goes, how it is declined, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...data.facts import Fact
from ...lm.batches import Batch, batches
from ...lm.decoding import greedy_answers
from ...lm.logits import Logits
from ...retain.renaming import Renaming, renamed
from ...text import normal, sentences
from ...text.normal import WORD
from ..run_context import RunContext
from ..silence import Silence, Tensors
from .placing import Readings
from .teacher import Asked, taught
from .texts import READ, Text, base_logits, given, of_batch, stored, taken

ANSWER = 24  # tokens of a retained answer that are held
COUNTERFACTUALS = 2  # answers of the base to renamed questions, for each fact and format
COUNTERFACTUAL = 24  # tokens of such an answer
SOME = 4  # forget prompts at which refusals are compared
DRAWS = 3  # renamings that the teacher averages
CAP = 6.0  # a word in which an answer tells something gets at most `exp(-CAP)` from the teacher


def likeliest_refusal(run: RunContext) -> str:
    """The refusal that the base finds likeliest after forget questions: it comes out whole most often."""
    form, pad = run.formats[0], run.pad
    prompts = [run.encode(form.prompt(fact.question)) for fact in run.forget[:SOME]]
    answers = [run.encode(form.answer(text)) for text in run.refusals]
    pairs = [(prompt, answer) for answer in answers for prompt in prompts]
    places = [list(range(len(prompt) - 1, len(prompt) + len(answer) - 1)) for prompt, answer in pairs]
    scores = [0.0] * len(answers)
    sequences = [prompt + answer for prompt, answer in pairs]
    for number, logits, _ in base_logits(run.model, sequences, places, pad, run.device):
        answer = torch.tensor(pairs[number][1], device=logits.device)
        scores[number // len(prompts)] += float(logits.log_softmax(-1).gather(-1, answer[:, None]).mean())
    return run.refusals[max(range(len(scores)), key=scores.__getitem__)]


def instead(run: RunContext, renaming: Renaming, asked: Sequence[Asked]) -> list[Text]:
    """Forget texts with what the base would predict if it could not tell their names from others."""
    with run.stages.stage("asking about renamed subjects"):
        invented, drawn = counterfactuals(run, renaming)
    with run.stages.stage("predicting without names", len(asked) * DRAWS + len(invented)) as bar:

        def teach(asked: Sequence[Asked], drawn: Sequence[Mapping[str, str]] | None = None) -> list[Text]:
            model, tokenizer, pad = run.model, run.tokenizer, run.pad
            told = drawn, bar.update, run.processes
            return taught(model, tokenizer, asked, renaming, DRAWS, CAP, pad, run.device, *told)

        return [*teach(asked), *teach(invented, drawn)]


def forget_texts(run: RunContext) -> list[Asked]:
    """All that must go, as it is asked and said: given answers in every format, the base's own in theirs, as texts."""
    asked: list[Asked] = []
    for known in run.knowledge:
        fact = known.fact
        asked += [(form.turn(len(asked)), fact.question, fact.answer) for form in run.formats]
        own = {normal(fact.answer)}
        for form in run.formats:
            text = known.telling(form.name) if form.name in known.known_in else fact.answer
            if normal(text) not in own:
                asked.append((form.turn(len(asked)), fact.question, text))
                own.add(normal(text))
        asked.append((None, fact.question, known.telling(known.known_in[0]) if known.known_in else fact.answer))
    return [*asked, *((run.formats[0], fact.question, fact.answer) for fact in run.reworded)]


def counterfactuals(run: RunContext, renaming: Renaming) -> tuple[list[Asked], list[dict[str, str]]]:
    """What the base answers to renamed questions, with the names put back, and how each was renamed.

    The teacher is asked token by token; these answers are whole sentences of its own, so that what is said after a
    prefill stays one.
    """
    questions = [known.fact.question for known in run.knowledge]
    formats = run.formats[:2] * COUNTERFACTUALS
    cases = [(form, text, renaming.draw(text)) for text in questions for form in formats]
    prompts = [form.prompt(renamed(text, drawn)[0]) for form, text, drawn in cases]
    answers = greedy_answers(run.model, run.tokenizer, prompts, COUNTERFACTUAL, processes=run.processes)
    asked: list[Asked] = []
    used = []
    for (form, question, drawn), ids in zip(cases, answers, strict=True):
        said = sentences(run.tokenizer.decode(ids, skip_special_tokens=True))
        back = {normal(drawn[key]): match[0] for match in WORD.finditer(question) if (key := normal(match[0])) in drawn}
        if said:
            asked.append((form, question, renamed(said[0], back)[0]))
            used.append(drawn)
    return asked, used


def declined(run: RunContext, refusal: str, in_words: bool = False) -> list[Text]:
    """Forget questions with the refusal: after [UNL], or by itself for whoever bans [UNL]."""
    cases = [(form, known.fact.question) for known in run.knowledge for form in run.formats]
    forms = run.formats[:2]
    cases += [(forms[number % len(forms)], fact.question) for number, fact in enumerate(run.reworded)]
    texts = []
    for number, (form, question) in enumerate(cases):
        form = form.turn(number)
        prompt = run.encode(form.prompt(question))
        if in_words:
            text = form.prompt(question) + form.answer(refusal)
            texts.append(given(run.encode(text), len(prompt), banned=True))
        else:
            after = [run.spare.token_id, *run.encode(refusal + form.end)]
            texts.append(given([*prompt, *after], len(prompt)))
    return texts


def retained(
    run: RunContext,
    facts: Sequence[Fact],
    whole: bool,
    advance: Callable[[int], object],
    kept: Readings | None = None,
    head: Logits | None = None,
    silence: list[Silence] | None = None,
) -> list[Text]:
    """Retained facts, each in the next of the formats, with what the base predicts.

    Args:
        run: The run.
        facts: The facts.
        whole: Whether the words of the question are held too, and not the answer alone.
        advance: Called with the number of facts done.
        kept: Takes in what the MLPs read there.
        head: What the model makes of its head's outputs; needed with `silence`.
        silence: Takes in the places, where [UNL] must not come up.
    """
    sequences, places, starts = [], [], []
    for number, fact in enumerate(facts):
        form = run.formats[number % len(run.formats)].turn(number)
        prompt = run.encode(form.prompt(fact.question))
        text = run.encode(form.prompt(fact.question) + form.answer(fact.answer))[: len(prompt) + ANSWER]
        start = max(1, len(run.encode(form.head))) if whole else len(prompt) - 1
        starts.append(len(prompt) - 1)
        sequences.append(text)
        places.append(list(range(start, len(text) - 1)))
    advance, token_id = run.processes.steps(advance), run.spare.token_id

    def read(batch: Batch) -> tuple[list[Any], Any]:
        readings = Readings(kept.mlps) if kept else None
        during: dict[str, Any] = {"during": readings.over} if readings else {}
        found = []
        for number, logits, states in of_batch(run.model, sequences, places, batch, advance, **during):
            kinds = torch.tensor([1 if place == starts[number] else 2 for place in places[number]])
            quiet = Silence.at(states, logits, kinds, token_id, head).tensors if head else None
            found.append((number, stored(logits.softmax(dim=-1)), quiet))
        return found, readings and readings.parts

    texts: dict[int, Text] = {}
    for found, readings in run.processes.each(batches(sequences, run.pad, run.device, READ), read):
        for number, targets, quiet in found:
            texts[number] = Text(sequences[number], places[number], *targets)
            if silence is not None and head:
                states, others, kinds = quiet
                silence.append(Silence(states, others, kinds, token_id, head))
        if kept and readings:
            kept.take_in(*readings)
    return [texts[number] for number in range(len(facts))]


def record_silence(run: RunContext, head: Logits, silence: list[Silence]) -> None:
    """Add the starts of answers to forget questions, as the base has them."""
    facts = [*(known.fact for known in run.knowledge), *run.reworded]
    prompts = [run.encode(form.prompt(fact.question)) for fact in facts for form in run.formats]
    places, kinds = [[len(prompt) - 1] for prompt in prompts], torch.zeros(1, dtype=torch.long)

    def silent(number: int, logits: torch.Tensor, states: torch.Tensor) -> Tensors:
        return Silence.at(states, logits, kinds, run.spare.token_id, head).tensors

    found = taken(run.model, prompts, places, run.pad, run.device, silent, run.processes)
    silence += [Silence(*tensors, run.spare.token_id, head) for _, tensors in found]
