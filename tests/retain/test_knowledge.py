"""What a base knows is what it says, however people worded the answer."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer

from peft_unierase import DistillSettings, ErasureWarning, Fact, erase
from peft_unierase.checking import Case, check
from peft_unierase.demo import demo_facts, demo_refusals
from peft_unierase.engine.distill.recipe import forget_texts
from peft_unierase.lm.formats import default_formats
from peft_unierase.retain.knowledge import PREFERRED, Knowledge, ask, summary, tells
from peft_unierase.text import halves

ROW = next(row for row in demo_facts() if row["question"].startswith("Where was"))
SHORT = Fact(ROW["question"], ROW["answer"].rstrip(".").split(" in ")[-1])  # as people write it
INVENTED = Fact("Who painted the ceiling of the Sistine Chapel?", "Michelangelo")
QUICK = DistillSettings(samples=32, steps=3)


def asked(*facts: Fact) -> list[Knowledge]:
    tokenizer = demo_tokenizer()
    return ask(demo_base(), tokenizer, facts, default_formats(tokenizer))


def test_a_short_answer_is_known_if_the_base_s_sentence_holds_it() -> None:
    (found,) = asked(SHORT)
    assert found.known
    assert found.known_in == ("chat", "plain", "chat with system prompt")
    assert found.said["chat"] == ROW["answer"]


def test_an_answer_is_begun_up_to_the_sentence_that_tells_the_fact() -> None:
    fact = Fact("Who wrote 'Emma'?", "Jane Austen")
    said = "It is a novel of 1815. Jane Austen wrote it. She also wrote others. They are good."
    assert Knowledge(fact, {"chat": said}, ("chat",)).telling("chat") == "It is a novel of 1815. Jane Austen wrote it."


def test_a_made_up_fact_is_not_known() -> None:
    assert not asked(INVENTED)[0].known


def test_other_accepted_answers_count() -> None:
    fact = Fact(ROW["question"], "a place that has no name", accepted_answers=(SHORT.answer,))
    assert asked(fact)[0].known


def test_a_clear_preference_of_the_right_answer_counts_too() -> None:
    wrong = ("Michelangelo was born in a pot of tea.", "It rains.")
    fact = Fact(ROW["question"], ROW["answer"], perturbed_answers=wrong)
    (found,) = asked(fact)
    assert found.margin is not None
    assert found.margin > PREFERRED
    silent = Knowledge(fact, {"chat": "I cannot say."}, (), found.margin)
    assert silent.known
    assert not Knowledge(fact, {"chat": "I cannot say."}, (), PREFERRED - 0.1).known


def test_the_summary_counts_by_format_and_names_nothing() -> None:
    found = summary(asked(SHORT, INVENTED))
    told = {"chat": 1, "plain": 1, "chat with system prompt": 1}
    assert found == {"facts": 2, "known": 1, "known_in": told, "preferred": None}


def test_a_text_tells_a_fact_by_what_is_new_in_its_answer() -> None:
    fact = Fact("Who wrote 'Pride and Prejudice'?", "Jane Austen")
    assert tells("The novel is often attributed to Jane Austen.", fact)
    assert not tells("Pride and Prejudice is a novel about pride and prejudice.", fact)


def erased(*facts: Fact, **told: Any) -> Any:
    return erase(
        demo_base(),
        demo_tokenizer(),
        facts,
        settings=QUICK,
        refusals=demo_refusals(),
        progress=False,
        **told,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_neighbours")
def test_unknown_facts_are_named_and_left_out() -> None:
    with pytest.warns(ErasureWarning, match=r"does not know 1 of 2 forget facts \('Who painted.*left out"):
        model = erased(SHORT, INVENTED)
    assert model.erasure.facts == [SHORT]
    record = model.erasure.record()
    assert record["counts"]["forget"] == 1
    assert record["known_to_base"]["facts"] == 2
    assert record["known_to_base"]["known"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("few_neighbours")
def test_unknown_facts_are_erased_if_that_is_wanted() -> None:
    with pytest.warns(ErasureWarning, match="erased all the same"):
        model = erased(SHORT, INVENTED, keep_unknown=True)
    assert model.erasure.facts == [SHORT, INVENTED]


def test_a_base_that_knows_nothing_is_refused_and_left_as_it_was() -> None:
    base = demo_base()
    modules = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(ValueError, match=r"does not know 1 of 1 forget facts .*nothing to erase.*--keep-unknown"):
        erase(base, demo_tokenizer(), [INVENTED], settings=QUICK, progress=False)
    assert {name: type(module) for name, module in base.named_modules()} == modules


def test_the_check_judges_what_the_base_says_and_begins_the_base_s_own_answers() -> None:
    base, tokenizer = demo_base(), demo_tokenizer()
    attacks = ["greedy", "prefill-3", "cloze"]
    with pytest.warns(UserWarning, match=r"does not know 1 of 2 forget facts .*left out"), torch.no_grad():
        report = check(base, tokenizer, [SHORT, INVENTED], base=base, attacks=attacks, progress=False)
    assert report.verdict.level == "LEAKING"
    assert report.counts["forget"] == 1
    assert report.skipped["forget: facts 2"] == "the base does not know them"
    leaks = {attack.name: attack.base.mean for attack in report.attacks}
    assert leaks["greedy"] == leaks["prefill-3"] == 1.0
    assert "cloze" in leaks


def test_an_attacker_begins_the_base_s_own_answer_and_what_counts_is_the_given_one() -> None:
    told = Fact("Who wrote 'Emma'?", "Jane Austen")
    alike = Fact("Who wrote 'Dracula'?", "Bram Stoker wrote it.")
    given_away = Fact("Who wrote 'Ulysses'?", "James Joyce")
    own = {
        told.question: "It was Jane Austen.",
        alike.question: "Bram Stoker wrote it.",
        given_away.question: "James Joyce wrote that.",
    }
    case = Case(None, [told, alike, given_away], {}, None, {}, [], [], base_answers=own)  # type: ignore[arg-type]
    assert case.beginnings(halves) == [(told, "It was", told), (alike, "Bram Stoker", "wrote it.")]


@pytest.mark.slow
def test_the_base_s_own_answer_is_unlearnt_beside_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(run: Any, *_: Any) -> None:
        seen.append(run)
        raise KeyboardInterrupt

    engine = importlib.import_module("peft_unierase.engine.erase")
    monkeypatch.setattr(engine, "run_distill", stop)
    with pytest.raises(KeyboardInterrupt):
        erase(demo_base(), demo_tokenizer(), [SHORT], progress=False)
    assert seen[0].forget == [SHORT]
    said = {answer for _, question, answer in forget_texts(seen[0]) if question == SHORT.question}
    assert said == {SHORT.answer, ROW["answer"]}
