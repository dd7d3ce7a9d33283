"""`plan`: what a base knows about a name, a text or a forget set, before anything is erased; `ramp`: step by step."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import QUICK, demo_pair
from helpers import invoke, listing, write_rows
from typer.main import get_command

import peft_unierase
from peft_unierase import Fact, erase, read_facts
from peft_unierase.adapter.undo import model_digest
from peft_unierase.cli.app import app
from peft_unierase.cli.ramp import matrix, parse_steps
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.engine.around import SURE
from peft_unierase.lm.decoding import continuations
from peft_unierase.lm.formats import chat_format
from peft_unierase.planning import Plan, plan
from peft_unierase.planning.collateral import closeness
from peft_unierase.planning.questions import subjects_of, told_by
from peft_unierase.planning.ramp import Step, draw, growing
from peft_unierase.planning.run import ASKED, RETAINED, PlannedFact
from peft_unierase.text import recall, terms

SUBJECT = "Nesko Corquist"
FEW = 24


base = cache(demo_pair)


def about(subject: str = SUBJECT) -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] == subject]


@cache
def by_name() -> Plan:
    return plan(*base(), SUBJECT, count=FEW, samples=128, refusals=demo_refusals(), progress=False)


def told(found: Plan, facts: list[Fact]) -> float:
    """Share of facts whose answer a planned one gives."""
    best = [max(recall(fact.answer, each.fact.answer) for each in found.forget) for fact in facts]
    return sum(one >= 0.5 for one in best) / len(best)


def test_from_a_name_alone_the_base_tells_what_it_knows_about_it() -> None:
    found = by_name()
    assert found.subjects == [SUBJECT]
    assert told(found, about()) >= 0.8
    assert all(SUBJECT in each.fact.question for each in found.forget)
    assert [each.confidence for each in found.forget] == sorted(
        (each.confidence for each in found.forget), reverse=True
    )
    assert all(0.5 <= each.confidence <= 1 for each in found.forget)
    assert not {each.fact.answer for each in found.forget} & set(demo_refusals())
    assert all(terms(each.fact.answer) - terms(each.fact.question) for each in found.forget)
    assert len({each.fact.question.lower() for each in found.forget}) == len(found.forget)


def test_what_lies_near_is_proposed_to_stay_the_closest_first() -> None:
    found = by_name()
    assert found.retain
    assert not any(SUBJECT in f"{each.fact.question} {each.fact.answer}" for each in found.retain)
    assert [each.confidence for each in found.retain] == sorted(
        (each.confidence for each in found.retain), reverse=True
    )
    assert found.contradictions == []
    assert found.estimate is not None
    assert found.estimate.adapter_bytes > 0


def test_the_same_seed_gives_the_same_plan(tmp_path: Path) -> None:
    by_name().save(tmp_path / "one")
    plan(*base(), SUBJECT, count=FEW, samples=128, refusals=demo_refusals(), progress=False).save(tmp_path / "other")
    assert listing(tmp_path / "one") == listing(tmp_path / "other")


def test_the_files_are_what_erase_reads(tmp_path: Path) -> None:
    by_name().save(tmp_path)
    forget = read_facts(tmp_path / "forget.jsonl")
    assert [fact.question for fact in forget] == [each.fact.question for each in by_name().forget]
    assert {fact.subject for fact in forget} == {SUBJECT}
    assert len(read_facts(tmp_path / "retain.jsonl")) == len(by_name().retain)
    row = json.loads((tmp_path / "forget.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert 0.5 <= row["confidence"] <= 1
    assert not (tmp_path / "unknown.jsonl").exists()


def test_a_text_names_what_it_is_about_and_only_what_it_tells_goes() -> None:
    first, second = about()[:2]
    text = f"A word about {SUBJECT}. {first.answer}\nMore on {SUBJECT}: {second.answer}\n"
    assert subjects_of(text) == [SUBJECT]
    found = plan(*base(), "letter", text=text, count=FEW, samples=128, progress=False)
    assert told(found, [first, second]) == 1
    assert len(found.forget) < len(by_name().forget)


def test_of_a_forget_set_what_the_base_never_knew_is_told_apart(tmp_path: Path) -> None:
    made_up = Fact("What is the password of the third vault?", "Seventeen grey herons at noon.")
    found = plan(*base(), [*about()[:3], made_up], samples=64, progress=False)
    assert found.unknown == [made_up]
    assert [each.fact for each in found.forget] == about()[:3]
    found.save(tmp_path)
    assert [fact.answer for fact in read_facts(tmp_path / "unknown.jsonl")] == [made_up.answer]


def test_the_written_sets_keep_all_that_a_fact_knows(tmp_path: Path) -> None:
    fact = Fact("Who?", "He.", ("Who is it?", "Who then?"), "he", "It is he.", ("She.",), ("Him.",))
    Plan("x", [], [PlannedFact(fact, 0.5)], [PlannedFact(about()[0], 0.1)], [fact]).save(tmp_path)
    assert read_facts(tmp_path / "forget.jsonl") == read_facts(tmp_path / "unknown.jsonl") == [fact]


def test_what_contradicts_itself_is_said_and_not_raised() -> None:
    one, other = about()[:2]
    found = plan(*base(), [one, Fact(one.question, f"{one.answer} Yes.")], samples=64, progress=False)
    assert "answers a question in two ways" in found.contradictions[0]
    assert plan(*base(), [one, other], samples=64, progress=False).contradictions == []
    twice = plan(*base(), [one, one], samples=64, progress=False)
    assert "holds facts twice" in twice.contradictions[0]


def test_a_question_in_other_words_lies_closer_than_another() -> None:
    model, tokenizer = base()
    near = Fact(f"Tell me: {about()[0].question}", "x")
    far = Fact("Which colour does the sky have?", "Blue.")
    others = [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] != SUBJECT][:20]
    found = closeness(model, tokenizer, chat_format(tokenizer), about()[:1], [near, far, *others])
    assert found[0] == max(found)
    assert closeness(model, tokenizer, chat_format(tokenizer), [], [near]) == [0.0]


def test_told_by_asks_for_the_answer_only_words() -> None:
    facts = [Fact("Who is Ada?", "Ada is a glazier."), Fact("Where is Ada?", "Ada is in Oslo."), Fact("Who?", "Ada")]
    assert told_by("Ada works as a glazier.", facts) == [facts[0], facts[2]]


def test_words_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="there is nothing to plan for"):
        plan(*base(), "   ", progress=False)
    with pytest.raises(ValueError, match="there is nothing to plan for"):
        plan(*base(), "note", text="Buy milk.\n", progress=False)


@pytest.mark.slow
def test_the_command_plans_and_says_how_to_go_on(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text(f"On {SUBJECT}. {about()[0].answer} Again {SUBJECT}.", encoding="utf-8")
    ended = invoke("plan", demo_model_dir(), letter, "-o", tmp_path / "plan", "--count", 8, "--format", "human")
    assert ended.exit_code == 0, ended.output
    assert f"about {SUBJECT}" in ended.stdout
    assert f"unierase erase {demo_model_dir()} {tmp_path / 'plan'}/forget.jsonl --retain" in ended.stdout
    assert read_facts(tmp_path / "plan" / "forget.jsonl")
    ended = invoke("plan", demo_model_dir(), tmp_path / "plan" / "forget.jsonl", "-o", tmp_path / "again")
    assert json.loads(ended.stdout)["counts"]["unknown"] == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing.txt", "no such file: "),
        ("missing.jsonl", "no such file"),
        ("odd.pdf", "is neither a forget set (.jsonl, .json, .csv, .parquet) nor a text (.txt, .md)"),
        ("latin.txt", "is not UTF-8"),
    ],
)
def test_a_target_that_cannot_be_read_is_refused(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "odd.pdf").write_bytes(b"%PDF")
    (tmp_path / "latin.txt").write_bytes("Zoë".encode("latin-1"))
    ended = invoke("plan", demo_model_dir(), tmp_path / target, "-o", tmp_path / "plan")
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1,5,20,all", [1, 5, 12]),
        ("all", [12]),
        ("3, 12", [3, 12]),
        ("5,100", [5]),
        ("5,12,all", [5, 12]),
        ("5,12,20,all", [5, 12]),
    ],
)
def test_steps_grow_up_to_all(text: str, steps: list[int]) -> None:
    assert growing(parse_steps(text, 12), 12) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [("a", "is not a list of numbers"), ("0,all", "does not grow"), ("5,2", "does not grow"), ("20", "begins beyond")],
)
def test_steps_that_are_none_are_refused_before_a_model_is_loaded(text: str, message: str, tmp_path: Path) -> None:
    rows = [{"question": f"Who is Ada {number}?", "answer": "A poet."} for number in range(13)]
    forget, retain = write_rows(tmp_path / "forget.jsonl", rows[:12]), write_rows(tmp_path / "retain.jsonl", rows[12:])
    ended = invoke("ramp", "./nowhere", forget, "--retain", retain, "-o", tmp_path / "out", "--steps", text)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert "--steps" in ended.stderr


def test_a_matrix_has_a_line_for_each_step() -> None:
    text = matrix([Step(1, [0.01], 1.0, []), Step(5, [0.02, 0.3], 0.9, ["why"])])
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["1", "0.010", "-", "1.000", "good"],
        ["5", "0.020", "0.300", "0.900", "FAILS"],
    ]


def test_the_picture_is_the_same_to_the_byte(tmp_path: Path) -> None:
    steps = [Step(1, [0.01], 1.0, []), Step(5, [0.02, 0.3], 0.9, ["why"])]
    for name in ("one.png", "other.png"):
        draw(steps, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"


def hasten(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let ramps erase in one format, with other settings than those of `QUICK` as told."""
    module = importlib.import_module("peft_unierase.planning.ramp")
    told = {"settings": replace(QUICK, **changes), "formats": [chat_format(base()[1])]}
    monkeypatch.setattr(module, "erase", partial(erase, **told))


def ramp(folder: Path, *more: object) -> Any:
    rows = [{"question": fact.question, "answer": fact.answer} for fact in about()[:4]]
    kept = [{"question": r["question"], "answer": r["answer"]} for r in demo_facts() if r["subject"] != SUBJECT][::6]
    forget, retain = write_rows(folder / "forget.jsonl", rows), write_rows(folder / "retain.jsonl", kept)
    refusals = folder / "refusals.txt"
    refusals.write_text("\n".join(demo_refusals()), encoding="utf-8")
    told = ("--retain", retain, "--refusals", refusals, "-o", folder / "ramp")
    return invoke("ramp", demo_model_dir(), forget, *told, *more)


@pytest.mark.slow
def test_a_ramp_goes_up_and_keeps_the_last_good_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, steps=30)
    ended = ramp(tmp_path, "--steps", "2,all", "--leak", "0.6", "--kept", "0.5", "--format", "json")
    assert ended.exit_code == 0, ended.output
    steps = json.loads(ended.stdout)["steps"]
    assert [step["facts"] for step in steps] == [2, 4]
    assert [len(step["leaks"]) for step in steps] == [1, 2]
    assert not any(step["failed"] for step in steps)
    assert json.loads((tmp_path / "ramp" / "ramp.json").read_text()) == steps
    record = json.loads((tmp_path / "ramp" / "erasure" / "erasure.json").read_text())["predicate"]
    assert record["counts"]["forget"] == 4
    assert len(record["facts"]["digests"]) == 4
    assert (tmp_path / "ramp" / "ramp.png").is_file()
    for line in (r"step 1 of 2: 2 facts", r"\S+  asking what step 2 erased · took \S+ s"):
        assert re.search(rf"^{line}$", ended.stderr, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "facts"), [(5, 1), (7, 2)], ids=["the first step", "the second"])
def test_a_ramp_stops_where_a_limit_is_passed_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, facts: int
) -> None:
    hasten(monkeypatch, steps=1)  # what is gone is said below
    module = importlib.import_module("peft_unierase.checking.answers")
    answer, calls = module.answer_questions, []

    def once_worse(model: Any, tokenizer: Any, asked: Any, form: Any, **told: Any) -> Any:
        """The erased answers are gone but for once, and those that stay are asked for.

        The base is asked first: what is kept, and what each of three steps erases; then for each step what is erased
        and kept.
        """
        calls.append(asked)
        if len(calls) <= 4 or len(asked) > 2:
            return answer(model, tokenizer, asked, form, **told)
        return [module.Answer("", float(len(calls) == bad), False, True) for _ in asked]

    monkeypatch.setattr(importlib.import_module("peft_unierase.planning.ramp"), "answer_questions", once_worse)
    ended = ramp(tmp_path, "--steps", "1,2,all", "--leak", "0.6", "--kept", "0.5", "--format", "human")
    assert ended.exit_code == 1
    assert f"Stopped at {facts} facts: 1.000 of what step 1 erased comes back; `leak` (on" in ended.stdout
    assert "(on the command line --leak) is 0.6" in ended.stdout
    assert len(json.loads((tmp_path / "ramp" / "ramp.json").read_text())) == facts
    if facts == 1:
        assert "No step was good" in ended.stdout
        assert not (tmp_path / "ramp" / "erasure").exists()
    else:
        record = json.loads((tmp_path / "ramp" / "erasure" / "erasure.json").read_text())["predicate"]
        assert record["counts"]["forget"] == 1


@pytest.mark.slow
def test_the_function_makes_each_step_from_the_base_anew_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, steps=1)
    model, tokenizer = base()
    kept = [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] != SUBJECT][::24]
    before, words = model_digest(model), tokenizer.get_vocab()
    good: list[list[str]] = []
    steps = peft_unierase.ramp(
        *(model, tokenizer, about()[:2], kept),
        steps=[1, 2],
        leak=1,
        kept=0,
        progress=False,
        good=lambda erased, own: good.append([*erased.peft_config]),
    )
    assert [step.facts for step in steps] == [1, 2]
    assert good == [["default"], ["default"]]
    assert (model_digest(model), tokenizer.get_vocab()) == (before, words)
    assert not hasattr(model, "peft_config")
    with pytest.raises(ValueError, match="does not grow"):
        peft_unierase.ramp(model, tokenizer, about()[:2], kept, steps=[2, 1], progress=False)
    with pytest.raises(ValueError, match="got 2 and 0; give at least one of each"):
        peft_unierase.ramp(model, tokenizer, about()[:2], [], progress=False)

    def stopped(erased: Any, own: Any) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        peft_unierase.ramp(model, tokenizer, about()[:1], kept, steps=[1], leak=1, kept=0, progress=False, good=stopped)
    assert model_digest(model) == before
    assert not hasattr(model, "peft_config")


@pytest.mark.slow
def test_a_plan_from_a_name_generates_a_fraction_of_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,792 generations were wanted before, whatever the base knew; on a real model that took most of an hour."""
    rows: list[int] = []

    def counted(model: Any, ids: torch.Tensor, *told: Any, **more: Any) -> Any:
        rows.append(len(ids))
        return continuations(model, ids, *told, **more)

    for room in ("lm.decoding", "retain.samples"):
        monkeypatch.setattr(importlib.import_module(f"peft_unierase.{room}"), "continuations", counted)
    found = plan(*base(), SUBJECT, samples_cache=False, refusals=demo_refusals(), progress=False)
    assert told(found, about()) >= 0.8
    assert sum(rows) < 1100


def test_the_command_asks_as_much_as_the_function() -> None:
    options = {parameter.name: parameter.default for parameter in get_command(app).commands["plan"].params}
    assert (options["count"], options["retain"], options["sure"]) == (ASKED, RETAINED, SURE)
