"""Whether a text tells the answer to a question."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import regex

from ..errors import InputError
from .inflection import is_form
from .normal import CLUSTER, HALF, comparable, normal
from .tokens import Token, alike, apart_tokens

# Japanese changes its script between names, content and grammar.
RUN = regex.compile(rf"\p{{Han}}+|[\p{{Katakana}}\u30FC]+|\p{{Hiragana}}+|(?:{CLUSTER})+", regex.V1)
KANA = regex.compile(r"\p{Hiragana}+")
KATAKANA = regex.compile(r"[\p{Katakana}\u30FC]+")
NAME_IN_KATAKANA = regex.compile(r"[\p{Katakana}\u30FC]+(?:[・=゠\s]+[\p{Katakana}\u30FC]+)*")
NUMERAL = regex.compile(r"\p{Numeric_Type=Numeric}+")
PARTS = 6  # of a name in katakana, at most
SHORT, MOST, SOME = 5, 0.75, 0.5  # see `holds`
# All words of Vietnamese are short, and articles are not known by that.
VIETNAMESE = regex.compile(r"[\u01A0\u01A1\u01AF\u01B0\u1EA0-\u1EF9]")
VIETNAMESE_PREPOSITIONS = "o tai la do cua tu vao nam"


def holds(text: str, question: str, answer: str) -> bool:
    """Whether a text tells the answer to a question: whether it holds what is new in the answer.

    New are the answer's words that the question does not have; all of them if it has every one. Short words need not be
    there unless there is nothing else: at most three letters, in lower case or first; two characters in scripts without
    case; one syllable in Korean; single characters and hiragana in scripts without spaces. Order does not matter,
    inflected forms count, and so do forms without Latin accents. A run of katakana, and a Roman numeral, counts whole.

    Numbers count by their value: "1,000", "1 000" and "1000" are one (so is "1.000"), "1,8" is "1.8", "20th" is "20",
    "15:30" one number. If both texts have a unit right after it, it must be the same one.

    Of at most five new words three quarters must be there, and every number; of more, half of the words and half of the
    numbers. In scripts without spaces two characters of Han or kana, or four of another script, weigh as much as a
    word. What is new must be there in runs of at least that many, half as many more if the answer is long: single
    characters occur everywhere.

    It does not see negation ("not Paris" holds "Paris"), other names for the same thing, or numbers in words.

    Raises:
        ValueError: The answer has no letter and no digit.
    """
    if not comparable(answer):
        raise InputError(f"the answer {answer!r} has no letter and no digit, so no text can hold it; leave it out")
    told, asked, said = (apart_tokens(each) for each in (answer, question, text))
    asked_runs, said_runs = "\n".join(_runs(question)), "\n".join(_runs(text))
    asked_names, said_names = _whole_names(question), _whole_names(text)
    every = [token for token in told if not token.solid]
    new = [token for token in every if not any(_same(token, other) for other in asked)]
    runs = [
        rest
        for run in _runs(answer)
        for rest in ([run] * (run not in asked_names) if KATAKANA.fullmatch(run) else _unshared(run, asked_runs))
    ]
    if not new and not runs:
        new, runs = every, _runs(answer)
    opener = every[0] if every and not _opens_in_vietnamese(every[0], answer) else None
    heavy = [token for token in new if not _is_slight(token, token is opener)]
    heavy_runs = [run for run in runs if len(run) > 1 and not KANA.fullmatch(run)]
    if heavy or heavy_runs:
        new, runs = heavy, heavy_runs
    weight = len(new) + sum(_weight(run) * len(run) for run in runs)
    short = weight <= SHORT
    said = [*said, *_joined(said)]
    pairs = [pair for pair in _joined(every) if _tells(pair, said)]
    there = [_tells(token, said) or any(pair.start <= token.start < pair.end for pair in pairs) for token in new]
    least = 1 if short else 1.5  # of a word's weight, that must be there in one part
    found: float = sum(there)
    for run in runs:
        if KATAKANA.fullmatch(run):
            covered = len(run) if {run, *_joins(run, answer)} & said_names else 0
        else:
            covered = _covered(run, said_runs, int(least / _weight(run)))
        found += _weight(run) * covered
    numbers = [was for token, was in zip(new, there, strict=True) if token.number]
    return found >= (MOST if short else SOME) * weight and sum(numbers) >= (1 if short else SOME) * len(numbers)


def _runs(text: str) -> list[str]:
    return RUN.findall(normal(text))


def _whole_names(text: str) -> set[str]:
    """The runs of katakana in a text, and those parts of one name that stand side by side put together."""
    found = set()
    for name in NAME_IN_KATAKANA.findall(normal(text)):
        parts = KATAKANA.findall(name)
        found |= {"".join(parts[n:m]) for n in range(len(parts)) for m in range(n + 1, min(n + PARTS, len(parts)) + 1)}
    return found


def _joins(run: str, answer: str) -> set[str]:
    """The names in an answer, put together, of which a run of katakana is one part."""
    found = [KATAKANA.findall(name) for name in NAME_IN_KATAKANA.findall(normal(answer))]
    return {"".join(parts) for parts in found if run in parts}


def _joined(tokens: Sequence[Token]) -> list[Token]:
    """Each two neighbouring Korean words as one: people write names and compounds apart and together."""
    return [
        Token(one.bare + other.bare, hangul=True, start=one.start, end=other.end)
        for one, other in pairwise(tokens)
        if one.hangul and other.hangul
    ]


def _opens_in_vietnamese(token: Token, answer: str) -> bool:
    return bool(VIETNAMESE.search(answer)) and token.bare not in VIETNAMESE_PREPOSITIONS.split()


def _weight(run: str) -> float:
    """Of a word, what one character of a run tells: alphabets take more of them for a word than Han or kana do."""
    return HALF if regex.match(r"[\p{Han}\p{Katakana}\p{Hiragana}\u30FC]", run) else HALF / 2


def _unshared(run: str, text: str) -> list[str]:
    """What is left of a run without the parts, of two characters or more, that stand in a text."""
    rests, start, place = [], 0, 0
    while place < len(run):
        length = _shared(run, place, text)
        if length >= 2:
            rests.append(run[start:place])
            start = place = place + length
        else:
            place += 1
    return [rest for rest in [*rests, run[start:]] if rest]


def _covered(run: str, text: str, least: int) -> int:
    """How many characters of a run stand in a text in parts of at least so many characters, or all in one part."""
    if NUMERAL.fullmatch(run):
        return len(run) if run in NUMERAL.findall(text) else 0
    if len(run) <= least:
        return len(run) if run in text else 0
    found = place = 0
    while place < len(run):
        length = _shared(run, place, text)
        found += length if length >= least else 0
        place += max(length, 1) if length >= least else 1
    return found


def _shared(run: str, place: int, text: str) -> int:
    """Length of the longest part of a run from a place on that stands in a text."""
    length = 0
    while place + length < len(run) and run[place : place + length + 1] in text:
        length += 1
    return length


def _is_slight(token: Token, opens: bool) -> bool:
    """Whether a word is so short that it may be an article or a preposition."""
    if token.number:
        return False
    if token.hangul:
        return len(token.bare) == 1
    length = len(regex.findall(r"\X", token.bare))
    return length <= 3 and (opens or not token.capital) if token.cased else length <= 2


def _same(token: Token, other: Token) -> bool:
    if token.number and token.unit and other.unit and token.unit != other.unit:
        return False
    return other.bare == token.bare and not other.solid and alike(token, other)


def _tells(token: Token, said: Sequence[Token]) -> bool:
    if token.number:
        return any(_same(token, other) for other in said)
    return any(_same(token, other) or is_form(other, token) or is_form(token, other) for other in said)
