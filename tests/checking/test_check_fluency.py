"""Whether an erased model that is forced to speak still says whole sentences."""

from __future__ import annotations

from typing import Any

import pytest
from demo_erasure import FORGET, KEPT, demo_base, demo_tokenizer

from peft_unierase.checking import Case, Target, check
from peft_unierase.checking.attacks.token import ban_token, prefill
from peft_unierase.checking.fluency import fluency, unrepeated
from peft_unierase.checking.page import page
from peft_unierase.cli.report import fluency_line, report_table
from peft_unierase.demo import demo_refusals
from peft_unierase.lm.formats import chat_format

TOLD: dict[str, Any] = {"refusals": demo_refusals(), "max_new_tokens": 24, "progress": False}


@pytest.fixture(scope="module")
def case() -> Case:
    base = Target("base", demo_base(), demo_tokenizer())
    form = chat_format(base.tokenizer)
    return Case(base, FORGET, {"kept": KEPT}, form, {}, [], demo_refusals(), max_new_tokens=24)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("The novel is by the author.", True),
        ("that that is is", True),
        ("The the THE novel", False),
        ("Again, again: again!", False),
        ("да, да, да", False),
        ("он сказал да да", True),
        ("他说好好好", False),
        ("他说好好", True),
        ("", True),
        ("of the of the of the", True),
    ],
)
def test_a_word_three_times_in_a_row_is_seen_in_every_script(text: str, whole: bool) -> None:
    assert unrepeated(text) == whole


def test_the_base_s_own_answers_are_as_perplexing_as_themselves_and_salad_is_more(case: Case) -> None:
    own = case.base.says(case.prompts(FORGET), max_new_tokens=24)
    usual = fluency(case, [("", text) for text in own])
    assert usual.unrepeated == 1.0
    assert usual.perplexity == pytest.approx(1.0)
    words = [" ".join(reversed(text.split())) for text in own]
    salad = fluency(case, [("", text) for text in words])
    assert salad.perplexity is not None
    assert salad.perplexity > 5
    stuck = fluency(case, [("", "the the the the"), *(("", text) for text in own[1:])])
    assert stuck.unrepeated == pytest.approx(1 - 1 / len(own))
    assert fluency(case, [("", "..."), ("In", "")]).perplexity is None


def test_what_was_given_is_not_judged_but_what_follows_it_is(case: Case) -> None:
    begun = prefill(3)(case.base, case).said
    assert [given + text for given, text in begun] == [fact.answer for fact in FORGET]
    assert all(given and text.startswith(" ") for given, text in begun)
    found = fluency(case, begun)
    assert found.perplexity is not None
    assert found.perplexity < 1.5
    strange = fluency(case, [(f"zq {given} xv", text) for given, text in begun])
    assert strange.perplexity is not None
    assert strange.perplexity > 2 * found.perplexity
    assert [given for given, _ in ban_token(case.base, case).said] == [""] * len(FORGET)


def test_attacks_that_force_a_model_to_speak_say_how_fluent_it_stays() -> None:
    base, tokenizer = demo_base(), demo_tokenizer()
    attacks = "plain,ban,prefill-3,direction"
    found = check(base, tokenizer, FORGET, KEPT, base=base, attacks=attacks, token_ids=[0], **TOLD)
    told = {attack.name: attack.fluency for attack in found.attacks}
    assert {name for name, each in told.items() if each} == {"ban", "prefill-3"}
    assert told["prefill-3"] is not None
    assert told["prefill-3"].unrepeated == 1.0
    record = {attack["name"]: attack["fluency"] for attack in found.record()["attacks"]}
    assert set(record["ban"]) == {"unrepeated", "perplexity"}
    line = fluency_line(found)
    assert line in report_table(found, brief=True)
    assert "% at worst (" in line
    assert "times that of the base's own answers" in line
    assert "100% of the texts have no word three times in a row" in page(found)
    assert fluency_line(check(base, tokenizer, FORGET[:1], base=base, attacks="greedy", **TOLD)) == ""
