"""What is the same text, its words and its sentences, in every language and script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import regex

SOLID = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}"
)  # scripts that put no spaces between words
CLUSTER = rf"(?=[[\p{{L}}\p{{N}}]&&[{SOLID}]])\X"
# Scripts part a word as spaces do: particles and endings are attached to foreign names and to numbers (BTS는, 1954년).
LATIN = r"(?:[\p{Latin}\p{N}--[\p{Han}]]\p{M}*)+"
HANGUL = r"(?:\p{Hangul}\p{M}*)+"
OTHER = rf"(?:[\p{{L}}--[\p{{Latin}}\p{{Hangul}}{SOLID}]]\p{{M}}*)+"
WORD = regex.compile(rf"{CLUSTER}|{LATIN}|{HANGUL}|{OTHER}", regex.V1)
TOKEN = regex.compile(rf"(?P<solid>{CLUSTER})|{LATIN}[+#]*|{HANGUL}|{OTHER}", regex.V1)  # C++ and C# are not C
PIECE = regex.compile(rf"\s*(?:{CLUSTER}|[^\s{SOLID}]+|\S)", regex.V1)

# A sentence: a mark that closes one in any script, or a full stop that a capital, or a letter without case, follows.
# Short words with a capital before it are initials and abbreviations.
SENTENCE = regex.compile(
    r"(?:[?!\u037e\u055e\u061f\u0964\u0965\u1362\u1367\u17d4\u203d\u3002\uff01\uff0e\uff1f\uff61]+[\p{Pe}\p{Pf}\p{Po}]?"
    r"|(?<!(?<!\w)\p{Lu}\w{0,2})\.(?=\s+[\p{Lu}\p{Lo}]))|(?<=\S\s*)\n"
)

# What a reader does not see: joiners, soft hyphens, marks of direction, variation selectors, byte order marks. Vowel
# signs of Arabic and Hebrew and the tatweel too, because people write them or not; stress marks on Cyrillic; the nukta.
UNSEEN = regex.compile(
    r"[\p{Cf}\p{DI}\u0640\u064B-\u065F\u0670\u06D6-\u06ED\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7]"
    r"|(?<=\p{Cyrillic})[\u0300\u0301]|\u093C"
)
# Hindi writes a nasal before a consonant of its own row as that letter or as a dot.
NASAL = regex.compile("\u0901|ङ्(?=[क-घ])|ञ्(?=[च-झ])|ण्(?=[ट-ढ])|न्(?=[त-ध])|म्(?=[प-भ])")
# Full-width and half-width forms, Latin ligatures, and the presentation forms of Arabic and Hebrew in PDF files.
# Not NFKC for all of a text: 2⁵ would be 25.
FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFC\uFF01-\uFFEE\u3000]+")
# One letter, written in two ways by people and keyboards: alef with and without hamza, Persian and Arabic yeh and kaf,
# heh for teh marbuta, yo without its dots, the apostrophes.
ALIKE = str.maketrans("أإآٱىیکةЁё\u2019\u2018\u02bc\u02bb", "ااااييكهЕе''''")

HALF = 0.5  # of a word, what one character of a script without spaces tells


def normal(text: str) -> str:
    """A text without what does not make it another text.

    NFC, case folding, white space folded, and nothing that cannot be seen; digits of every script as ASCII digits;
    full-width and presentation forms as ordinary letters. Arabic and Hebrew lose their vowel signs and Arabic the hamza
    on alef and the dots on teh marbuta, Cyrillic the dots of yo and stress marks, Devanagari the nukta; its nasals are
    written as a dot. Latin accents stay, because they tell words apart; Turkish ı is i.
    """
    return " ".join(folded(plain(text)).split())


def words(text: str) -> list[str]:
    """The words of a text's normal form: runs of letters, marks and digits of one script (digits go with Latin).

    In scripts without spaces each grapheme cluster is one word. On ASCII they are exactly those of `rouge-score`.
    """
    return WORD.findall(normal(text))


def terms(text: str) -> set[str]:
    """What sets of words are made of where texts are compared by what they share: words, and pairs of characters.

    In scripts without spaces one character tells nothing, so there neighbours are taken together, as search engines do.
    """
    found: set[str] = set()
    together: list[str] = []
    end = 0
    for token in TOKEN.finditer(normal(text)):
        if token.start() > end or token["solid"] is None:
            found |= _pairs(together)
            together = []
        if token["solid"] is None:
            found.add(token[0].rstrip("+#"))
        else:
            together.append(token[0])
        end = token.end()
    return found | _pairs(together)


def comparable(text: str) -> bool:
    """Whether there is anything to compare in a text: at least one letter or digit."""
    return WORD.search(normal(text)) is not None


def opening(text: str, count: int = 3) -> str:
    """The first words of a text's normal form, divided at spaces; two characters are a word in scripts without."""
    taken, weight = "", 0.0
    for piece in PIECE.finditer(normal(text)):
        weight += HALF if regex.match(rf"[{SOLID}]", piece[0].strip()) else 1
        if weight > count:
            break
        taken += piece[0]
    return taken.strip()


def halves(text: str) -> tuple[str, str] | None:
    """A text in two halves, cut between words, or between characters in scripts without spaces; `None` for one word."""
    pieces = PIECE.findall(text.strip())
    middle = (len(pieces) + 1) // 2
    first, second = "".join(pieces[:middle]), "".join(pieces[middle:]).strip()
    return (first, second) if comparable(first) and comparable(second) else None


def scripts(text: str) -> set[str]:
    """Which scripts a text is written in, by the first word of their letters' Unicode names: LATIN, CJK, ARABIC, …"""
    return {unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()}


def plain(text: str) -> str:
    """All of `normal` but case and white space."""
    if text.isascii():
        return text
    text = FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), unicodedata.normalize("NFC", text))
    text = NASAL.sub("\u0902", UNSEEN.sub("", text.translate(ALIKE)))
    return regex.sub(r"[\p{Nd}--[0-9]]", lambda match: str(unicodedata.decimal(match[0])), text, flags=regex.V1)


def folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Folding gives İ a dot of its own, which "istanbul" does not have, and leaves ı, which "DIYARBAKIR" does not.
    text = unicodedata.normalize("NFC", text).casefold().replace("i\u0307", "i").replace("ı", "i")
    return unicodedata.normalize("NFC", text)


def _pairs(characters: Sequence[str]) -> set[str]:
    return set(map("".join, pairwise(characters))) or set(characters)


def sentences(text: str) -> list[str]:
    """A text's sentences and lines, in every script."""
    ends = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    return [part for start, end in pairwise(ends) if (part := text[start:end].strip())]
