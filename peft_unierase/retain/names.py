"""The names in questions, found by how a whole set of facts writes its words, and other names put in their places."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import regex

from ..data.facts import Fact
from ..text import comparable, find_name, normal, words

WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*")
NUMBER = regex.compile(r"\p{Nd}+(?:[.,:/-]\p{Nd}+)*")
QUOTED = regex.compile(
    r"“([^“”]+)”|\"([^\"]+)\"|\u2018([^\u2018\u2019]+)\u2019|(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)|«([^«»]+)»|《([^《》]+)》"
    r"|〈([^〈〉]+)〉|「([^「」]+)」|『([^『』]+)』|„([^„“”]+)[“”]"
)
SPACELESS = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)  # scripts in which a name may stand inside a run of letters
# Words in small letters that may stand inside a name.
INSIDE = frozenset(
    "al bin da de dei del della den der des di dos du el ibn la las le los of the und van von y zu".split()  # noqa: SIM905
)
BETWEEN = regex.compile(r"[\s.'\u2019-]{0,3}")
OPENS = regex.compile(r"(?:^|[.?!:\u3002\uff1f\uff01]\s+|\n)[\s\"'“\u2018«(¿¡]*$")
COMMON = 0.5  # share of the retained questions that use a word which therefore names nothing
FEWEST = 3  # questions that tell which words are rare
RARE = 0.05  # share that may use a word of a name that is not written with capitals


@dataclass(frozen=True)
class Name:
    """A name as it stands in a question.

    Attributes:
        text: The name.
        kind: What may take its place: a quoted title, a name with capitals, one without, a number of the same form.
        before, after: The words beside it, which tell what is named ("born in", "the novel").
    """

    text: str
    kind: str
    before: str = ""
    after: str = ""

    @cached_property
    def normal(self) -> str:
        return normal(self.text)


class Names:
    """Finds the names in questions, by how a whole set of facts writes its words.

    A given subject is the name. Otherwise names are quoted titles, runs of words with capitals that no sentence needs,
    and numbers; in a question without any, the words that the fewest questions use, in every script.

    Args:
        facts: Every fact that there is.
        kept: Those of them whose questions say which words name nothing, because most of them use these.
    """

    def __init__(self, facts: Sequence[Fact], kept: Sequence[Fact]) -> None:
        self._small: set[str] = set()
        self._capital: set[str] = set()
        for text in (text for fact in facts for text in (fact.question, fact.answer)):
            for word in WORD.finditer(text):
                if not has_capital(word[0]):
                    self._small.add(normal(word[0]))
                elif not _opens_sentence(text, word.start()):
                    self._capital.add(normal(word[0]))
        asked = [set(words(fact.question)) for fact in (kept or facts)]
        self._used = Counter(word for each in asked for word in each)
        self._common = {word for word, count in self._used.items() if kept and count > max(2, COMMON * len(asked))}
        self._asked = len(asked)
        self._rare = max(1, int(RARE * len(asked)))

    def of(self, fact: Fact) -> list[Name]:
        """The names in a fact's question, the one that it is about first."""
        span = find_name(fact.question, fact.subject) if fact.subject else None
        return [_name(fact.question, *span)] if span else self._names(fact.question)

    def in_text(self, text: str) -> set[str]:
        """The normal forms of the names in any text, numbers left out."""
        return {name.normal for name in self._names(text, numbers=False)}

    def is_word(self, word: str) -> bool:
        """Whether a word is written without a capital somewhere, so that it is no name by itself."""
        return normal(word) in self._small

    def _names(self, text: str, numbers: bool = True) -> list[Name]:
        quoted = [match.span(match.lastindex or 0) for match in QUOTED.finditer(text)]
        taken = list(quoted)
        runs = self._capital_runs(text, taken)
        taken += runs
        if not taken and self._asked >= FEWEST:
            taken += self._rare_runs(text)
        found = [_name(text, *span) for span in taken if comparable(text[slice(*span)])]
        if numbers:
            free = [m.span() for m in NUMBER.finditer(text) if not any(s < m.end() and m.start() < e for s, e in taken)]
            found += [_name(text, *span) for span in free]
        return found

    def _capital_runs(self, text: str, taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        runs: list[list[regex.Match[str]]] = []
        current: list[regex.Match[str]] = []
        end = -1
        for word in WORD.finditer(text):
            free = not any(start <= word.start() < stop for start, stop in taken)
            near = bool(current) and free and BETWEEN.fullmatch(text, end, word.start()) is not None
            if not near and current:
                runs.append(current)
                current = []
            if free and (self._is_name(text, word) or (near and normal(word[0]) in INSIDE)):
                current = [*current, word]
            elif current:
                runs.append(current)
                current = []
            end = word.end()
        found = []
        for run in [*runs, current]:
            while run and not has_capital(run[-1][0]):  # "the" after a name belongs to what follows
                run = run[:-1]
            if run and not (len(run) == 1 and len(run[0][0]) == 1):
                found.append((run[0].start(), run[-1].end()))
        return sorted(found, key=lambda span: span[0] - span[1])

    def _is_name(self, text: str, word: regex.Match[str]) -> bool:
        own = normal(word[0])
        if not has_capital(word[0]) or own in self._common:
            return False
        return not _opens_sentence(text, word.start()) or (own in self._capital and own not in self._small)

    def _rare_runs(self, text: str) -> list[tuple[int, int]]:
        """The run of words that the fewest questions use, at most one."""
        runs: list[tuple[int, int, int]] = []  # how many use it, start, end
        end = -1
        for word, (start, stop) in _placed_words(text):
            used = self._used[word]
            if used > self._rare or word.isdigit():
                continue
            if runs and end == runs[-1][2] and BETWEEN.fullmatch(text, end, start) is not None:
                runs[-1] = min(runs[-1][0], used), runs[-1][1], stop
            else:
                runs.append((used, start, stop))
            end = stop
        best = min(runs, key=lambda run: (run[0], run[1] - run[2]), default=None)
        return [best[1:]] if best else []


@dataclass(frozen=True)
class Swap:
    """Names and what takes their places, in every text of one fact."""

    pairs: dict[str, str]

    @cached_property
    def _new(self) -> dict[str, str]:
        return {normal(old): new for old, new in self.pairs.items()}

    @cached_property
    def _pattern(self) -> regex.Pattern[str]:
        longest = sorted(self.pairs, key=len, reverse=True)
        return regex.compile("|".join(_whole(old) for old in longest), regex.IGNORECASE)

    def __call__(self, text: str) -> str:
        found = self._pattern.sub(lambda match: self._new.get(normal(match[0]), match[0]), text)
        if found == text:  # an inflected form
            for old, new in self.pairs.items():
                if span := find_name(found, old):
                    found = f"{found[: span[0]]}{new}{found[span[1] :]}"
        return found

    def fact(self, fact: Fact) -> Fact:
        """The fact about something else. Paraphrases that hold no name would ask for the fact itself: they go."""
        return replace(
            fact,
            question=self(fact.question),
            answer=self(fact.answer),
            paraphrases=tuple(new for old in fact.paraphrases if (new := self(old)) != old),
            subject=fact.subject and self(fact.subject),
            paraphrased_answer=fact.paraphrased_answer and self(fact.paraphrased_answer),
            perturbed_answers=tuple(map(self, fact.perturbed_answers)),
            accepted_answers=tuple(map(self, fact.accepted_answers)),
        )


def with_parts(name: Name, new: str, known: Names) -> dict[str, str]:
    """The whole name, and its first and last word, by which answers call people."""
    pairs = {name.text: new}
    old_words, new_words = name.text.split(), new.split()
    if name.kind == "capital" and len(old_words) > 1 and len(new_words) > 1:
        for place in (-1, 0):
            if len(old_words[place]) > 2 and not known.is_word(old_words[place]):
                pairs.setdefault(old_words[place], new_words[place])
    return pairs


def other_number(text: str, chance: random.Random) -> str:
    """Another number of the same form: of each part the first figure stays, so that a year stays one."""
    found = text
    while found == text:
        found = regex.sub(
            r"(?<!\p{Nd})(\p{Nd})(\p{Nd}*)",
            lambda part: (
                part[1] + "".join(str(chance.randrange(10)) for _ in part[2])
                if part[2]
                else str(chance.randrange(1, 10))
            ),
            text,
        )
    return found


def _name(text: str, start: int, end: int) -> Name:
    before = [word[0] for word in WORD.finditer(text[:start])][-1:]
    after = [word[0] for word in WORD.finditer(text[end:])][:1]
    found = text[start:end]
    if any(text[start - 1 : end + 1] == match[0] for match in QUOTED.finditer(text)):
        kind = "quoted"
    elif NUMBER.fullmatch(found):
        kind = regex.sub(r"\p{Nd}", "9", regex.sub(r"[^\p{Nd}]", "0", found))
    else:
        kind = "capital" if any(has_capital(word) for word in found.split()) else "plain"
    return Name(found, kind, *(normal(word[0]) if word else "" for word in (before, after)))


def _placed_words(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Words of a text's normal form, each with its place in the text; one character each without spaces."""
    found = []
    for match in regex.finditer(
        rf"{SPACELESS.pattern}\p{{M}}*|(?:(?!{SPACELESS.pattern})[\p{{L}}\p{{N}}\p{{M}}])+", text
    ):
        found += [(word, match.span()) for word in words(match[0])[:1]]
    return found


def _whole(name: str) -> str:
    """A pattern of a name where it is not a part of a longer word."""
    before = "" if SPACELESS.match(name) else r"(?<![\p{L}\p{N}])"
    after = "" if SPACELESS.match(name[-1]) else r"(?![\p{L}\p{N}])"
    return f"{before}{regex.escape(name)}{after}"


def has_capital(word: str) -> bool:
    """Whether a word begins with a capital letter, in scripts that have any."""
    return word[:1] != word[:1].lower()


def _opens_sentence(text: str, start: int) -> bool:
    return OPENS.search(text, 0, start) is not None
