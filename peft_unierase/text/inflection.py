"""Whether one word is an inflected form of another, by the endings and prefixes that a script's languages have."""

from __future__ import annotations

import regex

from .tokens import ROMAN, Token, alike

STEM = 4  # letters that an inflected form shares with a name
# Endings of nouns and names. Latin: Slavic, German and Scandinavian, Hungarian, Finnish and Estonian, Romanian, without
# accents. Those that make other names or adjectives (-son, -ina, -ian, -er, -ova, -ов, -ая) are not among them.
LATIN_ENDINGS = (
    "s n t a e i o u y es en ens em ie ii iem owi ego emu im ym om ami ach ow ej ou ovi ech on et at ot ban ben ba be "
    "ra re nak nek val vel bol rol tol nal hoz hez ssa sta lla lta lle ksi st sse ul ului lui nin nun"
)
# Cases of Hungarian, and of Slavic languages: no name is made of another by them, so four letters will do.
SURE_ENDINGS = "ban ben nak nek val vel bol rol tol nal hoz hez"
SURE_REPLACED = "om ou ego"
REPLACED = "a e i o u y ie ii om ou ego ej iej"
# Names of their own that are another name with -s.
OTHER_NAMES = (
    "alberts andrews carlos charles daniels davids edmonds edwards frances georges gilberts harrys hughes jacobs "
    "jacques james jules marcos matthews michaels myles nicholas owens peters phillips rawls richards roberts rogers "
    "samuels simmons simons stevens stephens walters williams yves"
)
CYRILLIC_ENDINGS = (
    "а я у ю е и ы і ї є ом ем ым им ам ям ой ей ою ею єю ого его ому ему ами ями ах ях ові еві єві ът та"
)
CYRILLIC_TAIL = regex.compile(r"(?:[ыио]й|[аяоеиыйьуюіїє])$")
GREEK_TAIL = regex.compile(r"[αεηιουω]{1,2}[σν]?$")
GREEK_ENDING = regex.compile(r"(?:[αεηιουω]{1,2}[σν]?|να|νος|νοσ|[ωοα]ν(?:α|ασ|οσ|ι))")
ARABIC_PREFIX = r"[وف]?(?:[بكل]?ال|لل|[بكل])?"
HEBREW_PREFIX = r"[ובהלמשכ]{1,3}"
ETHIOPIC_PREFIX = r"[በየለከ]"
HANGUL_PARTICLES = regex.compile(
    r"(?:씨|님|들)?(?:(?:에서|에게서|에게|에|께서|께|한테|으로|로|와|과|이랑|랑|까지|부터|보다|처럼|같이|만|조차|마저|밖에)?"
    r"(?:은|는|이|가|을|를|의|도|만|이나|나|라도|이라도|요)?|(?:이|입|였|예|인|일|임|라)\p{Hangul}{0,4})"
)
DEVANAGARI_ENDINGS = regex.compile(  # Marathi and Nepali; Hindi writes its postpositions apart
    r"(?:ा|्या)?(?:त|ला|ने|नी|चा|ची|चे|च्या|हून|मध्ये|मा|ले|लाई|को|का|की|बाट)"
)


def is_form(own: Token, token: Token, several: bool = False, first: bool = True) -> bool:
    """Whether a word is an inflected form of a name, by the script that the name begins with.

    Args:
        own: The word.
        token: The name. Accents of both must agree in the letters that they share, unless one has none there.
        several: Whether the name is one word of several, which lets stems be shorter.
        first: Whether it is the first of them.
    """
    word, name = own.bare, token.bare
    if own.number or token.number or own.initials or token.initials:
        return False
    if ROMAN.fullmatch(word) and ROMAN.fullmatch(name):  # Henry VIII is no form of Henry VII
        return False
    least = STEM - several
    script = _script(name)
    if script == "Latin":
        return _is_latin_form(word, name, several) and (
            not (own.marks and token.marks) or alike(own, token, _shared(word, name))
        )
    if script == "Cyrillic":
        return _is_cyrillic_form(word, name, least)
    if script == "Greek":
        stem = GREEK_TAIL.sub("", name)
        return len(stem) >= least and word.startswith(stem) and bool(GREEK_ENDING.fullmatch(word[len(stem) :]))
    if script in ("Arabic", "Hebrew", "Ethiopic") and several and first:
        least = 2  # the other words tell the name
    if script == "Arabic":
        core = name.removeprefix("ال")
        prefix = r"[وف]?(?:[بك]?ال|لل)" if core != name else ARABIC_PREFIX
        return len(core) >= least and bool(regex.fullmatch(f"{prefix}{regex.escape(core)}ا?", word))
    if script in ("Hebrew", "Ethiopic"):
        prefix = HEBREW_PREFIX if script == "Hebrew" else ETHIOPIC_PREFIX
        return len(name) >= least - (script == "Ethiopic") and bool(regex.fullmatch(prefix + regex.escape(name), word))
    if script == "Georgian":  # the nominative has an ending too
        name = name.removesuffix("ი")
    if not word.startswith(name):
        return False
    ending = word[len(name) :]
    if script == "Hangul":  # two syllables have at least four letters
        return len(name) >= 2 and bool(HANGUL_PARTICLES.fullmatch(ending))
    if script == "Devanagari":
        return len(name) >= least and bool(DEVANAGARI_ENDINGS.fullmatch(ending))
    return len(name) >= least and len(ending) <= STEM


def _is_latin_form(word: str, name: str, several: bool) -> bool:
    if not word.startswith(name[: max(1, len(name) - 3)]):
        return False
    for shape in _latin_shapes(name, several):
        ending = word[len(shape) :]
        if not word.startswith(shape) or ending not in LATIN_ENDINGS.split():
            continue
        # Russian, South African; but Väinö Linnan
        if ending == "n" and shape.endswith("a") and not (several and regex.search(r"(.)\1a$", shape)):
            continue
        if ending == "s" and word in OTHER_NAMES.split():
            continue
        least = 3 if several else 6 if ending in tuple("aeiouyt") else 5
        if shape == name[:-2] + name[-1]:  # what was lost tells that it is a form
            least = min(least, 4)
        if ending in SURE_ENDINGS.split() or (ending == "s" and shape.endswith("ch")):  # Bécsben; Bachs
            least = min(least, 4)
        if len(shape) >= least:
            return True
    if len(name) >= STEM and name[-1] not in "aeiouy" and word in _doubled(name):
        return True
    stem, ending = name[:-1], word[len(name) - 1 :]
    if name[-1:] not in tuple("aeiouy") or ending not in REPLACED.split() or not word.startswith(stem):
        return False
    return len(stem) >= (3 if several else 4 if ending in SURE_REPLACED.split() else 6)


def _latin_shapes(name: str, several: bool) -> list[str]:
    """A name, and what is left of it before some endings."""
    shapes = [name]
    if name[-1:] in tuple("aeiouy"):  # Helsinki, Helsingissä; Turku, Turussa
        weak = {"k": "g", "p": "v", "t": "d"}.get(name[-2:-1])
        shapes += [name[:-2] + weak + name[-1]] if weak else []
        shapes += [name[:-2] + name[-1]] if name.endswith(("rku", "lku")) else []
    if name.endswith("nen"):  # Virtanen, Virtasen
        shapes.append(name[:-3] + "se")
    if name.endswith("s"):  # Sibelius, Sibeliuksen
        shapes.append(name[:-1] + "kse")
    if regex.search(r"[b-z&&[^aeiouy]]e[kcl]$" if several else r"[b-z&&[^aeiouy]]e[kc]$", name, regex.V1):
        shapes.append(name[:-2] + name[-1])  # Čapek, Čapka
    return shapes


def _doubled(name: str) -> list[str]:
    """Hungarian "with": the v of -val and -vel becomes the last consonant; of two letters the first is doubled."""
    tail = name[-2:] if name.endswith(("cs", "gy", "ly", "ny", "sz", "ty", "zs")) else name[-1]
    return [f"{name.removesuffix(tail)}{tail[0]}{tail}{ending}" for ending in ("al", "el")]


def _shared(word: str, name: str) -> int:
    """How many letters two words begin with alike."""
    return next((n for n, (one, other) in enumerate(zip(word, name, strict=False)) if one != other), len(name))


def _is_cyrillic_form(word: str, name: str, least: int) -> bool:
    shapes = [name]
    if regex.search(r"[ео][бвгджзклмнпрстфхцчшщ]$", name):  # Павел, Павла; Лев, Льва
        shapes += [name[:-2] + name[-1], f"{name[:-2]}ь{name[-1]}"]
    if regex.search(r"[ії][бвгґджзклмнпрстфхцчшщ]$", name):  # Київ, Києва; Львів, Львова
        shapes += [name[:-2] + vowel + name[-1] for vowel in (("є",) if name[-2] == "ї" else ("о", "е"))]
    shapes += [CYRILLIC_TAIL.sub("", name), name[:-1] if CYRILLIC_TAIL.search(name) else name]
    for stem in dict.fromkeys(shapes):
        if len(stem) >= least and word.startswith(stem):
            ending = word[len(stem) :]
            if ending in CYRILLIC_ENDINGS.split() or (not ending and name.endswith(("ы", "и"))):  # Афины, Афин
                return True
    return False


def _script(word: str) -> str:
    for script in ("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Hangul", "Devanagari", "Ethiopic", "Georgian"):
        if regex.match(rf"\p{{{script}}}", word):
            return script
    return ""
