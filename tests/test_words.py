"""Words that the project no longer uses are in no file, and the glossary stays small."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("peft_unierase", "tests", "tests_peft", "benchmarks", "examples", "tools", "docs", ".ci")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "pyproject.toml")
KINDS = {".py", ".md", ".html", ".toml", ".yml", ".ipynb", ".svg", ""}

# What each was, and what is said now: docs/glossary.md. An underscore ends a word, so identifiers are searched too.
RETIRED = (
    *("bench", "doors?", "lessons?", "bent", "shut", "gates?", "flags?", "comparators?", "openings", "boxed", "twins?"),
    *("detectors?", "fire[ds]", "firing", "news", "steer vectors?"),
)
# As names for data; in a sentence they are ordinary English.
RETIRED_NAMES = ("beside", "lesson", "places_of")
# Uses that mean something else, with the files that have them.
ALLOWED = {
    "": r"gate_(up_)?proj|\bci_gate\b|gate and (up-projection|value)|\(?gate, up|flags=|SHUT_RDWR"
    r"|(muse-bench/)?MUSE-News",
    "peft_unierase/retain/subjects.py": r"\bflags\b",  # of regular expressions
    "tests/lm/test_structure.py": r'"gate", "up"',
    "tools/demo_corpus.py": r"haven gate dorf|on (its|the) flag",
}


def texts() -> list[Path]:
    """Every file that people read."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.is_file()]
    found += [ROOT / name for name in FILES]
    return sorted(path for path in found if path.suffix in KINDS and path != Path(__file__).resolve())


def hits(text: str, place: str = "") -> list[str]:
    """Lines with a retired word, each with its number."""
    word = re.compile(rf"(?<![a-z])({'|'.join(RETIRED)})(?![a-z])", re.IGNORECASE)
    allowed = re.compile("|".join(ALLOWED[key] for key in ("", place) if key in ALLOWED))
    lines = enumerate(text.splitlines(), start=1)
    return [f"{place}:{number}: {line.strip()}" for number, line in lines if word.search(allowed.sub("", line))]


def retired_names(source: str) -> list[str]:
    """Names in Python code that hold a word which is retired as a name; those of tests are sentences."""
    names = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == 1]
    return [name for name in names if not name.startswith("test_") and {*name.lower().split("_")} & {*RETIRED_NAMES}]


def test_no_file_has_a_retired_word() -> None:
    found = [hit for path in texts() for hit in hits(path.read_text("utf-8"), str(path.relative_to(ROOT)))]
    assert not found, "\n".join(found)


def test_no_name_has_a_word_that_is_retired_as_one() -> None:
    sources = [path for path in texts() if path.suffix == ".py"]
    found = {
        str(path.relative_to(ROOT)): names for path in sources if (names := retired_names(path.read_text("utf-8")))
    }
    assert not found


@pytest.mark.parametrize("line", ["at the door", "NEAR_DOOR = 4", "make_bench(x)", "The twins", "it fired", "a Flag"])
def test_a_retired_word_is_found(line: str) -> None:
    assert hits(line)


@pytest.mark.parametrize("line", ["mlp.gate_proj", "shutil.rmtree(x)", "a benchmark", "re.sub(a, b, flags=re.M)"])
def test_words_that_only_look_like_it_are_not(line: str) -> None:
    assert not hits(line)


def test_the_glossary_has_at_most_twenty_words_each_explained_once() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text("utf-8"), flags=re.MULTILINE)
    words = [word for word, _ in rows if word not in ("word", "---")]
    assert 0 < len(words) == len(set(words)) <= 20
