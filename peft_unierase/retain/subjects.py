"""What a question is about: its subject, given or found, and the token at which the subject has been read.

Found means: a run of capitalised words, or a quoted title, that other facts of the set ask about too. Questions without
one, or in a script without capitals, get none: a wrong subject is worse than no subject.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.facts import Fact
from ..errors import InputError
from ..lm.batches import encode
from ..lm.formats import PromptFormat
from ..text import find_name

LETTER = r"[^\W\d_]"
# Letters and digits, joined by hyphens, apostrophes or the dots of abbreviations; an initial keeps its dot.
WORD = re.compile(rf"(?:{LETTER}\.)+|\w+(?:[-'\u2019.]\w+)*[+#]*")
QUOTED = re.compile(
    r"“([^“”]+)”|\"([^\"]+)\"|\u2018([^\u2018\u2019]+)\u2019|(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)|«([^«»]+)»"
    r"|《([^《》]+)》|〈([^〈〉]+)〉|「([^「」]+)」|『([^『』]+)』|„([^„“”]+)[“”]"
)
ARTICLE = re.compile(r"\b(?:a|an|the|this) $", re.IGNORECASE)
POSSESSIVE = re.compile("['\u2019]s$")
# Words inside a name that are not capitalised.
PARTICLES = (
    "al af ap ben bin bint da de dei del della den der des di do dos du e el ibn la las le los of the und van von y zu"
)
# Words with a capital that name nothing: they begin sentences, address somebody, or tell dates.
PLAIN = """
    a about according after also although an and any are as at author based because before being besides between both
    briefly but by can choose compare could deal define describe did discuss do does during each elaborate explain find
    for from give given had has have he her here his how i i'd i'm i've identify if in including into is it its
    kindly let list many may me might mr mrs ms my name no not of on one or our outline over please provide regarding
    select share shall she should since so some specify state still suppose summarise summarize talk tell than that
    the their then there these they this those though through to under until up us was we were what what's when where
    where's which while who who's whom whose why will with within without would write yes you your
    january february march april june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday
"""
ABBREVIATIONS = "dr mr mrs ms st prof jr sr"
# How many times as many questions must ask about a name in the answer than about any in the question.
MANY_MORE = 2


@dataclass(frozen=True)
class _Run:
    """A candidate for a subject.

    Attributes:
        text: As it is written in the question.
        words: How many words it has.
        opens_sentence: Whether its capital may come from its place alone.
        attribute: Whether it only says which kind of thing is meant ("the LGBTQ+ author").
    """

    text: str
    words: int
    opens_sentence: bool = False
    attribute: bool = False


def find_subjects(facts: Sequence[Fact]) -> list[str | None]:
    """The subject of each question, as it is written there, or `None` where none can be told with confidence.

    A subject that a fact gives is taken if it occurs in the question, in upper or lower case; if it does not, the fact
    has none, and nothing is guessed in its place. Otherwise the candidates are quoted titles and runs of capitalised
    words. What several facts hold comes first, then what has several words, then what most questions ask about, then
    the longest. A question whose answer names something that many more questions ask about asks for the subject
    ("Who was born in Kuwait City?") and does not hold it.

    Args:
        facts: The whole set: what its facts share tells subjects from other names.
    """
    candidates = [_runs(fact.question) for fact in facts]
    names = {run.text for runs in candidates for run in runs}
    in_questions = {name: _count(name, [fact.question for fact in facts]) for name in names}
    in_facts = {name: _count(name, [f"{fact.question}\n{fact.answer}" for fact in facts]) for name in names}

    def rank(run: _Run) -> tuple[bool, bool, bool, int, int]:
        several = in_facts[run.text] > 1
        return not run.attribute, several, run.words > 1, in_questions[run.text], len(run.text)

    subjects: list[str | None] = []
    for fact, runs in zip(facts, candidates, strict=True):
        if fact.subject:
            span = find_span(fact.question, fact.subject)
            subjects.append(fact.question[slice(*span)] if span else None)
            continue
        # A name that runs into its neighbour ("the Booker Prize Ana Lee won") is known from other questions.
        inside = [name for run in runs for name in names if name != run.text and _whole(name).search(run.text)]
        runs = runs + [_Run(name, len(name.split())) for name in inside if in_facts[name] > 1]
        runs = [run for run in runs if not run.opens_sentence or in_facts[run.text] > 1]
        best = max(runs, key=rank).text if runs else None
        told = [
            run.text for run in _runs(fact.answer) if run.text in names and not _whole(run.text).search(fact.question)
        ]
        asked_for = max((in_questions[name] for name in told), default=0)
        subjects.append(None if best is None or asked_for >= MANY_MORE * in_questions[best] else best)
    return subjects


def sure_subjects(facts: Sequence[Fact]) -> list[str | None]:
    """The subject of each question where it is beyond doubt, for whoever erases everything about it; else `None`.

    Beyond doubt is a subject that the fact gives, one that several questions name, or the only name in a question whose
    answer repeats it.
    """
    found = find_subjects(facts)
    questions = [fact.question for fact in facts]
    subjects: list[str | None] = []
    for fact, subject in zip(facts, found, strict=True):
        sure = bool(subject and fact.subject)
        if subject and not sure:
            alone = all(run.text in subject or run.attribute for run in _runs(fact.question))
            sure = _count(subject, questions) > 1 or (alone and _count(subject, [fact.answer]) > 0)
        subjects.append(subject if sure else None)
    return subjects


def find_names(text: str) -> list[str]:
    """Every name in a text: quoted titles and runs of capitalised words, the longest of those that overlap."""
    runs = [run.text for run in _runs(text) if not run.opens_sentence and not run.attribute]
    return [name for name in dict.fromkeys(runs) if not any(name != other and name in other for other in runs)]


def find_span(question: str, subject: str) -> tuple[int, int] | None:
    """Start and end of the last occurrence of a subject in a question: whole words first, then exact case, then any,
    then inflected forms (`text.names`).

    The last one, because the state there has seen most of the question.
    """
    for flags in (0, re.IGNORECASE):
        for pattern in (_whole(subject, flags), re.compile(re.escape(subject), flags)):
            if found := list(pattern.finditer(question)):
                return found[-1].span()
    return find_name(question, subject)


def subject_position(tokenizer: Any, form: PromptFormat, question: str, subject: str) -> int:
    """Index, among the tokens of `form.prompt(question)`, of the last token of the subject's last occurrence.

    Args:
        tokenizer: Fast tokenizers tell where their tokens lie; with others the decoded text is measured.
        form: The prompt format.
        question: The question.
        subject: What it is about.

    Raises:
        ValueError: The subject does not occur in the question.
    """
    span = find_span(question, subject)
    if span is None:
        raise InputError(
            f"the subject {subject!r} does not occur in the question {question!r}; give it as written there"
        )
    text, end = form.prompt(question), len(form.head) + span[1]
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # The last one: a character of several bytes may be several tokens with the same place.
        return max(index for index, (start, stop) in enumerate(offsets) if start < end <= stop)
    wanted, ids = len(_solid(text[:end])), encode(tokenizer, text)
    read = (len(_solid(tokenizer.decode(ids[: index + 1]))) for index in range(len(ids)))
    return next((index for index, length in enumerate(read) if length >= wanted), len(ids) - 1)


def _solid(text: str) -> str:
    """A text without its spaces, which decoding may move, and without half a character at its end."""
    return "".join(text.split()).rstrip("\ufffd")


def _count(name: str, texts: Sequence[str]) -> int:
    pattern = _whole(name)
    return sum(name in text and pattern.search(text) is not None for text in texts)


def _whole(text: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", flags)


def _runs(question: str) -> list[_Run]:
    """Quoted titles and runs of capitalised words; a run that opens a sentence also without its first word."""
    titles = [
        (match.start(), match.end(), next(group for group in match.groups() if group).strip(" ,.?!;:"))
        for match in QUOTED.finditer(question)
    ]
    runs = [_Run(text, len(text.split())) for *_, text in titles if text and not text[:1].islower()]
    words = [
        word for word in WORD.finditer(question) if not any(start <= word.start() < end for start, end, _ in titles)
    ]
    current: list[re.Match[str]] = []
    for place, word in enumerate(words):
        if current:
            before = words[place - 1]
            joined = question[before.end() : word.start()].strip() in ("", "&") and not POSSESSIVE.search(before[0])
            if not (joined and (_is_capital(word[0]) or word[0].lower() in PARTICLES.split())):
                runs += _closed(question, current)
                current = []
        if current or _names(word[0]):
            current.append(word)
    return runs + _closed(question, current)


def _closed(question: str, words: list[re.Match[str]]) -> list[_Run]:
    while words and not _names(words[-1][0]):
        words = words[:-1]  # particles and plain words belong to what follows
    if not words:
        return []
    start, end = words[0].start(), words[-1].start() + len(POSSESSIVE.sub("", words[-1][0]))
    alone = len(words) == 1
    opens = _opens_sentence(question, start)
    found = [_Run(question[start:end], len(words), opens and alone, alone and _attribute(question, start, end))]
    if opens and not alone and _names(words[1][0]):
        found.append(_Run(question[words[1].start() : end], len(words) - 1))
    return found


def _attribute(question: str, start: int, end: int) -> bool:
    return bool(ARTICLE.search(question[:start]) and re.match(r" [a-z]", question[end:]))


def _is_capital(word: str) -> bool:
    return word[0].isupper()


def _names(word: str) -> bool:
    return _is_capital(word) and POSSESSIVE.sub("", word).lower().replace("\u2019", "'") not in PLAIN.split()


def _opens_sentence(question: str, start: int) -> bool:
    before = question[:start].rstrip(" \t\n\"'“\u2018«(")
    if not before or before[-1] not in ".?!:":
        return not before
    last = WORD.findall(before)[-1:] or [""]
    return not (before[-1] == "." and (len(last[0].rstrip(".")) == 1 or last[0].lower() in ABBREVIATIONS.split()))
