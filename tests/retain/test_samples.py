# ruff: noqa: RUF001 (questions in scripts of other languages)
"""What a base asks itself: questions that end, near neighbours, and a file that people read, edit and give back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer
from helpers import invoke, write_rows
from hurried import hurry

from peft_unierase import Fact
from peft_unierase.demo import demo_facts, demo_model_dir
from peft_unierase.lm.batches import encode, pad_left
from peft_unierase.lm.decoding import continuations
from peft_unierase.lm.formats import chat_format, plain_format
from peft_unierase.retain import neighbours
from peft_unierase.retain.neighbours import NEIGHBOUR_STEPS, ROUND, beginnings, neighbour_rounds, sample_neighbours
from peft_unierase.retain.sample_files import Samples, read_samples, write_samples
from peft_unierase.retain.samples import QUESTION_TOKENS, SAMPLE_STEPS, go_on_asking, read_question, sample_facts

SUBJECT = "Nesko Corquist"
ABOUT = [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] == SUBJECT]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    return demo_base(), demo_tokenizer()


def test_the_model_asks_and_answers_the_same_questions_for_the_same_seed(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    torch.manual_seed(11)
    state = torch.get_rng_state()
    steps: list[int] = []
    first = sample_facts(model, tokenizer, chat_format(tokenizer), 12, seed=3, advance=steps.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == sample_facts(model, tokenizer, chat_format(tokenizer), 12, seed=3)
    assert first != sample_facts(model, tokenizer, chat_format(tokenizer), 12, seed=4)
    assert len(first) > 6
    assert all(fact.question and fact.answer for fact in first)
    assert sum(steps) == SAMPLE_STEPS * 12


@pytest.mark.parametrize(
    ("written", "question"),
    [
        ("Where is it? And who was there?", "Where is it?"),
        ("Tell me about it. Then go on", "Tell me about it."),
        ("Ask Dr. Jones about 3.5 things", "Ask Dr. Jones about 3.5 things"),
        ("One line\nand another", "One line"),
        ("To be edited: \nThe rest", "To be edited:"),
        ("它在哪里？它是什么", "它在哪里？"),
        ("यह कहाँ है। और क्या", "यह कहाँ है।"),
        ("no end at all", "no end at all"),
    ],
)
def test_a_question_ends_with_its_first_sentence_or_line(base: tuple[Any, Any], written: str, question: str) -> None:
    _, tokenizer = base
    tokens = encode(tokenizer, written)
    assert read_question(tokenizer, chat_format(tokenizer), [], tokens, set()) == question


def test_a_question_that_has_ended_leaves_the_batch_and_one_that_does_not_end_is_cut(
    base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = base
    (mark,), (word,) = encode(tokenizer, "?"), encode(tokenizer, " the")
    sizes: list[int] = []

    def drawn(chances: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """The first row ends with its third token; no other row ever does."""
        sizes.append(len(chances))
        first = mark if len(sizes) == 3 else word
        return torch.tensor([[first], *[[word]] * (len(chances) - 1)])

    monkeypatch.setattr(torch, "multinomial", drawn)
    ended, cut = go_on_asking(model, tokenizer, chat_format(tokenizer), [[], []], seed=0)
    assert ended == tokenizer.decode([word, word, mark]).strip()
    assert cut == tokenizer.decode([word] * QUESTION_TOKENS).strip()
    assert sizes == [2] * 3 + [1] * (QUESTION_TOKENS - 3)


@pytest.mark.parametrize("shared", [0, 3, 20])
def test_what_follows_does_not_depend_on_reading_a_common_beginning_once(
    base: tuple[Any, Any], shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = base
    common = encode(tokenizer, ABOUT[0].question * 3)[:shared]
    prompts = [common + encode(tokenizer, fact.question) for fact in ABOUT]
    batch = pad_left(prompts, 0, torch.device("cpu"), list(range(len(prompts))))

    def best(logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)

    together = continuations(model, batch.ids, batch.mask, 8, {1}, best)
    for prompt, found in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        assert continuations(model, ids, torch.ones_like(ids), 8, {1}, best) == [found]


def test_neighbours_are_known_and_about_something_else(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    steps: list[int] = []
    form, plain = chat_format(tokenizer), plain_format(tokenizer)
    found = sample_neighbours(model, tokenizer, form, plain, ABOUT, 1, seed=0, advance=steps.append)
    assert len(found.known) >= 8
    assert not any(SUBJECT in f"{fact.question} {fact.answer}" for fact in [*found.known, *found.others])
    assert sum(steps) == NEIGHBOUR_STEPS * ROUND
    others = {row["answer"] for row in demo_facts() if row["subject"] != SUBJECT}
    assert len({fact.answer for fact in found.known} & others) >= 4  # what the base knows of others


def test_a_rewording_names_the_subject_of_the_fact_that_its_answer_tells_or_half_of_it(
    base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = base
    fact = ABOUT[0]
    own, half = f"Pray, {fact.question}", f"Pray, {fact.question.replace(SUBJECT, SUBJECT.split()[1])}"
    other = fact.question.replace(SUBJECT, "Aldo Quist")
    monkeypatch.setattr(neighbours, "go_on_asking", lambda model, tokenizer, form, starts, seed: [own] * len(starts))
    monkeypatch.setattr(neighbours, "_ask", lambda *args: [half, *[other] * (len(args[3]) - 1)])
    monkeypatch.setattr(neighbours, "_lines", lambda model, tokenizer, prompts, *_, **__: [fact.answer] * len(prompts))
    form, plain = chat_format(tokenizer), plain_format(tokenizer)
    found = sample_neighbours(model, tokenizer, form, plain, [fact], 1, seed=0)
    assert [reworded.question for reworded in found.reworded] == [own, half]
    assert not found.known
    assert not found.others


def test_a_question_that_is_begun_goes_on_with_the_space_that_the_model_says(
    base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = base
    whole = encode(tokenizer, f"{ABOUT[0].question}\nNo more")
    begun = next(n for n in range(2, len(whole)) if tokenizer.decode(whole[n:])[:1] == " ")
    start = tokenizer.decode(whole[:begun])
    assert encode(tokenizer, start) == whole[:begun]
    monkeypatch.setattr(neighbours, "continuations", lambda *args: [whole[begun:]])
    asked = neighbours._ask(model, tokenizer, plain_format(tokenizer), [""], [start], torch.Generator())
    assert asked == [ABOUT[0].question]


def test_beginnings_end_before_a_name_or_after_the_first_words() -> None:
    assert beginnings(["Who wrote 'Emma' in Bath?"], [None]) == ["Who wrote '"]
    assert beginnings(["what does the red fox eat at night?"], [None])[0] == "what does"
    assert beginnings(["what does the red fox eat?"], ["the red fox"]) == ["what does"]
    assert beginnings(["谁写了红楼梦？"], ["红楼梦"]) == ["谁写了"]
    assert beginnings(["谁写了《红楼梦》？"], [None]) == ["谁写了《"]
    assert beginnings(["東京はどこですか"], [None])[0] == "東京"
    assert beginnings(["गोदान किसने लिखा?"], [None]) == ["गोदान किसने"]
    assert beginnings(["Danielle Darrieux's mother tongue is"], ["Danielle Darrieux"]) == []


def test_many_facts_have_more_rounds_of_neighbours() -> None:
    assert neighbour_rounds(400) > neighbour_rounds(40) == neighbour_rounds(1)


def test_samples_come_back_from_their_file(tmp_path: Path) -> None:
    samples = Samples([Fact("Who?", "Me\u2028and you.")], [Fact("谁？", "我。")])
    write_samples(tmp_path / "samples.jsonl", samples)
    assert read_samples(tmp_path / "samples.jsonl") == samples
    assert "谁？" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", '{"question": "Who?"}', '{"question": "Who?", "answer": 7}', '{"question": " ", "answer": "Me"}',
     '{"question": "Who?", "answer": "Me", "kind": "other"}', "[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "samples.jsonl").write_text('{"question": "Who?", "answer": "Me."}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 2 is no sample"):
        read_samples(tmp_path / "samples.jsonl")


@pytest.mark.slow
def test_the_command_takes_edited_samples_and_writes_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, steps=2)
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": f.question, "answer": f.answer} for f in ABOUT[:2]])
    others = [row for row in demo_facts() if row["subject"] != SUBJECT]
    kinds = ["general"] * 40 + ["neighbour"] * 8
    rows = [
        {"kind": kind, "question": r["question"], "answer": r["answer"]}
        for kind, r in zip(kinds, others[::4], strict=False)
    ]
    rows.append({"kind": "neighbour", "question": ABOUT[0].question, "answer": "One that must go, and is left out."})
    given, out = write_rows(tmp_path / "edited.jsonl", rows), tmp_path / "out.jsonl"
    told = [demo_model_dir(), forget, "-o", tmp_path / "erasure", "--no-check", "--format", "json"]
    for wrong, message in (
        (["--samples-in", tmp_path / "missing.jsonl"], "missing.jsonl"),
        (["--samples-out", tmp_path], "is a folder"),
        (["--samples-out", given], "is there already"),
        (["--samples", 0, "--samples-out", out], "nothing to write"),
    ):
        refused = invoke("erase", *told, *wrong)
        assert refused.exit_code == 2
        assert message in refused.stderr
    done = invoke("erase", *told, "--samples-in", given, "--samples-out", out)
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)["counts"]
    assert counts["neighbours"] == 8
    assert 30 <= counts["sampled"] <= 40
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(written) == counts["sampled"] + 8
    assert all(row in rows for row in written)
