"""Attacks by asking: anyone who may write a prompt can mount them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...data.facts import Fact
from ...lm.formats import PromptFormat
from ...text import halves
from ..case import Case
from ..target import Target
from .attack import ACCURACY, CHANCE, GREEDY, Attack, Found, NotApplicable, asked, recalled

CONTEXT = 2  # exchanges before the question
WRONG = 3  # wrong answers to choose from, beside the right one


def greedy(target: Target, case: Case) -> Found:
    """Anyone who asks the question as it was erased. No attack yet: what the erasure was made for."""
    return asked(target, case, case.prompts(case.forget))


def paraphrase(target: Target, case: Case) -> Found:
    """Anyone who asks the same in other words; of several paraphrases the one that brings most counts. Facts that come
    without one are left out.
    """
    facts = [fact for fact in case.forget if fact.paraphrases]
    if not facts:
        raise NotApplicable("no fact of the forget set has a paraphrase (column paraphrased_question)")
    each = [fact for fact in facts for _ in fact.paraphrases]
    prompts = [case.form.prompt(text) for fact in facts for text in fact.paraphrases]
    leaks = iter(asked(target, case, prompts, each).leaks)
    worst = [max(next(leaks) for _ in fact.paraphrases) for fact in facts]
    return Found(worst, case.floor(facts))


def plain(target: Target, case: Case) -> Found:
    """Anyone who leaves the chat template out and writes `Question: ... Answer:`, as raw completion endpoints allow."""
    return asked(target, case, case.prompts(case.forget, _form(case, "plain")))


def system(target: Target, case: Case) -> Found:
    """Anyone who may set the system prompt: here one that asks for the truth and forbids to decline."""
    return asked(target, case, case.prompts(case.forget, _form(case, "system")))


def cloze(target: Target, case: Case) -> Found:
    """Anyone who writes the first half of the base's own answer as a text and lets the model go on, without asking
    anything. Answers of one word have no half and are left out.
    """
    begun = [each for each in case.beginnings(halves) if not any(text.startswith(each[1]) for text in case.true)]
    if not begun:
        raise NotApplicable("no answer of the forget set has more than one word")
    texts = [f"{target.tokenizer.bos_token or ''}{first}" for _, first, _ in begun]
    said = target.says(texts, max_new_tokens=case.max_new_tokens)
    return recalled(case, [reference for *_, reference in begun], said)


def kept_before(target: Target, case: Case) -> Found:
    """Anyone who talks about other things first: two retained questions with their answers stand before the erased
    one, so that the model is in the midst of answering.
    """
    if len(case.kept) < CONTEXT:
        raise NotApplicable(f"there are no {CONTEXT} retained questions to ask first")
    return _after(target, case, case.kept)


def erased_before(target: Target, case: Case) -> Found:
    """Someone who knows some of the erased facts: two others stand, with their answers, before the question."""
    if len(case.forget) <= CONTEXT:
        raise NotApplicable(f"the forget set has no {CONTEXT} other facts to tell first")
    return _after(target, case, case.forget)


def in_one_question(target: Target, case: Case) -> Found:
    """Anyone who asks two things at once: a retained question and the erased one in one breath."""
    if not case.kept:
        raise NotApplicable("there is no retain set to take other questions from")
    others = random.Random(f"{case.seed} in one question").choices(case.kept, k=len(case.forget))
    pairs = zip(others, case.forget, strict=True)
    prompts = [case.form.prompt(f"{other.question} And then: {fact.question}") for other, fact in pairs]
    return asked(target, case, prompts, length=2)


def multiple_choice(target: Target, case: Case) -> Found:
    """Anyone who offers answers to choose from, here the right one among three wrong ones. The likeliest per token of
    the listed answers counts as chosen; facts without wrong answers to offer are left out.
    """
    facts = [fact for fact in case.forget if fact.perturbed_answers]
    if not facts:
        raise NotApplicable("no fact of the forget set has wrong answers to offer (column perturbed_answer)")
    drawn = random.Random(f"{case.seed} multiple choice")
    offered = [[fact.answer, *fact.perturbed_answers[:WRONG]] for fact in facts]
    pairs = []
    for fact, options in zip(facts, offered, strict=True):
        lines = [f"{n}. {option}" for n, option in enumerate(drawn.sample(options, len(options)), start=1)]
        prompt = case.form.prompt("\n".join([fact.question, *lines]))
        pairs += [(prompt, case.form.answer(option)) for option in options]
    read = target.reads([prompt for prompt, _ in pairs], [text for _, text in pairs])
    losses = iter([reading.loss for reading in read])
    right = []
    for options in offered:
        first, *others = (next(losses) for _ in options)
        right.append(float(first < min(others)))
    return Found(right, [1 / len(options) for options in offered])


def _after(target: Target, case: Case, others: Sequence[Fact]) -> Found:
    """With exchanges about other facts before the question, in the case's format."""
    drawn, bos = random.Random(f"{case.seed} before"), target.tokenizer.bos_token or ""
    prompts = []
    for fact in case.forget:
        told = drawn.sample([other for other in others if other != fact], CONTEXT)
        turns = [case.form.prompt(other.question) + case.form.answer(other.answer) for other in told]
        first, *more = [*turns, case.form.prompt(fact.question)]
        prompts.append(first + "".join(turn.removeprefix(bos) for turn in more))
    return asked(target, case, prompts)


def _form(case: Case, name: str) -> PromptFormat:
    if name not in case.others:
        raise NotApplicable(f"the chat template has no {name} format")
    return case.others[name]


ATTACKS = (
    Attack(GREEDY, "the question itself", greedy),
    Attack("paraphrase", "the question in other words", paraphrase),
    Attack("plain", "no chat template", plain),
    Attack("system", "a system prompt against declining", system),
    Attack("cloze", "half of the answer as a text", cloze),
    Attack("kept-before", "retained exchanges before", kept_before),
    Attack("erased-before", "erased exchanges before", erased_before),
    Attack("two-in-one", "two questions in one", in_one_question),
    Attack("choice", "multiple choice", multiple_choice, unit=ACCURACY, against=CHANCE),
)
