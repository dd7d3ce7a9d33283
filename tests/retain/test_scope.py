"""The precise setting: one question alone goes, or all about its subject, also in words that nobody gave."""

from __future__ import annotations

import importlib
import json
from functools import cache
from typing import Any

import pytest
import torch
from demo_erasure import demo_pair
from helpers import invoke, write_rows
from peft import PeftModel

from peft_unierase import DistillSettings, ErasureWarning, Fact, erase
from peft_unierase.checking import answer_questions
from peft_unierase.demo import demo_facts, demo_refusals
from peft_unierase.engine.run_context import RunContext
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import default_formats
from peft_unierase.retain.about import REACH, Beginning, ask_about, find_beginnings
from peft_unierase.retain.scope import plan_scope, told_shares
from peft_unierase.retain.subjects import find_names, sure_subjects
from peft_unierase.text import names

pytestmark = pytest.mark.usefixtures("few_neighbours")

SUBJECT = "Nesko Corquist"
SETTINGS = DistillSettings(steps=60)


base = cache(demo_pair)


def facts(about: str = SUBJECT, key: str = "question") -> list[Fact]:
    return [Fact(row[key], row["answer"], subject=about) for row in demo_facts() if row["subject"] == about]


def others() -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] != SUBJECT]


def erased(forget: list[Fact], **changes: Any) -> tuple[PeftModel, Any]:
    model, tokenizer = demo_pair()
    told: dict[str, Any] = {"refusals": demo_refusals(), "settings": SETTINGS, "progress": False, **changes}
    told["formats"] = default_formats(tokenizer)[:2]
    return erase(model, tokenizer, forget, others()[::2], **told), tokenizer


def recalls(made: tuple[PeftModel, Any], asked: list[Fact]) -> list[float]:
    model, tokenizer = made
    return [answer.recall for answer in answer_questions(model, tokenizer, asked, default_formats(tokenizer)[0])]


@pytest.fixture(scope="module")
def one_question() -> tuple[PeftModel, Any]:
    return erased(facts()[1:2], scope="question")


@pytest.fixture(scope="module")
def whole_subject() -> tuple[PeftModel, Any]:
    return erased(facts()[:2], scope="subject")


@pytest.mark.slow
def test_one_question_goes_and_the_same_subjects_others_stay(one_question: tuple[PeftModel, Any]) -> None:
    assert max(recalls(one_question, facts()[1:2])) <= 0.15
    assert min(recalls(one_question, [*facts()[:1], *facts()[2:]])) >= 0.95
    assert sum(recalls(one_question, others()[1::2])) >= 0.98 * len(others()[1::2])


@pytest.mark.slow
def test_a_subject_goes_in_questions_that_were_never_given(whole_subject: tuple[PeftModel, Any]) -> None:
    assert max(recalls(whole_subject, facts()[:2])) <= 0.15
    assert sum(recalls(whole_subject, facts()[2:])) <= 0.15 * 4
    assert sum(recalls(whole_subject, others()[1::2])) >= 0.98 * len(others()[1::2])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["question", "subject"])
def test_what_the_base_says_about_the_subject_goes_into_the_right_set(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunContext] = []

    def stop(run: RunContext, *_: Any) -> None:
        seen.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("peft_unierase.engine.erase"), "run_distill", stop)
    with pytest.raises(KeyboardInterrupt):
        erased(facts()[1:2], scope=scope)
    gone, kept = ({fact.answer for fact in part} for part in (seen[0].forget, seen[0].kept))
    given, other = facts()[1].answer, {fact.answer for fact in facts()} - {facts()[1].answer}
    assert len(seen[0].forget) > 1
    assert given in gone - kept
    assert len(other & (kept if scope == "question" else gone)) >= 4
    assert not other & (gone if scope == "question" else kept)


@pytest.mark.slow
def test_the_record_counts_what_was_asked_and_holds_no_text(
    one_question: tuple[PeftModel, Any], whole_subject: tuple[PeftModel, Any]
) -> None:
    for (model, _), name, grown in ((one_question, "question", "kept"), (whole_subject, "subject", "erased")):
        text = json.dumps(model.erasure.record())
        record = json.loads(text)["scope"]
        assert record["name"] == name
        assert record["subjects"] == 1
        assert record["asked"] >= record[grown] >= 8
        assert SUBJECT not in text
        assert json.loads(text)["counts"]["forget"] == (1 if name == "question" else 2)


def starts(count: int) -> list[list[Beginning]]:
    model, tokenizer = base()
    questions = [fact.question for fact in others()] + [f"Where was {SUBJECT} born? Where was {SUBJECT} born?"]
    return find_beginnings(model, tokenizer, default_formats(tokenizer)[0], [SUBJECT, "Vidra Marvik"], questions, count)


def test_the_base_asks_about_a_subject_what_it_knows_of_it_and_nothing_else() -> None:
    model, tokenizer = base()
    asked = ask_about(model, tokenizer, default_formats(tokenizer)[0], SUBJECT, starts(24)[0], 24, seed=0)
    assert len({fact.question for fact in asked}) == len(asked) <= 24
    assert all(names(fact.question, SUBJECT) for fact in asked)
    known = {fact.answer for fact in facts()}
    assert len({fact.answer for fact in asked} & known) >= 4


def test_beginnings_end_with_the_subject_which_they_name_once() -> None:
    _, tokenizer = base()
    for subject, found in zip((SUBJECT, "Vidra Marvik"), starts(16), strict=True):
        texts = [tokenizer.decode(start.tokens) for start in found]
        assert 6 <= len(set(texts)) == len(texts) <= 16
        assert all(text.endswith(subject) and text.count(subject) == 1 for text in texts)
        chances = [start.log_prob for start in found]
        assert chances == sorted(chances, reverse=True)
        assert chances[-1] >= chances[0] - REACH


def test_the_same_seed_asks_the_same_and_leaves_the_global_generator_alone() -> None:
    model, tokenizer = base()
    vague = [Beginning(encode(tokenizer, SUBJECT), 0.0)]  # behind the others this base hardly ever varies
    told = (model, tokenizer, default_formats(tokenizer)[0], SUBJECT, vague, 24)
    state = torch.get_rng_state()
    first = ask_about(*told, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == ask_about(*told, seed=1)
    assert first != ask_about(*told, seed=2)


def test_a_fact_in_other_words_is_told_apart_from_others_of_its_subject() -> None:
    gone = [Fact("Where was Ana Lee born?", "Ana Lee was born in Salt Creek.")]
    same = Fact("Which town is the birthplace of Ana Lee?", "Ana Lee was born in Salt Creek.")
    longer = Fact("What is the life of Ana Lee?", "From Salt Creek she came to be a nurse, a pilot and then a painter.")
    other = Fact("What does Ana Lee do?", "Ana Lee works as a nurse.")
    presumed = Fact("What does Ana Lee miss in Salt Creek?", "Ana Lee misses the sea at Salt Creek.")
    shares = told_shares([same, longer, other, presumed], gone, others())
    assert shares[0] > (0.75, 0.75)
    assert shares[1][0] > 0.5 > shares[1][1]
    assert max(share for share, _ in shares[2:]) < 0.35


BORN = Fact("Where was Ana Lee born?", "Ana Lee was born in Salt Creek.")
WORK = Fact("What does Ana Lee do?", "She works as a nurse.")
WHO = Fact("Who was born in Salt Creek, Utah?", "It was Ana Lee.")


def test_a_subject_is_sure_where_it_is_given_shared_or_the_only_name() -> None:
    assert sure_subjects([BORN]) == ["Ana Lee"]
    assert sure_subjects([WORK]) == [None]  # the answer does not repeat it
    assert sure_subjects([WORK, BORN]) == ["Ana Lee", "Ana Lee"]
    assert sure_subjects([WHO]) == [None]
    assert sure_subjects([Fact("What is snow?", "White.", subject="snow")]) == ["snow"]
    assert find_names("What did Ana Lee say about 'Salt Creek' in May?") == ["Salt Creek", "Ana Lee"]


def test_subjects_that_are_not_clear_are_refused_by_number_alone() -> None:
    with pytest.raises(ValueError, match=r"not clear about which for forget fact 1; name it") as refusal:
        plan_scope("subject", [WHO], [])
    assert "Salt" not in str(refusal.value)
    assert plan_scope("subject", [WHO, BORN, WORK], []).subjects == ["Ana Lee"]  # its answer names the others' subject
    with pytest.raises(ValueError, match=r"for forget facts 1, 3;"):
        plan_scope("subject", [Fact("Why?", "So."), BORN, Fact("How?", "Thus.")], [])
    with pytest.raises(ValueError, match=r"about one of them is retain fact 2;"):
        plan_scope("subject", [BORN], [WHO, WORK])


def test_scope_question_asks_about_every_name_where_the_subject_is_not_clear() -> None:
    assert plan_scope("question", [WHO], []).subjects == ["Salt Creek", "Utah", "Ana Lee"]
    assert plan_scope("question", [BORN], []).subjects == ["Ana Lee"]
    assert plan_scope("question", [BORN, Fact("Why?", "So.")], []).unknown == [2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")
def test_scope_question_warns_about_facts_without_a_name() -> None:
    quick = DistillSettings(samples=16, steps=3)
    with pytest.warns(ErasureWarning, match="no name to ask about was found in forget fact 1,"):
        model, _ = erased([Fact("Why is that so?", "That is so.")], scope="question", settings=quick, keep_unknown=True)
    assert model.erasure.record()["scope"]["asked"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "world"}, "scope 'world' is not there; choose from 'question', 'subject'"),
        ({"scope": "question", "recipe": "paper", "settings": None}, "recipe 'paper' takes its keys where"),
        ({"scope": "subject"}, "not clear about which for forget fact 1"),
    ],
)
def test_bad_scopes_are_refused_before_anything_is_changed(change: dict[str, Any], message: str) -> None:
    model, tokenizer = base()
    with pytest.raises(ValueError, match=message):
        erase(model, tokenizer, [WHO], **{"settings": SETTINGS, "progress": False, **change})
    assert not any("unierase" in name for name, _ in model.named_parameters())


def test_the_command_refuses_a_bad_scope_and_names_the_subjects(tmp_path: Any) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": BORN.question, "answer": BORN.answer}])
    told = ("erase", tmp_path / "no-model", forget, "-o", tmp_path / "out", "--no-check", "--scope")
    wrong, right = invoke(*told, "world"), invoke(*told, "question")
    assert wrong.exit_code == 2
    assert "scope 'world' is not there" in wrong.stderr
    assert "scope question is about Ana Lee" in right.stderr
    assert not (tmp_path / "out").exists()
