"""Facts are read from every format that is promised, and a set that cannot be used is refused with the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peft_unierase.data import files, read_facts
from peft_unierase.data.facts import Fact, FactError, check_facts, fact_row, merge_repeats

SNOW = Fact("What colour is snow?", "White.")
TEA = Fact("What is tea made of?", "Leaves.")
ROWS = [{"question": fact.question, "answer": fact.answer} for fact in (SNOW, TEA)]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": SNOW.question},
    {"role": "assistant", "content": SNOW.answer},
]

BRIEF_SNOW = Fact("Be brief.\n\nUser: Hello!\nAssistant: Hello.\nUser: What colour is snow?", "White.")
CHATTED = [Fact("Be brief.\n\nHello!", "Hello."), BRIEF_SNOW]


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write_file


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(FactError) as caught:
        read_facts(source, **options)
    return str(caught.value)


def contradiction(forget: list[Fact], retain: list[Fact]) -> str:
    with pytest.raises(FactError) as caught:
        check_facts(forget, retain)
    return str(caught.value)


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("facts.jsonl", json_lines(ROWS)),
        ("facts.JSONL", json_lines(ROWS)),
        ("windows.jsonl", "\ufeff" + json_lines(ROWS).replace("\n", "\r\n")),
        ("blank_lines.jsonl", "\n" + json_lines(ROWS).replace("\n", "\n\n")),
        ("list.json", json.dumps(ROWS, indent=2)),
        ("lines.json", json_lines(ROWS)),
        ("object.json", json.dumps({"version": 1, "tags": ["a"], "data": ROWS})),
        ("facts.csv", "question,answer\nWhat colour is snow?,White.\nWhat is tea made of?,Leaves.\n"),
        ("excel.csv", "\ufeffquestion,answer,,\r\nWhat colour is snow?,White.,,\r\nWhat is tea made of?,Leaves.,,\r\n"),
    ],
)
def test_every_text_format_gives_the_same_facts_in_their_order(write, name, content):
    assert read_facts(write(name, content)) == [SNOW, TEA]


def test_parquet_gives_the_same_facts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "facts.parquet")
    assert read_facts(tmp_path / "facts.parquet") == [SNOW, TEA]


def test_parquet_holds_chats_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": CHAT}]), tmp_path / "chats.parquet")
    assert read_facts(tmp_path / "chats.parquet") == CHATTED


def test_a_path_may_be_given_as_text(write):
    assert read_facts(str(write("facts.jsonl", json_lines(ROWS)))) == [SNOW, TEA]


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
@pytest.mark.parametrize("row", [{**ROWS[0], "tags": [{"name": "cold"}]}, {"messages": CHAT[3:]}])
def test_one_json_line_in_a_file_is_one_fact(write, row, name):
    assert read_facts(write(name, json_lines([row]))) == [SNOW]


def test_one_json_line_is_one_fact_under_other_column_names_too(write):
    path = write("one.json", json_lines([{"q": SNOW.question, "a": SNOW.answer, "choices": ["Black.", "White."]}]))
    assert read_facts(path, question="q", answer="a") == [replace(SNOW, perturbed_answers=("Black.",))]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_line_separators_inside_a_json_text_do_not_end_its_line(write, separator):
    path = write("facts.jsonl", json.dumps({"question": f"a{separator}b", "answer": "c"}, ensure_ascii=False))
    assert read_facts(path) == [Fact(f"a{separator}b", "c")]


def test_quoted_csv_texts_keep_their_commas_quotes_and_lines(write):
    path = write("facts.csv", 'question, answer\n"Who, then?", "He said ""me"",\nand left."\n')
    assert read_facts(path) == [Fact("Who, then?", 'He said "me",\nand left.')]


def test_whitespace_around_texts_is_stripped_and_inside_them_kept(write):
    path = write("facts.jsonl", json_lines([{"question": " a  b\n", "answer": "\tc\n d "}]))
    assert read_facts(path) == [Fact("a  b", "c\n d")]


def test_texts_beyond_ascii_are_read_as_utf8(write):
    assert read_facts(write("facts.csv", "question,answer\nWer ist Zoë?,Eine Ärztin.\n")) == [
        Fact("Wer ist Zoë?", "Eine Ärztin.")
    ]


# Columns


@pytest.mark.parametrize(
    "row",
    [
        {"question": SNOW.question, "answer": SNOW.answer},
        {"prompt": SNOW.question, "completion": SNOW.answer},
        {"instruction": SNOW.question, "output": SNOW.answer, "input": ""},
        {"input": SNOW.question, "target": SNOW.answer},
        {"Question": SNOW.question, "ANSWER": SNOW.answer},
        {"messages": CHAT[3:]},
        {"conversations": [{"from": "human", "value": SNOW.question}, {"from": "gpt", "value": SNOW.answer}]},
        {"prompt": CHAT[3:4], "completion": CHAT[4:]},
        {"prompt": SNOW.question, "completion": CHAT[4:]},
    ],
)
def test_columns_are_found_by_their_names(write, row):
    assert read_facts(write("facts.jsonl", json_lines([row]))) == [SNOW]


def test_of_several_pairs_the_first_one_listed_is_taken(write):
    other = dict.fromkeys(("target", "input", "output", "instruction", "completion", "prompt"), "not this")
    row = {"messages": [], **other, **ROWS[0]}
    assert read_facts(write("facts.jsonl", json_lines([row]))) == [SNOW]
    del row["answer"]
    assert read_facts(write("facts.jsonl", json_lines([row]))) == [Fact("not this", "not this")]


def test_a_column_of_the_very_name_goes_before_one_in_another_case(write):
    row = {"Question": "not this", **ROWS[0], "ANSWER": "not this"}
    assert read_facts(write("facts.jsonl", json_lines([row]))) == [SNOW]


@pytest.mark.parametrize("name", ["paraphrased_question", "paraphrase", "Paraphrase"])
def test_paraphrase_and_subject_are_taken_along(write, name):
    rows = [{**ROWS[0], name: " Snow is what colour? ", "subject": "snow"}, {**ROWS[1], name: " ", "subject": None}]
    expected = [Fact(SNOW.question, SNOW.answer, ("Snow is what colour?",), "snow"), TEA]
    assert read_facts(write("facts.jsonl", json_lines(rows))) == expected


def test_columns_can_be_named(write):
    row = {"q": SNOW.question, "a": SNOW.answer, "question": "not this", "answer": "not this"}
    assert read_facts(write("facts.jsonl", json_lines([row])), question="q", answer="a") == [SNOW]


def test_naming_one_column_leaves_the_other_to_be_found(write):
    row = {"answer": "Snow.", "question": "Colour?", "prompt": "Tell me!", "completion": "White.", "long": "It is."}
    path = write("facts.jsonl", json_lines([row]))
    assert read_facts(path, answer="long") == [Fact("Colour?", "It is.")]
    assert read_facts(path, question="Prompt") == [Fact("Tell me!", "White.")]


def test_a_paraphrase_asked_as_the_question_is_no_paraphrase(write):
    path = write("facts.jsonl", json_lines([{**ROWS[0], "paraphrase": "Snow is what colour?"}]))
    assert read_facts(path, question="paraphrase") == [Fact("Snow is what colour?", "White.")]


def test_naming_one_column_twice_makes_it_a_column_of_chats(write):
    path = write("facts.jsonl", json_lines([{"talk": CHAT[3:]}]))
    assert read_facts(path, question="talk", answer="talk") == [SNOW]


def test_a_named_column_that_is_not_there_is_refused_with_those_that_are(write):
    text = refusal(write("facts.csv", "frage,antwort\na,b\n"), question="fragen", answer="antwort")
    assert "facts.csv has no column 'fragen' for `question=` (on the command line --question-column" in text
    assert "'frage', 'antwort'" in text
    text = refusal(write("facts.csv", "frage,antwort\na,b\n"), question="frage", answer="antworten")
    assert "has no column 'antworten' for `answer=` (on the command line --answer-column" in text


def test_unknown_columns_are_refused_with_what_was_looked_for_and_the_way_out(write):
    text = refusal(write("facts.jsonl", json_lines([{"frage": "a", "antworten": {"kurz": ["b"]}}])))
    assert "no column for questions and answers among 'frage', 'antworten', 'antworten.kurz'" in text
    assert "question/answer, prompt/completion, instruction/output, input/target, messages, conversations" in text
    assert "--question-column" in text
    assert "--answer-column" in text


def test_a_named_column_without_a_partner_is_refused(write):
    path = write("facts.jsonl", json_lines([{"x": "a", "y": "b"}]))
    assert "no column for answers among 'x', 'y'" in refusal(path, question="x")
    assert "no column for questions among 'x', 'y'" in refusal(path, answer="y")


def test_two_csv_columns_with_the_same_name_are_refused(write):
    assert "two columns with the same name, 'answer'" in refusal(write("f.csv", "question,answer,answer\na,b,c\n"))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_file_with_another_separator_is_refused(write, separator):
    text = refusal(write("facts.csv", f"question{separator}answer\na{separator}b\n"))
    assert "save it with commas between the columns" in text


# Rows


@pytest.mark.parametrize("column", ["question", "answer"])
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "is null; fill it in or remove the row"),
        ("", "is empty (''); fill it in"),
        (" \n", r"is empty (' \n'); fill it in"),
        (True, "is True (bool), not text"),
        ({"kurz": ["White."]}, "is {'kurz': ['White.']} (dict), not text"),
        ("\ud83d", r"holds half a character, '\ud83d'"),
    ],
)
def test_a_row_without_usable_text_is_refused_with_its_line(write, column, value, complaint):
    path = write("facts.jsonl", json_lines([ROWS[0]]) + "\n" + json_lines([{**ROWS[1], column: value}]))
    assert f"facts.jsonl, line 3: '{column}' {complaint}" in refusal(path)


@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_row_without_the_column_is_refused_with_its_line(write, column):
    row = {**ROWS[1], "id": 7}
    del row[column]
    text = refusal(write("facts.jsonl", json_lines([ROWS[0], row])))
    assert f"facts.jsonl, line 2 has no '{column}', only '" in text
    assert "add it or remove the row" in text


def test_a_row_of_a_json_list_is_refused_with_its_number(write):
    path = write("facts.json", json.dumps([ROWS[0], {**ROWS[1], "answer": ""}], indent=2))
    assert "facts.json, row 2: 'answer' is empty" in refusal(path)


def test_a_row_of_a_parquet_file_is_refused_with_its_number(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [ROWS[0], {**ROWS[1], "answer": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "facts.parquet")
    assert "facts.parquet, row 2: 'answer' is null" in refusal(tmp_path / "facts.parquet")


def test_a_csv_row_is_refused_with_the_line_it_begins_on(write):
    path = write("facts.csv", 'question,answer\n"a\nb",c\n\nd,\n')
    assert "facts.csv, line 5: 'answer' is empty" in refusal(path)


@pytest.mark.parametrize(("row", "found"), [("Who, then?,Me.", 3), ("Who?", 1)])
def test_a_csv_row_of_another_length_is_refused_rather_than_shifted(write, row, found):
    text = refusal(write("facts.csv", f"question,answer\na,b\n{row}\n"))
    assert f"facts.csv, line 3: values found {found}, columns 2" in text
    assert "double quotes" in text


def test_a_subject_that_is_no_text_is_refused(write):
    text = refusal(write("facts.jsonl", json_lines([{**ROWS[0], "subject": 7}])))
    assert "line 1: 'subject' is 7 (int), not text" in text
    assert "rename the column" in text


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": CHAT[:1]}, "its turns are 'system'"),
        ({"messages": [CHAT[4], CHAT[3]]}, "its turns are 'assistant', 'user'"),
        ({"messages": "Hello!"}, "'messages' is 'Hello!', not a list of messages"),
        ({"messages": []}, "'messages' is [], not a list of messages"),
        ({"messages": [{"text": "Hello!"}]}, "'messages' holds {'text': 'Hello!'}; a message has a role and a content"),
        ({"messages": [CHAT[3], {"role": "assistant", "content": None}]}, "'messages[1]' is null"),
        ({"messages": [{"role": "user", "content": " "}, CHAT[4]]}, "'messages[0]' is empty"),
        ({"prompt": CHAT[:3], "completion": CHAT[4:]}, "'prompt' must end with 'user', not with 'assistant'"),
        (
            {"prompt": CHAT[:4], "completion": CHAT[3:]},
            "'completion' must begin with 'assistant', not with 'user'",
        ),
    ],
)
def test_a_chat_without_a_question_and_its_answer_is_refused_with_its_line(write, row, complaint):
    text = refusal(write("chats.jsonl", json_lines([row])))
    assert "chats.jsonl, line 1: " in text
    assert complaint in text


# Files


def test_a_missing_file_is_refused(tmp_path):
    text = refusal(tmp_path / "facts.jsonl", role="retain")
    assert text == f"retain set {tmp_path / 'facts.jsonl'}: no such file; check the path"


@pytest.mark.parametrize("source", ["facts.jsonl", "data/facts.txt", "a/b/c", "./facts", "/nowhere/facts", "../facts"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(monkeypatch, tmp_path, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "read_hub", lambda *arguments: pytest.fail("the Hub was asked"))
    assert f"forget set {source}: no such file" in refusal(source)
    assert "no such file" in refusal(Path("org/name"))


def test_a_folder_is_refused(tmp_path):
    assert refusal(tmp_path).endswith("is a folder; name one .jsonl, .json, .csv or .parquet file in it")


def test_an_empty_name_is_refused():
    assert "the name of the retain set is empty" in refusal("", role="retain")


@pytest.mark.parametrize(("name", "found"), [("facts.txt", "a .txt file"), ("facts", "a file without a suffix")])
def test_another_kind_of_file_is_refused(write, name, found):
    assert f"is {found}; save it as .jsonl, .json, .csv or .parquet" in refusal(write(name, json_lines(ROWS)))


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.csv"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_refused(write, name, content):
    assert f"{name} is empty; put at least one question with its answer in it" in refusal(write(name, content))


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "[]"), ("b.json", '{"data": []}'), ("c.csv", "question,answer\n")]
)
def test_a_file_without_rows_is_refused(write, name, content):
    assert f"{name} has no rows" in refusal(write(name, content))


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json"])
def test_invalid_json_lines_are_refused_with_their_line(write, name):
    text = refusal(write(name, json_lines(ROWS) + '{"question": "a", "answer": }\n'))
    assert f"{name}, line 3 is not valid JSON (Expecting value, column 29)" in text
    assert """'{"question": "a", "answer": }'""" in text


def test_an_invalid_json_list_is_refused_with_its_line(write):
    text = refusal(write("facts.json", '[\n  {"question": "a", "answer": "b"}\n  {"question": "c"}\n]'))
    assert "facts.json, line 3 is not valid JSON (Expecting ',' delimiter, column 3)" in text
    assert "facts.json, line 2 is not valid JSON (Extra data" in refusal(write("facts.json", "[]\n[]"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '"text"\n', "a.jsonl, line 1 holds 'text'; an object like"),
        ("b.jsonl", json.dumps(ROWS), "must be named .json"),
        ("c.json", "[1]", "c.json, row 1 holds 1; an object like"),
        ("d.json", "3", "d.json holds 3; a list of objects is needed"),
        ("e.json", json.dumps({"train": ROWS, "test": ROWS}), "e.json holds 2 lists, 'train', 'test'"),
    ],
)
def test_json_that_is_no_list_of_objects_is_refused(write, name, content, complaint):
    assert complaint in refusal(write(name, content))


def test_an_unclosed_csv_quote_is_refused_with_its_line(write):
    text = refusal(write("facts.csv", 'question,answer\na,b\n"c,d\ne,f\n'))
    assert "facts.csv, line 3 is not valid CSV" in text
    assert "close every quote" in text


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.csv"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(write, name):
    text = refusal(write(name, b"question,answer\nWer ist Zo\xeb?,b\n"))
    assert f"{name}, line 2: byte 0xeb is not UTF-8; save the file as UTF-8" in text


def test_a_file_that_may_not_be_read_is_refused(write, monkeypatch):
    def deny(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    path = write("facts.jsonl", json_lines(ROWS))
    # Not chmod: the superuser, as whom containers run tests, may read everything.
    monkeypatch.setattr("peft_unierase.storage.plain.os.open", deny)
    assert "facts.jsonl cannot be read (Permission denied)" in refusal(path)


def test_a_broken_parquet_file_is_refused(write):
    pytest.importorskip("pyarrow.parquet")
    assert "facts.parquet is not a readable parquet file" in refusal(write("facts.parquet", b"question,answer"))


def test_parquet_without_pyarrow_is_refused_with_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = refusal(write("facts.parquet", b"PAR1"))
    assert "parquet files need pyarrow" in text
    assert 'pip install "peft-unierase[data]"' in text


# The Hub


@pytest.mark.parametrize("name", ["squad", "org/name", "org/OpenHermes-2.5", "some_one/data.set_v1"])
def test_a_hub_name_without_the_package_is_refused_with_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = refusal(name)
    assert f"forget set {name}: there is no file {name}, and as a Hub data set it needs the package datasets" in text
    assert 'pip install "peft-unierase[data]"' in text


def fake_datasets(monkeypatch, load_dataset: Any) -> None:
    """Put a module that stands in for `datasets` where the import looks."""
    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_name_and_its_split_are_handed_to_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    fake_datasets(monkeypatch, lambda name, split: asked.append((name, split)) or ROWS)
    assert read_facts("org/name") == read_facts("name", split="test[:2]") == [SNOW, TEA]
    assert asked == [("org/name", "train"), ("name", "test[:2]")]


def test_the_configuration_of_a_hub_data_set_is_named_behind_a_colon(monkeypatch, tmp_path):
    def load(name: str, config: str, split: str) -> Any:
        return asked.append((name, config, split)) or ROWS

    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []
    fake_datasets(monkeypatch, load)
    assert read_facts("org/MUSE-News:knowmem", split="forget_qa") == read_facts("mmlu:high-school_1.0") == [SNOW, TEA]
    assert asked == [("org/MUSE-News", "knowmem", "forget_qa"), ("mmlu", "high-school_1.0", "train")]


def test_a_hub_data_set_that_cannot_be_loaded_is_refused_with_the_cause(monkeypatch, tmp_path):
    def fail(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.chdir(tmp_path)
    fake_datasets(monkeypatch, fail)
    text = refusal("org/name", split="tset")
    assert "there is no file org/name, and as a Hub data set it cannot be loaded (split 'tset')" in text
    assert "Couldn't reach the Hub; check the name and the split, name a configuration like org/name:config" in text


def test_an_empty_split_and_a_bad_row_of_the_hub_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake_datasets(monkeypatch, lambda name, split: [])
    assert "org/name has no rows in split 'test'; choose another split" in refusal("org/name", split="test")
    fake_datasets(monkeypatch, lambda name, split: [*ROWS, {"question": "a", "answer": True}])
    assert "org/name (split 'train'), row 3: 'answer' is True (bool)" in refusal("org/name")


def test_a_file_is_preferred_to_a_hub_data_set_of_that_name(monkeypatch, tmp_path):
    fake_datasets(monkeypatch, lambda name, split: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    assert "org is a folder" in refusal("org")
    Path("org/name").write_text("text")
    assert "org/name is a file without a suffix" in refusal("org/name")


def test_the_real_package_gives_the_facts_of_a_data_set_folder(monkeypatch, tmp_path, write):
    datasets = pytest.importorskip("datasets")
    write("train.jsonl", json_lines([{**ROWS[0], "subject": None}, {**ROWS[1], "subject": "tea"}]))
    write("test.jsonl", json_lines([{"messages": CHAT[3:]}]))
    load = datasets.load_dataset

    def load_from_folder(name: str, split: str) -> Any:
        files = {split: str(tmp_path / f"{split}.jsonl")}
        return load("json", data_files=files, split=split, cache_dir=str(tmp_path / "cache"))

    # The Hub is out of a test's reach; all but where the files come from is the package's own.
    monkeypatch.setattr(datasets, "load_dataset", load_from_folder)
    assert read_facts("org/name") == [SNOW, Fact(TEA.question, TEA.answer, subject="tea")]
    assert read_facts("org/name", split="test") == [SNOW]


# Checks


def test_sets_that_agree_pass_without_warnings():
    assert check_facts([SNOW], [TEA]) == []


def test_a_question_with_two_answers_in_the_forget_set_is_refused():
    text = contradiction([SNOW, TEA, Fact("what colour  IS snow?", "Black.")], [])
    assert "the forget set answers a question in two ways" in text
    assert "facts 1 and 3 ('what colour  IS snow?': 'White.' and 'Black.')" in text
    assert "Keep the answer that the model gives" in text


def test_a_fact_twice_in_the_forget_set_is_a_warning():
    (warning,) = check_facts([SNOW, TEA, Fact("WHAT is tea  made of?", "leaves.")], [])
    assert "the forget set holds facts twice: facts 2 and 3 ('WHAT is tea  made of?')" in warning


def test_repeats_are_merged_into_the_first_with_all_that_they_know():
    again = Fact("WHAT is tea  made of?", "leaves.", ("Tea, of what?",), "tea", "Of leaves.", ("Tin.",), ("Leaf.",))
    assert merge_repeats([SNOW, TEA, again, SNOW]) == [SNOW, replace(again, question=TEA.question, answer=TEA.answer)]


def test_a_fact_as_a_row_is_read_back_as_it_was(write):
    fact = Fact("Who?", "He.", ("Who is it?", "Who then?"), "he", "It is he.", ("She.", "They."), ("Him.",))
    assert read_facts(write("rows.jsonl", json_lines([fact_row(fact), fact_row(SNOW)]))) == [fact, SNOW]


def test_a_question_in_both_sets_is_refused_whatever_its_answers():
    text = contradiction([SNOW, TEA], [Fact("Who?", "Me."), Fact("what is TEA made of?", "Water.")])
    assert "forgotten and kept at once: forget fact 2 and retain fact 2 ('What is tea made of?')" in text
    assert "Remove it from one of the two sets" in text


def test_many_repeats_are_counted_rather_than_listed():
    text = contradiction([Fact(f"Question {number % 7}?", f"{number}.") for number in range(14)], [])
    assert "facts 5 and 12 ('Question 4?': '4.' and '11.'); and 2 more" in text
    assert "facts 6 and 13" not in text


def test_oddities_of_the_retain_set_are_warnings():
    twice, contradicting = check_facts([SNOW], [TEA, TEA, Fact("Who?", "Me."), Fact("who?", "You.")])[::-1]
    assert "the retain set holds facts twice: facts 1 and 2" in twice
    assert "the retain set answers a question in two ways: facts 3 and 4" in contradicting


def test_a_paraphrase_that_is_kept_is_a_warning():
    (warning,) = check_facts([Fact(SNOW.question, SNOW.answer, (TEA.question.upper(),))], [TEA])
    assert "a paraphrase makes a question both forgotten and kept: forget fact 1 and retain fact 1" in warning
    (warning,) = check_facts([SNOW], [Fact("Colour of snow?", "White.", (SNOW.question,))])
    assert "forget fact 1 and retain fact 1" in warning


# The file itself


def test_nothing_slow_is_imported_to_read_facts():
    # The command's own module keeps the package from registering its tuner, which needs all of these.
    script = "import sys, unierase_command; import peft_unierase.data; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "peft_unierase.text" in loaded
    assert not {"torch", "transformers", "peft", "datasets", "pyarrow"} & set(loaded)


def test_answers_in_other_words_and_wrong_answers_are_taken_along(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "He.",
        "paraphrased_answer": "It is he.",
        "perturbed_answer": ["She.", "They."],
    }
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(row))
    assert read_facts(path) == [Fact("Who?", "He.", (), None, "It is he.", ("She.", "They."))]
    path = tmp_path / "facts.csv"
    path.write_text(
        'question,answer,perturbed_answers\nWho?,He.,"[""She."", ""They.""]"\nWhat?,It.,That.\nWhen?,Now.,\n'
    )
    assert [fact.perturbed_answers for fact in read_facts(path)] == [("She.", "They."), ("That.",), ()]
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps({**row, "perturbed_answer": 3}))
    with pytest.raises(FactError, match=r"line 1: 'perturbed_answer' is 3, neither a text nor a list of texts"):
        read_facts(path)
