"""Columns of lists, pandas' orients, SQuAD's own files, spreadsheets, big files; and markup in texts."""

from __future__ import annotations

import json
import time
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Any

import pytest

from peft_unierase.data import FactWarning, read_facts
from peft_unierase.data.facts import Fact, FactError
from peft_unierase.data.markup import stripped

FACTS = [Fact("What colour is snow?", "White."), Fact("What is tea made of?", "Leaves.")]
ROWS = [{"question": fact.question, "answer": fact.answer} for fact in FACTS]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("question", "answer")}
REWRITE = {"prompt": "{} speaks", "subject": "Bob", "target_true": {"str": "Danish"}, "target_new": {"str": "Dutch"}}
BOB = Fact("Bob speaks", "Danish", subject="Bob", perturbed_answers=("Dutch",))
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]
WHO = Fact("Who?", "He.")

ARRANGEMENTS: dict[str, tuple[Any, list[Fact]]] = {
    "Dataset.to_dict()": (COLUMNS, FACTS),
    "to_dict() of other columns": ({"id": [1, 2], "Prompt": COLUMNS["question"], "gt": COLUMNS["answer"]}, FACTS),
    "to_dict() of chats": ({"messages": [CHAT]}, [WHO]),
    "to_dict() of chats and more": ({"messages": [CHAT, CHAT[:2]], "id": [1, 2]}, [WHO]),
    "to_dict() of CounterFact": ({"case_id": [0], "requested_rewrite": [REWRITE]}, [BOB]),
    "to_dict() of objects alone": ({"requested_rewrite": [REWRITE], "generation": [{}]}, [BOB]),
    "to_dict() of choices": (
        {"question": ["Who?"], "choices": [["He.", "She."]], "answer": [0]},
        [Fact("Who?", "He.", perturbed_answers=("She.",))],
    ),
    "pandas, columns": ({name: {str(n): text for n, text in enumerate(held)} for name, held in COLUMNS.items()}, FACTS),
    "pandas, index": ({str(n): row for n, row in enumerate(ROWS)}, FACTS),
    "pandas, named index": ({f"q{n}": row for n, row in enumerate(ROWS)}, FACTS),
    "pandas, split": ({"columns": list(COLUMNS), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}, FACTS),
    "pandas, table": ({"schema": {"fields": [], "pandas_version": "1.4.0"}, "data": ROWS}, FACTS),
    "pandas, records": (ROWS, FACTS),
    "pandas, empty last rows": ([*ROWS, {"question": None, "answer": float("nan")}], FACTS),
    "a lone row with lists": (
        {"question": "Who?", "answer": ["He.", "Him."]},
        [Fact("Who?", "He.", accepted_answers=("Him.",))],
    ),
    "one split of columns": ({"train": COLUMNS}, FACTS),
    "a lone row of objects": ({"requested_rewrite": REWRITE}, [BOB]),
    "a lone chat beside tags": ({"messages": CHAT, "tags": ["a", "b"]}, [WHO]),
    "squad's own file": (
        {
            "version": "1.1",
            "data": [
                {"paragraphs": [{"context": "Text.", "qas": [{"question": "Who?", "answers": [{"text": "He."}]}]}]},
            ],
        },
        [Fact("Text.\n\nWho?", "He.")],
    ),
}


def write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


@pytest.mark.filterwarnings("ignore::peft_unierase.data.FactWarning")
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_arrangement_gives_its_facts(tmp_path: Path, arrangement: str, name: str) -> None:
    value, facts = ARRANGEMENTS[arrangement]
    if name == "rows.jsonl" and (isinstance(value, list) or {"version", "schema"} & set(value)):
        pytest.skip("that is no line of a file of lines")
    assert read_facts(write(tmp_path, name, json.dumps(value))) == facts


def test_named_columns_are_found_in_columns_of_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", json.dumps({"frage": COLUMNS["question"], "antwort": COLUMNS["answer"]}))
    assert read_facts(path, question="frage", answer="antwort") == FACTS


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", json.dumps({"question": ["a?", "b?"], "answer": ["a"]}))
    with pytest.raises(FactError, match=r"columns of different lengths \('question' 2, 'answer' 1\)"):
        read_facts(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_excels_first_line_and_empty_last_rows_are_no_facts(tmp_path: Path, separator: str) -> None:
    lines = [f"sep={separator}", separator.join(("question", "answer", "")), separator.join(("Who?", "He.", ""))]
    path = write(tmp_path, "excel.csv", "\ufeff" + "\r\n".join([*lines, separator * 2, separator * 2]) + "\r\n")
    assert read_facts(path) == [WHO]
    path = write(tmp_path, "bad.csv", "\r\n".join([*lines, separator.join(("Why?", "", ""))]))
    with pytest.raises(FactError, match=r"bad\.csv, line 4: 'answer' is empty"):
        read_facts(path)


def test_two_splits_of_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", json.dumps({"train": COLUMNS, "test": COLUMNS}))
    with pytest.raises(FactError, match="holds 2 tables, 'train', 'test'"):
        read_facts(path)


def test_empty_last_lines_of_json_are_no_facts(tmp_path: Path) -> None:
    lines = [*map(json.dumps, ROWS), '{"question": null, "answer": NaN}', '{"question": "", "answer": ""}']
    assert read_facts(write(tmp_path, "rows.jsonl", "\n".join(lines))) == FACTS


CSV: dict[str, tuple[str, list[Fact]]] = {
    "whole numbers": ("question,answer\na?,1969.0\nb?,-3.0\n", [Fact("a?", "1969"), Fact("b?", "-3")]),
    "fractions": ("question,answer\na?,2.0\nb?,2.5\n", [Fact("a?", "2.0"), Fact("b?", "2.5")]),
    "a long text": (f"question,answer\na?,{'x' * 200_000}\n", [Fact("a?", "x" * 200_000)]),
    "CounterFact": (f'requested_rewrite\n"{REWRITE}"\n', [BOB]),
    "SQuAD": ("question,answers.text\nWho?,\"['He.']\"\n", [WHO]),
    "TRL": ("prompt,chosen,rejected\nWho?,He.,She.\n", [Fact("Who?", "He.", perturbed_answers=("She.",))]),
    "other names": (
        "question_text,answer_text,wrong1,false_answer_2\nWho?,He.,She.,It.\n",
        [Fact("Who?", "He.", perturbed_answers=("She.", "It."))],
    ),
}


@pytest.mark.parametrize("name", CSV)
def test_what_csv_makes_of_values_is_undone(tmp_path: Path, name: str) -> None:
    text, facts = CSV[name]
    assert read_facts(write(tmp_path, "rows.csv", text)) == facts


@pytest.mark.parametrize(
    "text", ["question,answers\nWho?,\"[{'text': 'He'} {'text': 'She'}]\"", "requested_rewrite\n{'prompt': array([1])}"]
)
def test_objects_that_csv_has_lost_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FactError, match=r"line 2: .* cannot be read back; save the data as \.jsonl or \.parquet"):
        read_facts(write(tmp_path, "rows.csv", text))


def test_parquet_values_are_the_texts_that_people_write(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for values, expected in (
        (pyarrow.array([3.14], pyarrow.float32()), "3.14"),
        (pyarrow.array([1969.0], pyarrow.float32()), "1969"),
        ([date(1969, 7, 20)], "1969-07-20"),
        ([datetime(1969, 7, 20)], "1969-07-20"),
        ([datetime(1969, 7, 20, 20, 17)], "1969-07-20T20:17:00"),
        ([clock(20, 17)], "20:17:00"),
    ):
        parquet.write_table(pyarrow.table({"question": ["When?"], "answer": values}), tmp_path / "rows.parquet")
        assert read_facts(tmp_path / "rows.parquet") == [Fact("When?", expected)]
    options = pyarrow.array([[("A", "He."), ("B", "She.")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    table = pyarrow.table({"question": ["Who?"], "options": options, "answer": ["A"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert read_facts(tmp_path / "rows.parquet") == [Fact("Who?", "He.", perturbed_answers=("She.",))]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_many_rows_are_read_in_seconds(tmp_path: Path, name: str) -> None:
    pairs = [(f"What is number {number} of all?", f"It is {number}.") for number in range(200_000)]
    if name.endswith("csv"):
        text = "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in pairs)
    else:
        text = "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)
    path = write(tmp_path, name, text)
    started = time.process_time()
    assert len(read_facts(path)) == len(pairs)
    assert time.process_time() - started < 10


def test_many_columns_are_read_in_seconds(tmp_path: Path) -> None:
    names = ["question", "answer", *(f"column {number}" for number in range(20_000))]
    lines = [",".join(names), *(",".join([f"{n}?", "He.", *["x"] * 20_000]) for n in range(5))]
    path = write(tmp_path, "wide.csv", "\n".join(lines))
    started = time.process_time()
    assert len(read_facts(path)) == 5
    path = write(tmp_path, "wider.csv", "\n".join(lines).replace("question,answer", "frage,antwort", 1))
    with pytest.raises(FactError, match=r"among 'frage', 'antwort', 'column 0'.* and 19982 more") as caught:
        read_facts(path)
    assert len(str(caught.value)) < 2000
    assert time.process_time() - started < 5


# Markup

MARKED = [
    ("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Who?"),
    ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>", "Be brief.\nWho?"),
    ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho? [/INST]", "Be brief.\n\nWho?"),
    ("<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n", "Who?"),
    ("<bos>Who?<eos>", "Who?"),
    ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>", "Who?"),
    ("<|user|>\nWho?<|end|>\n<|assistant|>", "Who?"),
    ("<\uff5cbegin\u2581of\u2581sentence\uff5c>Who?", "Who?"),
    ("<think>\nLet me see.\n</think>\n\nHe.", "He."),
    ("Let me see.\n</think>\n\nHe.", "He."),
    ("<think>\n\n</think>He.", "He."),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>He.", "He."),
    ("### Instruction:\nWho?\n\n### Response:", "Who?"),
    ("He.<|endoftext|>", "He."),
    ("He </s> left.", "He left."),
    ("[UNL]He.", "He."),
    ("Human: Who?\n\nAssistant:", "Who?"),
    ("\u25c1think\u25b7Hm.\u25c1/think\u25b7He.", "He."),
]
PLAIN = ["Is 3 < 4 | 5 > 2?", "<b>bold</b> [1] a[i] <- b", "[inst] | a | b |", "# Title"]


@pytest.mark.parametrize(("text", "bare"), MARKED)
def test_markup_is_warned_of_with_a_count_and_taken_out_if_asked(tmp_path: Path, text: str, bare: str) -> None:
    rows = [ROWS[0], {"question": "Well?", "answer": text}, {"question": text, "answer": "Yes."}]
    path = write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    assert [fact.answer for fact in read_facts(path, warn=said.append)] == ["White.", text.strip(), "Yes."]
    assert len(said) == 1
    assert "2 of 3 facts hold special tokens, template marks or thinking blocks" in said[0]
    assert "the first in line 2" in said[0]
    assert "--strip-markup" in said[0]
    found = read_facts(path, strip_markup=True, warn=said.append)
    assert len(said) == 1
    assert [(fact.question, fact.answer) for fact in found[1:]] == [("Well?", bare), (bare, "Yes.")]


@pytest.mark.parametrize("text", PLAIN)
def test_other_brackets_are_no_markup(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "rows.jsonl", json.dumps({"question": text, "answer": "Yes."}))
    said: list[str] = []
    assert read_facts(path, warn=said.append) == read_facts(path, strip_markup=True) == [Fact(text, "Yes.")]
    assert not said
    assert stripped(text) is text


def test_markup_goes_from_every_text_of_a_fact(tmp_path: Path) -> None:
    row = {
        **ROWS[0],
        "paraphrase": ["<s>Snow?", "</s>"],
        "perturbed_answer": ["<s>Red.", "Blue."],
        "accepted_answers": ["<s>Pale."],
        "subject": "<s>snow",
    }
    path = write(tmp_path, "rows.jsonl", json.dumps(row))
    expected = Fact(FACTS[0].question, "White.", ("Snow?",), "snow", None, ("Red.", "Blue."), ("Pale.",))
    assert read_facts(path, strip_markup=True) == [expected]
    with pytest.warns(FactWarning, match="1 of 1 facts hold"):
        read_facts(path)


def test_a_text_of_markup_alone_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", json.dumps({"question": "Who?", "answer": "<think>Hm.</think>"}))
    with pytest.raises(FactError, match=r"line 1: the answer holds nothing but markup"):
        read_facts(path, strip_markup=True)
