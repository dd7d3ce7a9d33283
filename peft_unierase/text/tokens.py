"""The words of a text with what matching needs: their form without accents, their marks, capitals, numbers and units.

Names are looked for among whole words ("B12" is one). What a text tells is looked for among numbers and words apart,
because people write "5km" and "5 km", "COVID19" and "COVID-19".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import regex

from .normal import CLUSTER, HANGUL, LATIN, OTHER, SOLID, folded, plain

LETTER = rf"[\p{{L}}--[\p{{Hangul}}{SOLID}]]"
# "U.S.A." and "J. R. R." are one word, as "USA" is. With spaces between only capitals are taken for initials.
INITIALS = (
    r"(?<![\p{L}\p{M}\p{N}.])"
    rf"(?:\p{{Lu}}\.(?:\s?\p{{Lu}}\.)+|{LETTER}(?:\.{LETTER})+(?![\p{{L}}\p{{M}}\p{{N}}])\.?)"
)
WHOLE = regex.compile(  # C++ and C# are not C
    rf"(?P<solid>{CLUSTER})|(?P<initials>{INITIALS})|{LATIN}[+#]*|(?P<hangul>{HANGUL})|{OTHER}", regex.V1
)
# A sign is one only if nothing before it makes it a dash; thousands may be apart by spaces or apostrophes.
NUMBER = (
    r"(?:(?<!\p{N}\s?)(?<![\p{L}\p{M})\]])[-\u2212\u2013])?"
    r"(?:(?<![0-9])[0-9]{1,3}(?:[ \u00A0\u2009\u202F'][0-9]{3})+(?![0-9])(?:[.,][0-9]{1,2}(?![0-9]))?"
    r"|[0-9]+(?::[0-9]+)+|[0-9]+(?:[.,][0-9]+)*)"
)
APART = regex.compile(
    rf"(?P<solid>{CLUSTER})|(?P<number>{NUMBER}(?P<decade>(?<=0)'?s(?!\p{{L}}))?)|(?P<initials>{INITIALS})"
    rf"|[\p{{N}}--[0-9]]+|(?:[\p{{Latin}}--[\p{{Han}}\p{{N}}]]\p{{M}}*)+[+#]*|(?P<hangul>{HANGUL})|{OTHER}",
    regex.V1,
)
# H₂O is H2O, but 2⁵ is not 25.
SCRIPTS = regex.compile(r"[₀-₉]+|(?<=[\p{L})])[⁰¹²³⁴-⁹]+|(?<![\p{N}])[⁰¹²³⁴-⁹]+(?=\p{L})")
THOUSANDS = regex.compile(r"-?[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+|,[0-9]{3}|,(?:[0-9]{2,3},)+[0-9]{3})")
DECIMAL = regex.compile(r"-?[0-9]+(?:\.[0-9]+|,(?![0-9]{4}$)[0-9]+)")
GROUPED = regex.compile(r"(-?[0-9]{1,3}(?:([.,])[0-9]{3})(?:\2[0-9]{3})*)(?!\2)[.,]([0-9]+)")
ORDINAL = regex.compile(r"(?:st|nd|rd|th)(?!\p{L})", regex.IGNORECASE)
UNITS = {
    spelling: names.split()[0]
    for names in (
        "m metre metres meter meters м 米 公尺 メートル",
        "km kilometre kilometres kilometer kilometers км 公里 千米 キロメートル",
        "cm centimetre centimetres centimeter centimeters см 厘米 センチメートル",
        "mm millimetre millimetres millimeter millimeters мм",
        "nm nanometres nanometers",
        "ft foot feet",
        "inch inches",
        "yd yard yards",
        "mi mile miles",
        "g gram grams gramme grammes 克 グラム",
        "kg kilogram kilograms kilo kilos кг 公斤 千克 キログラム",
        "mg milligram milligrams мг",
        "t tonne tonnes 吨 トン",
        "lb lbs pound pounds",
        "oz ounce ounces",
        "l litre litres liter liters",
        "ml millilitre millilitres milliliter milliliters мл",
        "s sec second seconds",
        "ms millisecond milliseconds",
        "min minute minutes",
        "h hr hrs hour hours",
        "c celsius",
        "f fahrenheit",
        "k kelvin",
        "% percent",
        "am a.m a.m.",
        "pm p.m p.m.",
        "bc bce",
        "ad ce",
        "kmh kph",
        "mph",
        "hz",
        "khz",
        "mhz",
        "ghz",
        "kb",
        "mb",
        "gb",
        "tb",
        "w",
        "kw",
        "mw",
        "gw",
        "v",
        "kv",
    )
    for spelling in names.split()
}
UNITS_WITHOUT_SPACES = "|".join(sorted((unit for unit in UNITS if regex.match(rf"[{SOLID}]", unit)), key=len)[::-1])
UNIT = regex.compile(rf"[\s°-]{{0,2}}(%|{UNITS_WITHOUT_SPACES}|[\p{{L}}\p{{M}}]+(?:\.m\.?)?)", regex.IGNORECASE)
ROMAN = regex.compile(r"(?=.)M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})", regex.IGNORECASE)
# Letters whose stroke is no mark of its own in Unicode.
STROKES = str.maketrans({"ł": "l\u0335", "đ": "d\u0335", "ø": "o\u0338", "ħ": "h\u0335", "ŧ": "t\u0335"})
MARKS = regex.compile(r"(?<=[\p{Latin}\p{Greek}]\p{M}*)\p{M}")


class Token(NamedTuple):
    """A word of a text.

    Attributes:
        bare: Its normal form without Latin and Greek accents; of a number its value.
        marks: The accents of each of its letters, if it is in Latin script and has any.
        solid: Whether it is a character of a script without spaces.
        hangul: Whether it is in Korean script.
        initials: Whether it is written with a dot after each letter.
        capital: Whether it begins with a capital.
        number: Whether it is or has a number.
        cased: Whether its script has capitals.
        unit: What a number counts, if that stands right after it.
        start: Where it begins in the text as it is compared.
        end: Where it ends there.
    """

    bare: str
    marks: tuple[str, ...] = ()
    solid: bool = False
    hangul: bool = False
    initials: bool = False
    capital: bool = False
    number: bool = False
    cased: bool = False
    unit: str | None = None
    start: int = 0
    end: int = 0

    @property
    def katakana(self) -> bool:
        """Whether it is a character of the script in which Japanese writes foreign names."""
        return self.solid and bool(regex.match(r"[\p{Katakana}\u30FC]", self.bare))


def whole_tokens(text: str) -> list[Token]:
    """The words of a text, digits together with the letters that they touch."""
    return [_token(match) for match in WHOLE.finditer(plain(text))]


def apart_tokens(text: str) -> list[Token]:
    """The words and the numbers of a text; what a number counts goes with it."""
    return list(_apart(plain(text)))


def _apart(text: str) -> Iterator[Token]:
    text = SCRIPTS.sub(lambda match: f" {unicodedata.normalize('NFKC', match[0])} ", text)
    place = 0
    while match := APART.search(text, place):
        place = match.end()
        if not match["number"]:
            yield _token(match, own_numbers=True)
            continue
        values = _values(match["number"])
        if ordinal := ORDINAL.match(text, place):
            place = ordinal.end()
        unit = None if match["decade"] or ordinal else UNIT.match(text, place)
        name = UNITS.get(unit[1].lower().replace("µ", "u")) if unit else None
        if unit and name:
            place = unit.end()
        for value in values:
            last = value is values[-1]
            yield Token(value, number=True, unit=name if last else None, start=match.start(), end=place)


def _values(written: str) -> list[str]:
    """What a run of digits and separators stands for: one number, or several (a date, a list)."""
    number = regex.sub(r"(?<=[0-9])[ \u00A0\u2009\u202F'](?=[0-9])", "", regex.sub(r"^[\u2212\u2013]", "-", written))
    decade = "s" if number.endswith("s") else ""
    number = number.removesuffix("s").removesuffix("'")
    if ":" in number:  # a time, a ratio
        return [regex.sub(r"^0(?=[0-9]:)", "", number)]
    if THOUSANDS.fullmatch(number):
        return [regex.sub(r"[.,]", "", number) + decade]
    if DECIMAL.fullmatch(number):
        return [number.replace(",", ".") + decade]
    if both := GROUPED.fullmatch(number):
        return [f"{regex.sub(r'[.,]', '', both[1])}.{both[3]}"]
    *parts, last = regex.split(r"[.,]", number)
    return [*parts, last + decade]


def _token(match: regex.Match[str], own_numbers: bool = False) -> Token:
    word = match[0]
    letters = regex.sub(r"[.\s]", "", word) if match["initials"] else word
    marks: tuple[str, ...] = ()
    if letters.isascii():
        bare = letters.lower()
    else:
        apart = unicodedata.normalize("NFD", folded(letters)).translate(STROKES)
        bare = unicodedata.normalize("NFC", MARKS.sub("", apart))
        if bare != apart and regex.match(r"\p{Latin}", apart):
            marks = tuple(regex.findall(r"\P{M}(\p{M}*)", apart))
    roman = own_numbers and letters.isupper() and letters != "I" and bool(regex.fullmatch("[IVX]+", letters))
    return Token(
        bare,
        marks,
        solid=match["solid"] is not None,
        hangul=match["hangul"] is not None,
        initials=match["initials"] is not None,
        capital=word[0].isupper(),
        number=has_number(word) or (roman and bool(ROMAN.fullmatch(letters))),
        cased=word.lower() != word.upper(),
        start=match.start(),
        end=match.end(),
    )


def alike(one: Token, other: Token, letters: int | None = None) -> bool:
    """Whether two words have the same accents in their first letters, or one of them has none there."""
    first, second = one.marks[:letters], other.marks[:letters]
    return not any(first) or not any(second) or first == second


def has_number(word: str) -> bool:
    """Whether a digit or another number stands in a word."""
    return not word.isalpha() and any(unicodedata.category(letter)[0] == "N" for letter in word)
