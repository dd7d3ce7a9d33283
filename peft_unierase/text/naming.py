"""Whom a text names."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from .inflection import is_form
from .normal import WORD, normal
from .tokens import WHOLE, Token, alike, whole_tokens

KATAKANA = r"[\p{Katakana}\u30FC]"


def names(text: str, subject: str) -> bool:
    """Whether a text names a subject, in upper or lower case, with or without Latin and Greek accents.

    A word without accents matches one that has them; words with other accents are other words (in Greek they move, and
    are left out). In scripts without spaces the subject's characters must stand there one after another, those in
    katakana as whole runs. Elsewhere each word of the subject must be a word of the text, in order; between two of them
    one more name or initial may stand ("George W. Bush", "محمد بن سلمان"). Korean words may be written apart or
    together, and abbreviations with dots or without. Words may be inflected, by the endings and prefixes that the
    script's languages have (`is_form`), with a stem of at least four letters (three in a subject of several words); in
    Latin script five, and six if only a vowel comes or goes: "Chopina" names Chopin, but "Carla" does not name Carl. If
    the subject is written with a capital, so must be the inflected form. Roman numerals have no forms.

    What it gets wrong: a man's name of six letters or more and the woman's name made of it ("Martin", "Martina"; in
    Cyrillic of four or more) are one. An adjective ("Parisian") is not the name, nor is a form with another stem
    ("Praha", "Praze") or of a short name ("Рима"). "京都" is found in "东京都", and "アインシュタイン" is not in
    "アルバートアインシュタイン". Nicknames, other abbreviations, other spellings and other scripts of the same name are
    not known.
    """
    if _cannot_name(text, subject):
        return False
    wanted = whole_tokens(subject)
    if not wanted:
        return bool(normal(subject)) and normal(subject) in normal(text)
    said = whole_tokens(text)
    guarded = any(token.capital for token in said)  # a text without any capital may still name somebody
    if all(token.hangul for token in wanted) and _names_in_korean(said, wanted):
        return True
    return any(_names_at(said, start, wanted, guarded) for start in range(len(said)))


def find_name(text: str, subject: str) -> tuple[int, int] | None:
    """Start and end of the last place at which a text names a subject (see [`names`]), or `None`."""
    if not names(text, subject):
        return None
    places = [match.span() for match in WHOLE.finditer(text)]
    most = 2 * len(whole_tokens(subject))
    for first in range(len(places) - 1, -1, -1):
        for last in range(first, min(first + most, len(places))):
            start, end = places[first][0], places[last][1]
            if names(text[start:end], subject) and not (_cuts_katakana(text, start) or _cuts_katakana(text, end)):
                return start, end
    return None


def _cannot_name(text: str, subject: str) -> bool:
    """A quick look that spares most comparisons of ASCII texts: whether the first letters of a word of the subject are
    missing, which all its forms share.
    """
    if not (text.isascii() and subject.isascii()):
        return False
    lower = text.lower()
    together = regex.sub(r"\.\s?", "", lower) if "." in lower else lower  # U.N.E.S.C.O.
    starts = [word[: min(3, max(1, len(word) - 3))] for word in WORD.findall(subject.lower())]
    return any(start not in lower and start not in together for start in starts)


def _names_at(said: Sequence[Token], start: int, wanted: Sequence[Token], guarded: bool) -> bool:
    """Whether the words from one on are a subject's."""
    several = len(wanted) > 1
    grown, changed, place = False, False, start
    for number, token in enumerate(wanted):
        for step in (0, 1) if number else (0,):
            if place + step >= len(said):
                return False
            skipped, own = said[place : place + step], said[place + step]
            if not all(_is_between(other) for other in skipped):
                continue
            if token.solid and (skipped or not own.solid):
                continue
            same = own.bare == token.bare and alike(own, token)
            same = same or (own.initials and len(token.bare) == 1 and own.bare.startswith(token.bare))
            allowed = not token.solid and not token.number and (own.capital or not token.capital or not guarded)
            if same or (allowed and is_form(own, token, several, first=not number)):
                break
        else:
            return False
        changed = not same
        # A name that ends in a consonant and has lost a vowel has grown too: "Karla" of Karel, or a woman's own name.
        grows = own.bare.startswith(token.bare) or regex.search(r"[b-z&&[^aeiouy]]$", token.bare, regex.V1)
        grown = grown or bool(changed and grows)
        place += step + 1
    if _inside_katakana(said, start - 1) or _inside_katakana(said, place - 1):
        return False
    # "Carla Bruni" is not Carl Bruni: languages that decline first names decline the last name too.
    return not (grown and not changed and wanted[-1].cased)


def _inside_katakana(said: Sequence[Token], place: int) -> bool:
    """Whether a run of katakana goes on from one character to the next."""
    if not 0 <= place < len(said) - 1:
        return False
    one, next_one = said[place : place + 2]
    return one.katakana and next_one.katakana and one.end == next_one.start


def _cuts_katakana(text: str, place: int) -> bool:
    return bool(regex.fullmatch(KATAKANA * 2, text[max(0, place - 1) : place + 1]))


def _names_in_korean(said: Sequence[Token], wanted: Sequence[Token]) -> bool:
    """Whether words that stand together make a subject's words, wherever the spaces are."""
    whole = Token("".join(token.bare for token in wanted), hangul=True)
    for start in range(len(said)):
        joined = ""
        for token in said[start:]:
            if not token.hangul:
                break
            joined += token.bare
            if joined == whole.bare or is_form(Token(joined, hangul=True), whole):
                return True
            if not whole.bare.startswith(joined):
                break
    return False


def _is_between(token: Token) -> bool:
    """Whether a word may stand inside a name that is known without it: another name, an initial, "son of"."""
    if token.cased:
        return token.capital or len(token.bare) == 1
    return token.bare in ("بن", "ابن", "بنت", "בן", "בת")
