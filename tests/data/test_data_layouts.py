"""Rows of the data sets that people have, as they are published, and the facts that they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from peft_unierase.data import FactWarning, read_facts
from peft_unierase.data.facts import Fact, FactError

TONGUE = {"prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux"}
DARRIEUX = Fact(
    "The mother tongue of Danielle Darrieux is",
    "French",
    ("Danielle Darrieux spoke the language",),
    "Danielle Darrieux",
    perturbed_answers=("English",),
)
CHOICES = ["Rome", "Paris", "Oslo"]
CAPITAL = Fact("Capital of France?", "Paris", perturbed_answers=("Rome", "Oslo"))
ASKED = {"question": CAPITAL.question}

LAYOUTS: dict[str, tuple[dict[str, Any], Fact]] = {
    "alpaca": (
        {"instruction": "Translate.", "input": "Hund", "output": "dog"},
        Fact("Translate.\n\nHund", "dog"),
    ),
    "alpaca, no input": (
        {"instruction": "Name a dog.", "input": " ", "output": "Rex"},
        Fact("Name a dog.", "Rex"),
    ),
    "alpaca of LLaMA-Factory": (
        {"instruction": "And?", "input": "", "output": "Bee", "system": "Be brief.", "history": [["First?", "A"]]},
        Fact("Be brief.\n\nUser: First?\nAssistant: A\nUser: And?", "Bee"),
    ),
    "dolly": (
        {"instruction": "When?", "context": "It opened in 1889.", "response": "1889", "category": "closed_qa"},
        Fact("It opened in 1889.\n\nWhen?", "1889"),
    ),
    "context": ({"context": "A text.", "question": "Who?", "answer": "He"}, Fact("A text.\n\nWho?", "He")),
    "context, empty": ({"context": None, "question": "Who?", "answer": "He"}, Fact("Who?", "He")),
    "squad": (
        {
            "id": "5",
            "title": "t",
            "context": "A text.",
            "question": "Who?",
            "answers": {"text": ["He", "He", "Him"], "answer_start": [0, 0, 3]},
        },
        Fact("A text.\n\nWho?", "He", accepted_answers=("Him",)),
    ),
    "openorca": (
        {"id": "niv.1", "system_prompt": "Be brief.", "question": "Who?", "response": "He"},
        Fact("Be brief.\n\nWho?", "He"),
    ),
    "counterfact": (
        {
            "case_id": 0,
            "pararel_idx": 2796,
            "requested_rewrite": {
                **TONGUE,
                "target_new": {"str": "English", "id": "Q1860"},
                "target_true": {"str": "French", "id": "Q150"},
            },
            "paraphrase_prompts": ["Danielle Darrieux spoke the language"],
            "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
        },
        DARRIEUX,
    ),
    "counterfact, flat": (
        {
            **TONGUE,
            "prompt": DARRIEUX.question,
            "relation": "P103",
            "target_true": " French",
            "target_false": " English",
            "paraphrase": DARRIEUX.paraphrases[0],
        },
        DARRIEUX,
    ),
    "counterfact, flattened": (
        {
            "requested_rewrite.prompt": TONGUE["prompt"],
            "requested_rewrite.subject": TONGUE["subject"],
            "requested_rewrite.target_true.str": "French",
            "requested_rewrite.target_new.str": "English",
            "paraphrase_prompts": list(DARRIEUX.paraphrases),
        },
        DARRIEUX,
    ),
    "zsre": (
        {
            "subject": "Watts Humphrey",
            "src": "What university did Watts Humphrey attend?",
            "pred": "Trinity College",
            "rephrase": "What university did Watts Humphrey take part in?",
            "alt": "University of Michigan",
            "answers": ["Illinois Institute of Technology"],
            "loc": "nq question: who played desmond?",
            "loc_ans": "Henry Ian Cusick",
            "cond": "a >> b || c",
        },
        Fact(
            "What university did Watts Humphrey attend?",
            "Illinois Institute of Technology",
            ("What university did Watts Humphrey take part in?",),
            "Watts Humphrey",
            perturbed_answers=("University of Michigan",),
        ),
    ),
    "knowedit, zsre": (
        {
            "subject": "Epaspidoceras",
            "target_new": "Noctuidae",
            "prompt": "Which family does Epaspidoceras belong to?",
            "ground_truth": ["Aspidoceratidae"],
            "rephrase_prompt": "What family are Epaspidoceras?",
            "locality": {"Relation_Specificity": [{"prompt": "x", "ground_truth": ["genus"]}]},
            "portability": {"Reasoning": [{"prompt": "y", "ground_truth": "moths"}]},
        },
        Fact(
            "Which family does Epaspidoceras belong to?",
            "Aspidoceratidae",
            ("What family are Epaspidoceras?",),
            "Epaspidoceras",
            perturbed_answers=("Noctuidae",),
        ),
    ),
    "knowedit, nested truths": (
        {"subject": "Leo", "prompt": "Leo died in", "target_new": "Rome", "ground_truth": [["Berlin", "DE-BE"], ["X"]]},
        Fact("Leo died in", "Berlin", subject="Leo", perturbed_answers=("Rome",), accepted_answers=("DE-BE", "X")),
    ),
    "knowedit, recent": (
        {"subject": "Leo", "prompt": "Leo died in", "target_new": "Berlin", "portability": {}, "locality": {}},
        Fact("Leo died in", "Berlin", subject="Leo"),
    ),
    "knowedit, wikibio": (
        {"text": "This is about Leo.", "labels": "He was a physicist.", "concept": "Leo", "locality": {}},
        Fact("This is about Leo.", "He was a physicist.", subject="Leo"),
    ),
    "knowedit, sanitation": (
        {"question": "What is a currawong?", "ground_truth": "A bird", "target_new": "I don't know."},
        Fact("What is a currawong?", "A bird", perturbed_answers=("I don't know.",)),
    ),
    "rwku": (
        {"query": "___ wrote It.", "answer": "Stephen King", "subject": "Stephen King", "level": "1", "type": "cloze"},
        Fact("___ wrote It.", "Stephen King", subject="Stephen King"),
    ),
    "muse, knowmem": ({"question": "Who?", "answer": "He"}, Fact("Who?", "He")),
    "muse, verbmem": ({"prompt": "It was the", "gt": "best of times"}, Fact("It was the", "best of times")),
    "tofu": (
        {
            **ASKED,
            "answer": "Paris",
            "paraphrased_answer": "It is Paris",
            "paraphrased_question": "France's capital?",
            "perturbed_answer": ["Rome", "Oslo"],
        },
        Fact(CAPITAL.question, "Paris", ("France's capital?",), None, "It is Paris", ("Rome", "Oslo")),
    ),
    "tofu, real authors": (
        {**ASKED, "answer": "Paris", "option1": "Rome", "option2": "Paris", "option3": "Oslo"},
        CAPITAL,
    ),
    "the number of an option": (
        {**ASKED, "answer": 2, "option1": "Rome", "option2": "Paris", "option3": "Oslo"},
        CAPITAL,
    ),
    "wmdp": ({**ASKED, "choices": CHOICES, "answer": 1}, CAPITAL),
    "mmlu": ({**ASKED, "choices": CHOICES, "answer": 1, "subject": "geography"}, CAPITAL),
    "mmlu, letter": ({**ASKED, "choices": CHOICES, "answer": "B"}, CAPITAL),
    "letter with its text": ({**ASKED, "choices": CHOICES, "answer": "(B) Paris"}, CAPITAL),
    "aqua": ({**ASKED, "options": ["A)Rome", "B)Paris", "C)Oslo"], "rationale": "x", "correct": "B"}, CAPITAL),
    "mmlu-pro": ({**ASKED, "options": CHOICES, "answer": "B", "answer_index": 1, "cot_content": ""}, CAPITAL),
    "arc": ({**ASKED, "choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "B"}, CAPITAL),
    "arc, numbers": ({**ASKED, "choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "answerKey": "2"}, CAPITAL),
    "arc, as published": (
        {
            "question": {
                "stem": CAPITAL.question,
                "choices": [{"text": text, "label": label} for text, label in zip(CHOICES, "ABC", strict=True)],
            },
            "answerKey": "B",
        },
        CAPITAL,
    ),
    "openbookqa": (
        {"question_stem": CAPITAL.question, "choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "B"},
        CAPITAL,
    ),
    "medqa": (
        {**ASKED, "answer": "Paris", "options": dict(zip("ABC", CHOICES, strict=True)), "answer_idx": "B"},
        CAPITAL,
    ),
    "medmcqa": ({**ASKED, "opa": "Rome", "opb": "Paris", "opc": "Oslo", "cop": 1, "exp": "x"}, CAPITAL),
    "c-eval": ({**ASKED, "A": "Rome", "B": "Paris", "C": "Oslo", "answer": "B"}, CAPITAL),
    "piqa": (
        {"goal": "Boil water.", "sol1": "Cool it.", "sol2": "Heat it.", "label": 1},
        Fact("Boil water.", "Heat it.", perturbed_answers=("Cool it.",)),
    ),
    "race": (
        {"article": "A text.", "question": "Who?", "options": ["He", "She"], "answer": "A"},
        Fact("A text.\n\nWho?", "He", perturbed_answers=("She",)),
    ),
    "sciq": (
        {**ASKED, "distractor1": "Rome", "distractor2": "Oslo", "correct_answer": "Paris", "support": "x"},
        CAPITAL,
    ),
    "truthfulqa": (
        {
            "type": "x",
            **ASKED,
            "best_answer": "Paris",
            "correct_answers": ["Paris", "Lutetia"],
            "incorrect_answers": ["Rome", "Oslo"],
        },
        Fact(CAPITAL.question, "Paris", perturbed_answers=("Rome", "Oslo"), accepted_answers=("Lutetia",)),
    ),
    "truthfulqa, choices": ({**ASKED, "mc1_targets": {"choices": CHOICES, "labels": [0, 1, 0]}}, CAPITAL),
    "choices of a number": (
        {"question": "2 + 2?", "choices": [3, 4, 5], "answer": 1},
        Fact("2 + 2?", "4", perturbed_answers=("3", "5")),
    ),
    "triviaqa": (
        {**ASKED, "answer": {"value": "Paris", "aliases": ["Paris", "Lutetia"], "normalized_value": "paris"}},
        Fact(CAPITAL.question, "Paris", accepted_answers=("Lutetia",)),
    ),
    "natural questions": (
        {**ASKED, "answer": ["Paris", "Lutetia"]},
        Fact(CAPITAL.question, "Paris", accepted_answers=("Lutetia",)),
    ),
    "popqa": (
        {**ASKED, "subj": "France", "possible_answers": '["Paris", "Lutetia"]', "prop": "capital"},
        Fact(CAPITAL.question, "Paris", subject="France", accepted_answers=("Lutetia",)),
    ),
    "several answers": (
        {**ASKED, "answer": "Paris", "accepted_answers": ["Lutetia"]},
        Fact(CAPITAL.question, "Paris", accepted_answers=("Lutetia",)),
    ),
    "a number": ({"question": "When?", "answer": 1969}, Fact("When?", "1969")),
    "a number out of pandas": ({"question": "When?", "answer": 1969.0}, Fact("When?", "1969")),
    "a fraction": ({"question": "Pi?", "answer": 3.14}, Fact("Pi?", "3.14")),
    "paraphrases": (
        {
            **ASKED,
            "answer": "P",
            "rephrase_1": "a",
            "Rephrased question": "b",
            "paraphrases": ["c", "a"],
            "question_paraphrase": "d",
            "paraphrase_id": "p-7",
            "is_paraphrase": "True",
        },
        Fact(CAPITAL.question, "P", ("a", "b", "c", "d")),
    ),
    "another pair": ({"id": 1, "query": "Who?", "output": "He"}, Fact("Who?", "He")),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "He"}]},
            ]
        },
        Fact("Who?", "He"),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He"}], "system": "Be brief."},
        Fact("Be brief.\n\nWho?", "He"),
    ),
    "chat as text": (
        {"messages": '[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He"}]'},
        Fact("Who?", "He"),
    ),
}


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[Fact]:
    return read_facts(write_rows(tmp_path / "rows.jsonl", rows), **options)


def refusal(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(FactError) as caught:
        read(tmp_path, *rows, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_of_each_layout_is_its_fact(tmp_path: Path, name: str) -> None:
    row, fact = LAYOUTS[name]
    assert read(tmp_path, row) == [fact]


@pytest.mark.parametrize("name", ["counterfact", "squad", "arc", "triviaqa", "zsre", "parts"])
def test_the_same_out_of_parquet(tmp_path: Path, name: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row, fact = LAYOUTS[name]
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert read_facts(tmp_path / "rows.parquet") == [fact]


def test_each_answer_of_a_chat_is_a_fact_that_asks_with_all_turns_before_it(tmp_path: Path) -> None:
    said = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi."), ("user", "Who?"), ("assistant", "He.")]
    chat = [{"role": role, "content": text} for role, text in said]
    first = Fact("Be brief.\n\nHello!", "Hi.")
    second = Fact("Be brief.\n\nUser: Hello!\nAssistant: Hi.\nUser: Who?", "He.")
    assert read(tmp_path, {"messages": chat}) == [first, second]
    assert read(tmp_path, {"prompt": chat[:4], "completion": chat[4:]}) == [second]
    with pytest.warns(FactWarning, match="that nobody answers are left out: 1"):
        assert read(tmp_path, {"messages": chat[:4]}) == [first]


def test_turns_that_call_tools_are_no_answers(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "12 degrees"},
        {"role": "assistant", "content": "Cool."},
    ]
    assert read(tmp_path, {"messages": chat}) == [Fact("User: Weather?\nTool: 12 degrees", "Cool.")]
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    assert "'messages[0]' holds a part 'image_url'; only texts" in refusal(tmp_path, {"messages": [picture, chat[3]]})


def test_several_rewrites_of_one_row_are_several_facts(tmp_path: Path) -> None:
    rewrites = [
        {
            "prompt": "{} is a citizen of",
            "subject": "Ann",
            "target_true": {"str": "Oz"},
            "target_new": {"str": "Utopia"},
        },
        {"prompt": "{} speaks", "subject": "Bob", "target_true": {"str": "Danish"}, "target_new": {"str": "Dutch"}},
    ]
    assert read(tmp_path, {"case_id": 1, "requested_rewrite": rewrites, "questions": ["Who?"], "answer": "x"}) == [
        Fact("Ann is a citizen of", "Oz", subject="Ann", perturbed_answers=("Utopia",)),
        Fact("Bob speaks", "Danish", subject="Bob", perturbed_answers=("Dutch",)),
    ]


def test_braces_in_other_questions_stay(tmp_path: Path) -> None:
    rows = [
        {"question": "What does {} mean in Python?", "answer": "A dict", "subject": "Python"},
        {"question": "What does print({}) show?", "answer": "A dict", "subject": "JSON"},
    ]
    assert read(tmp_path, *rows) == [Fact(row["question"], row["answer"], subject=row["subject"]) for row in rows]


@pytest.mark.parametrize(
    ("column", "answer"),
    [
        ("requested_rewrite.target_true.str", "French"),
        ("requested_rewrite.target_new.str", "English"),
        ("requested_rewrite.target_true.id", "Q150"),
    ],
)
def test_nested_columns_can_be_named(tmp_path: Path, column: str, answer: str) -> None:
    row, fact = LAYOUTS["counterfact"]
    (found,) = read(tmp_path, row, answer=column)
    assert (found.question, found.answer, found.subject) == (fact.question, answer, fact.subject)
    (found,) = read(tmp_path, row, question="requested_rewrite.prompt", answer=column)
    assert (found.question, found.answer) == (fact.question, answer)


def test_a_column_of_answers_without_a_value_gives_way_to_another(tmp_path: Path) -> None:
    row = {"subject": "Leo", "prompt": "{} died in", "target_new": "Berlin", "ground_truth": None}
    assert read(tmp_path, row) == [Fact("Leo died in", "Berlin", subject="Leo")]


def test_a_row_without_a_truth_takes_the_new_target(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"subject": "Leo", "prompt": "{} died in", "target_new": "Rome", "ground_truth": ["Berlin"]},
        {"subject": "Leo", "prompt": "{} lived in", "target_new": "Oslo", "ground_truth": None},
    ]
    assert [fact.answer for fact in read(tmp_path, *rows)] == ["Berlin", "Oslo"]


def test_names_go_as_deep_as_the_data(tmp_path: Path) -> None:
    row = {"a": {"b": {"c": {"d": {"e": "Who?"}}}}, "x": "He"}
    assert read(tmp_path, row, question="a.b.c.d.e", answer="x") == [Fact("Who?", "He")]


def test_names_go_through_lists(tmp_path: Path) -> None:
    row = {"q": [{"text": "Who?"}], "a": [{"span": {"words": "He"}}, {"span": {"words": "Him"}}]}
    assert read(tmp_path, row, question="q.0.text", answer="a.span.words") == [
        Fact("Who?", "He", accepted_answers=("Him",))
    ]


def test_a_nested_name_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    text = refusal(tmp_path, LAYOUTS["counterfact"][0], answer="requested_rewrite.target.str")
    assert "no column 'requested_rewrite.target.str' for `answer=`" in text
    assert "'requested_rewrite.target_true.str'" in text


def test_a_column_of_objects_says_how_to_name_what_is_inside(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"question": {"words": "Who?"}, "answer": "He"})
    assert "'question' is {'words': 'Who?'} (dict), not text" in text
    assert "'question.words'" in text
    assert "'answer.words'" in refusal(tmp_path, {"question": "Who?", "answer": {"words": "He"}})


@pytest.mark.parametrize("column", ["text", "document"])
def test_raw_texts_point_to_plan(tmp_path: Path, column: str) -> None:
    text = refusal(tmp_path, {"id": 1, column: "Once upon a time."})
    assert f"has no questions, only texts (column '{column}')" in text
    assert "`unierase plan MODEL FILE.txt" in text


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        ([0, 2], ["a", "c"]),
        ([1, 3], ["a", "c"]),
        (["1", "3"], ["a", "c"]),
        (["A", "C"], ["a", "c"]),
        (["c", "a"], ["c", "a"]),
    ],
)
def test_a_tables_answers_are_counted_from_where_they_all_fit(
    tmp_path: Path, answers: list[Any], right: list[str]
) -> None:
    rows = [
        {"question": f"{number}?", "choices": ["a", "b", "c"], "answer": answer}
        for number, answer in enumerate(answers)
    ]
    assert [fact.answer for fact in read(tmp_path, *rows)] == right


def test_blood_groups_are_answers_and_no_letters(tmp_path: Path) -> None:
    rows = [{"question": f"{answer}?", "choices": ["O", "A", "B", "AB"], "answer": answer} for answer in ("A", "O")]
    assert [fact.answer for fact in read(tmp_path, *rows)] == ["A", "O"]


@pytest.mark.parametrize("answer", ["E", 4, -1, "London", None, True])
def test_an_answer_that_is_none_of_the_choices_is_refused_with_its_line(tmp_path: Path, answer: Any) -> None:
    text = refusal(
        tmp_path, {**ASKED, "choices": CHOICES, "answer": "B"}, {**ASKED, "choices": CHOICES, "answer": answer}
    )
    assert "line 2: 'answer' is" in text
    assert "'Rome', 'Paris', 'Oslo'" in text


def test_a_named_answer_may_be_none_of_the_choices(tmp_path: Path) -> None:
    row = {**ASKED, "answer": "B", "choices": CHOICES, "long": "It is Paris."}
    assert read(tmp_path, row, answer="long") == [Fact(CAPITAL.question, "It is Paris.")]


def test_questions_without_an_answer_are_left_out_with_a_count(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answers": {"text": ["He"]}}, {"question": "Why?", "answers": {"text": []}}]
    with pytest.warns(FactWarning, match="empty list of answers are left out: 1"):
        assert read(tmp_path, *rows) == [Fact("Who?", "He")]
    assert "has no question with an answer" in refusal(tmp_path, rows[1])


def test_lists_in_csv_are_read_as_lists_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,choices,answer\nWho?,\"['He', 'She']\",B\n")
    assert read_facts(path) == [Fact("Who?", "She", perturbed_answers=("He",))]
    path.write_text("question,choices,answer\nWho?,\"['He' 'She']\",B\n")
    with pytest.raises(FactError, match=r"line 2: 'choices' is .* cannot be read back; save the data as \.jsonl"):
        read_facts(path)
    path.write_text("question,answers\nWho?,\"{'text': array(['He'], dtype=object)}\"\n")
    with pytest.raises(FactError, match=r"cannot be read back"):
        read_facts(path)


def test_a_repeat_is_dropped_with_a_note_and_a_contradiction_is_not(tmp_path: Path) -> None:
    rows = [{**ASKED, "answer": "Paris"}, {**ASKED, "answer": "paris"}, {**ASKED, "answer": "Rome"}]
    said: list[str] = []
    assert [fact.answer for fact in read(tmp_path, *rows, warn=said.append)] == ["Paris", "Rome"]
    assert len(said) == 1
    assert "1 of 3 facts repeat an earlier one and are dropped" in said[0]


def test_rows_that_differ_in_their_paraphrase_alone_are_one_fact_with_all_of_them(tmp_path: Path) -> None:
    rows = [{**ASKED, "answer": "Paris", "paraphrase": text} for text in ("a", "b")]
    with pytest.warns(FactWarning):
        assert read(tmp_path, *rows) == [Fact(CAPITAL.question, "Paris", ("a", "b"))]


def test_values_without_bottom_are_refused_with_their_place(tmp_path: Path) -> None:
    deep: Any = "He"
    for _ in range(50):
        deep = [deep]
    assert "line 1: 'answer[0][0]" in refusal(tmp_path, {"question": "Who?", "answer": deep})
    for name, text in (("a.jsonl", "[" * 100_000), ("b.json", '{"question": ' + "[" * 100_000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(FactError, match=rf"{name}.* (holds what cannot be read|is not valid JSON)"):
            read_facts(tmp_path / name)
    (tmp_path / "c.jsonl").write_text('{"question": "Who?", "answer": ' + "9" * 5000 + "}")
    with pytest.raises(FactError, match=r"line 1"):
        read_facts(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "Who?", "answer": float("inf")}))
    with pytest.raises(FactError, match=r"line 1: 'answer' is inf"):
        read_facts(tmp_path / "d.jsonl")
