"""Choices as quiz sheets spell them, marks of the right one, templates, and texts that stand beside a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from peft_unierase.data import FactWarning, read_facts
from peft_unierase.data.facts import Fact, FactError

ASKED = {"question": "Capital of France?"}
CAPITAL = Fact(ASKED["question"], "Paris", perturbed_answers=("Rome", "Oslo"))
TEXTS = ("Rome", "Paris", "Oslo")
ANSWER = dict(zip("ABC", TEXTS, strict=True))
PARIS = Fact(ASKED["question"], "Paris")
PARIS_OF_TWO = Fact(ASKED["question"], "Paris", perturbed_answers=("Rome",))

ROWS: dict[str, tuple[dict[str, Any], Fact]] = {
    "answer_a": ({**ASKED, **{f"answer_{k.lower()}": v for k, v in ANSWER.items()}, "answer": "B"}, CAPITAL),
    "siqa": ({**ASKED, **{f"answer{k}": v for k, v in ANSWER.items()}, "label": "2"}, CAPITAL),
    "answer1": ({**ASKED, **{f"answer{n}": v for n, v in enumerate(TEXTS, 1)}, "answer": "2"}, CAPITAL),
    "accepted answers": ({**ASKED, "answer1": "Paris", "answer2": "Lutetia", "answer": "Paris"}, PARIS),
    "a number that is accepted": (
        {**ASKED, "answer1": "4", "answer2": "four", "answer": "4"},
        Fact(ASKED["question"], "4"),
    ),
    "correct is a letter": ({**ASKED, "a": "Rome", "b": "Paris", "c": "Oslo", "correct": "b"}, CAPITAL),
    "choices in the question": (
        {"question": f"{ASKED['question']}\nA) Rome\nB) Paris\nC) Oslo", "choices": None, "answer": "B"},
        CAPITAL,
    ),
    "choices on one line": (
        {"question": f"{ASKED['question']} (a) Rome, (b) Paris, (c) Oslo", "answer": "b)"},
        CAPITAL,
    ),
    "numbered choices in the question": (
        {"question": f"{ASKED['question']}\n1. Rome\n2. Paris\n3. Oslo", "answer": 2},
        CAPITAL,
    ),
    "marks": (
        {**ASKED, "answers": [{"text": text, "correct": text == "Paris"} for text in TEXTS]},
        CAPITAL,
    ),
    "marks of choices": (
        {**ASKED, "choices": [{"text": text, "is_correct": text == "Paris"} for text in TEXTS], "answer": None},
        CAPITAL,
    ),
    "a mask": ({**ASKED, "choices": list(TEXTS), "label": [0, 1, 0]}, CAPITAL),
    "a mask of two": ({**ASKED, "choices": ["Rome", "Paris"], "label": [False, True]}, PARIS_OF_TWO),
    "numbers before choices": ({**ASKED, "options": ["1. Rome", "2. Paris", "3. Oslo"], "answer": "2"}, CAPITAL),
    "numbers in brackets": ({**ASKED, "options": ["(1) Rome", "(2) Paris", "(3) Oslo"], "answer": 2}, CAPITAL),
    "small letters": ({**ASKED, "options": ["a) Rome", "b) Paris", "c) Oslo"], "answer": "b"}, CAPITAL),
    "ideographic comma": ({**ASKED, "options": ["A、Rome", "B、Paris", "C、Oslo"], "answer": "B"}, CAPITAL),
    "wide full stop": (
        {**ASKED, "options": ["\uff21\uff0eRome", "\uff22\uff0eParis", "\uff23\uff0eOslo"], "answer": "B"},
        CAPITAL,
    ),
    "dashes": ({**ASKED, "options": ["A - Rome", "B - Paris", "C - Oslo"], "answer": "B - Paris"}, CAPITAL),
    "decimals stay": (
        {**ASKED, "options": ["1.5", "2.5"], "answer": "2.5"},
        Fact(ASKED["question"], "2.5", perturbed_answers=("1.5",)),
    ),
    "the name of a column": (
        {**ASKED, "Option A": "Rome", "Option B": "Paris", "Option C": "Oslo", "Correct Answer": "Option B"},
        CAPITAL,
    ),
    "the name of a choice": ({**ASKED, "choices": list(TEXTS), "answer": "choice_b"}, CAPITAL),
    "choices in one cell": ({**ASKED, "choices": "Rome|Paris|Oslo", "answer": "B"}, CAPITAL),
    "choices on lines of a cell": ({**ASKED, "choices": "A. Rome\nB. Paris\nC. Oslo", "answer": "B"}, CAPITAL),
    "true beside its text": (
        {**ASKED, "choices": ["no", "yes"], "answer": True},
        Fact(ASKED["question"], "yes", perturbed_answers=("no",)),
    ),
    "true as a class": (
        {"goal": ASKED["question"], "sol1": "Rome", "sol2": "Paris", "label": True},
        PARIS_OF_TWO,
    ),
    "letters beside Q": ({"Q": ASKED["question"], **ANSWER, "Answer": "B"}, CAPITAL),
    "braces in code": ({"instruction": "Mend x = {}.", "output": "x = 1"}, Fact("Mend x = {}.", "x = 1")),
    "a place for the subject": (
        {"prompt": "The capital of {} is", "subject": "France", "completion": "Paris"},
        Fact("The capital of France is", "Paris", subject="France"),
    ),
    "mquake": (
        {
            "requested_rewrite": [
                {"prompt": "{} is in", "subject": "Oz", "target_true": {"str": "Kansas"}, "target_new": {"str": "Rome"}}
            ],
            "questions": ["Who rules it?"],
            "answer": "Ann",
            "answer_alias": ["Annie"],
            "wrong_answer": "Bob",
        },
        Fact("Oz is in", "Kansas", subject="Oz", perturbed_answers=("Rome",)),
    ),
    "an instruction beside a question": (
        {"instruction": "Translate to French.", "question": "cat", "answer": "chat"},
        Fact("Translate to French.\n\ncat", "chat"),
    ),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "I got wet.", "choice2": "I slept.", "label": 0},
        Fact("It rained.\n\neffect", "I got wet.", perturbed_answers=("I slept.",)),
    ),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "lettered choices without an answer": ({"Q": "x", **ANSWER}, "no column for questions and answers"),
    "choices that say not which is right": ({**ASKED, "choices": list(TEXTS)}, "says not which choice is right"),
    "a letter without choices": ({**ASKED, "answer": "B"}, "'B', but no choices were found"),
    "a letter beside null": ({**ASKED, "choices": None, "answer": "B"}, "add a column 'choices'"),
    "two marks or numbers": ({**ASKED, "choices": ["x", "y"], "label": [0, 1]}, "may be marks of the two choices"),
    "choices that are one text": ({**ASKED, "choices": "x y z", "answer": "B"}, "one column for each choice"),
    "a template without subject": ({"prompt": "{} is in", "completion": "Oslo"}, "needs a subject column"),
}


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Fact]:
    return read_facts(write_rows(folder / "rows.jsonl", rows), **options)


@pytest.mark.filterwarnings("ignore:.*counting from 0 and from 1")
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_its_fact(tmp_path: Path, name: str) -> None:
    row, fact = ROWS[name]
    assert read(tmp_path, row) == [fact]


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_may_mean_two_things_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    row, complaint = REFUSED[name]
    with pytest.raises(FactError, match=r"rows\.jsonl") as caught:
        read(tmp_path, row)
    assert complaint in str(caught.value)


def test_a_letter_is_an_answer_if_its_column_is_named(tmp_path: Path) -> None:
    row = {"question": "Which vitamin is in oranges?", "answer": "C"}
    assert read(tmp_path, row, answer="answer") == [Fact(row["question"], "C")]


def test_a_letter_in_a_row_without_its_choices_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**ASKED, "choices": list(TEXTS), "answer": "B"}]
    rows += [{"question": "Who?", "choices": None, "answer": "A"}]
    with pytest.raises(FactError, match="line 2: 'answer' is 'A', but no choices were found"):
        read(tmp_path, *rows)


@pytest.mark.parametrize("answers", [[1, 2], ["1", "2"]])
def test_numbers_that_fit_two_ways_of_counting_are_warned_of(tmp_path: Path, answers: list[Any]) -> None:
    rows = [{"question": f"{n}?", "choices": list(TEXTS), "answer": answer} for n, answer in enumerate(answers)]
    with pytest.warns(FactWarning, match="counting from 0 and from 1; taken from 0"):
        assert [fact.answer for fact in read(tmp_path, *rows)] == ["Paris", "Oslo"]
    said: list[str] = []
    read(tmp_path, *rows, {"question": "Who?", "choices": list(TEXTS), "answer": type(answers[0])(0)}, warn=said.append)
    assert not said
