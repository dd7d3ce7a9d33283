"""What a base knows about a name, a topic or what a text is about: questions that it asks itself, with its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.facts import Fact
from ..lm.formats import PromptFormat
from ..retain.knowledge import certainties
from ..retain.samples import answered, word_weights
from ..retain.subjects import find_names
from ..text import names, normal, sentences, terms

# Kinds of questions: who and what, when, where, why, how, with whom. They open what a base would not begin by itself.
TEMPLATES = (
    "Who is {}?",
    "What is {}?",
    "What is {} known for?",
    "When was {} born?",
    "Where was {} born?",
    "Where is {}?",
    "What is the full name of {}?",
    "What does {} do?",
    "Who are the parents of {}?",
    "What has {} written?",
    "What has {} won?",
    "What is the profession of {}?",
    "Who belongs to {}?",
    "When was {} founded?",
    "Why is {} important?",
    "How does {} work?",
    "What happened to {}?",
    "Tell me about {}.",
)
FEWEST = 2  # times that a text names what it is about
MOST_SUBJECTS = 8
SHARED = 0.5  # of an answer's answer-only words, weighed by how rare its words are, that a text tells too


def subjects_of(text: str) -> list[str]:
    """What a text is about: the names that several of its sentences say, the most frequent first; at most eight."""
    parts = sentences(text)
    found = dict.fromkeys(name for part in parts for name in find_names(part))
    counts = {name: count for name in found if (count := sum(names(part, name) for part in parts)) >= FEWEST}
    # Of a name and a longer one that is said as often, the longer one is meant.
    whole = [n for n in counts if not any(n != other and n in other and counts[n] == counts[other] for other in counts)]
    return sorted(whole, key=lambda name: -counts[name])[:MOST_SUBJECTS]


def answers_to_templates(model: Any, tokenizer: Any, form: PromptFormat, subject: str) -> list[Fact]:
    """What the base answers to `TEMPLATES` about a subject."""
    return answered(model, tokenizer, form, [template.format(subject) for template in TEMPLATES], subject=subject)


def without_repeats(facts: Sequence[Fact]) -> list[Fact]:
    """The facts, each question once."""
    return list({normal(fact.question): fact for fact in reversed(facts)}.values())[::-1]


def confident(
    model: Any, tokenizer: Any, form: PromptFormat, facts: Sequence[Fact], least: float
) -> list[tuple[Fact, float]]:
    """Facts with the geometric mean of their answers' tokens' probabilities, those that reach `least`."""
    if not facts:
        return []
    sure = certainties(model, tokenizer, facts, form).tolist()
    return [(fact, each) for fact, each in zip(facts, sure, strict=True) if each >= least]


def told_by(text: str, facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose answers tell what a text tells."""
    weigh = word_weights(facts)
    words = terms(text)
    kept = []
    for fact in facts:
        own = terms(fact.answer) - terms(fact.question)
        if own and weigh(own & words) >= SHARED * weigh(own):
            kept.append(fact)
    return kept


def not_about(facts: Sequence[Fact], subjects: Sequence[str]) -> list[Fact]:
    """The facts that name none of the subjects."""
    return [fact for fact in facts if not any(names(f"{fact.question}\n{fact.answer}", each) for each in subjects)]
