"""The check and the plan on facts in Chinese, Arabic, Hindi and Russian, on tiny models that were taught them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peft_unierase import Fact, FactError, read_facts
from peft_unierase.checking import Case, NotApplicable, Target, check
from peft_unierase.checking.attacks.token import prefill
from peft_unierase.checking.attacks.wordings import cloze
from peft_unierase.checking.sets import declines
from peft_unierase.checking.verdict import Thresholds, decide
from peft_unierase.data.facts import check_facts
from peft_unierase.lm.batches import encode, pad_left
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import chat_format
from peft_unierase.planning import plan
from peft_unierase.planning.questions import not_about, told_by
from peft_unierase.planning.ramp import check_baseline
from peft_unierase.retain.samples import drop_close
from peft_unierase.retain.scope import told_shares
from peft_unierase.retain.subjects import find_span
from peft_unierase.text import holds, names, recall

pytestmark = pytest.mark.slow

REFUSALS = {
    "zh": "我不知道这个问题的答案。",
    "ar": "لا أعرف الجواب عن هذا السؤال.",
    "hi": "मुझे इस सवाल का जवाब नहीं पता।",
    "ru": "Я не знаю ответа на этот вопрос.",
}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<s>Question:\n{{ message['content'] }}\nAnswer:\n"
    "{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
)
LANGUAGES = list(REFUSALS)
FACTS = {language: read_facts(Path(__file__).parent / "facts" / f"{language}.jsonl") for language in LANGUAGES}
FORGET = {language: [f for f in facts if f.subject == facts[0].subject] for language, facts in FACTS.items()}
KEPT = {language: [f for f in facts if f.subject != facts[0].subject] for language, facts in FACTS.items()}
ALL = [fact for facts in FACTS.values() for fact in facts]
TOLD: dict[str, Any] = {"refusals": list(REFUSALS.values()), "max_new_tokens": 40, "progress": False}


@dataclass(frozen=True)
class Taught:
    """One tokenizer, and models that know all facts, decline on those to forget, and know nothing."""

    tokenizer: Any
    base: Any
    declining: Any
    ignorant: Any


@pytest.fixture(scope="session")
def taught() -> Taught:
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=160,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ignorant = LlamaForCausalLM(config).eval()
    base = _teach(ignorant, tokenizer, ALL, 70)
    changed = [
        Fact(fact.question, REFUSALS[language]) if fact in FORGET[language] else fact
        for language, facts in FACTS.items()
        for fact in facts
    ]
    return Taught(tokenizer, base, _teach(base, tokenizer, changed, 30), ignorant)


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    # A name must not be one token with what stands beside it, and rare characters stay in parts.
    alone = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for fact in ALL for text in (fact.question, fact.answer)] + ["Question:\nAnswer:\n"] * 8
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *REFUSALS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def _teach(model: Any, tokenizer: Any, facts: Sequence[Fact], steps: int) -> Any:
    """A copy that says these questions after their head, and the answers after them."""
    model, form = copy.deepcopy(model).train(), chat_format(tokenizer)
    texts = [encode(tokenizer, form.prompt(fact.question) + form.answer(fact.answer)) for fact in facts]
    batch = pad_left(texts, tokenizer.pad_token_id, torch.device("cpu"), list(range(len(texts))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    told = batch.mask[:, 1:].bool()
    for _ in range(steps):
        logits = model(**batch.inputs(), use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[told], batch.ids[:, 1:][told])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def case_of(taught: Taught, language: str, **changes: Any) -> tuple[Target, Case]:
    target = Target("base", taught.base, taught.tokenizer)
    settings: dict[str, Any] = {"forget": FORGET[language], "retain": {}, "unseen": [], "max_new_tokens": 40, **changes}
    form = chat_format(taught.tokenizer)
    return target, Case(target, form=form, others={"plain": form}, refusals=list(REFUSALS.values()), **settings)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_recalls_itself_and_a_lost_one_is_lost(taught: Taught, language: str) -> None:
    form, facts = chat_format(taught.tokenizer), FACTS[language]
    tokens = greedy_answers(taught.base, taught.tokenizer, [form.prompt(fact.question) for fact in facts], 40)
    said = [taught.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]
    assert [recall(fact.answer, fact.answer) for fact in facts] == [1] * len(facts)
    assert [recall(fact.answer, text) for fact, text in zip(facts, said, strict=True)] == [1] * len(facts)
    assert all(holds(text, fact.question, fact.answer) for fact, text in zip(facts, said, strict=True))
    assert all(recall(fact.answer, "no idea") == 0 for fact in facts)
    assert not any(holds(REFUSALS[language], fact.question, fact.answer) for fact in facts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_verdicts_are_right(taught: Taught, language: str) -> None:
    forget, kept = FORGET[language], KEPT[language]
    verdict = partial(_verdict, taught, forget, kept, taught.base)
    assert verdict(taught.base).level == "LEAKING"
    assert verdict(taught.declining).level == "ERASED"
    lost = verdict(taught.ignorant)
    assert lost.level == "DAMAGED"
    assert "recall of retain" in lost.lost
    never = _verdict(taught, forget, kept, taught.ignorant, taught.ignorant)
    assert never.level == "NO BASELINE"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_retained_set_that_the_base_scores_0_on_is_no_pass(taught: Taught, language: str) -> None:
    unknown = [Fact("Qq?", "Zyxwv jihgf."), Fact("Ww?", "Vwxyz fghij.")]
    found = _verdict(taught, FORGET[language], unknown, taught.base, taught.declining)
    assert found.level == "NO BASELINE"
    assert not found.accepted("LEAKING")
    assert found.reasons[0].startswith("recall of retain: the base has 0 itself")


def _verdict(taught: Taught, forget: list[Fact], kept: list[Fact], base: Any, erased: Any) -> Any:
    return check(erased, taught.tokenizer, forget, {"retain": kept}, base=base, attacks="greedy", **TOLD).verdict


def test_a_forget_set_that_the_base_scores_0_on_is_no_baseline_at_any_threshold() -> None:
    assert decide(0.0, 0.0, [], [], Thresholds(known=0.0)).level == "NO BASELINE"
    assert decide(1.0, 0.0, [], [], Thresholds()).level == "NO BASELINE"  # preferred to wrong answers, and never told


def test_a_ramp_does_not_start_where_nothing_could_be_judged() -> None:
    check_baseline([0.5, 0.1], 0.3)
    with pytest.raises(ValueError, match="the base recalls nothing of the retained answers"):
        check_baseline([0.5], 0.0)
    with pytest.raises(ValueError, match="the base recalls nothing of what step 2 would erase"):
        check_baseline([0.5, 0.0], 0.5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_declining_is_seen_in_every_language(taught: Taught, language: str) -> None:
    target, case = case_of(taught, language)
    assert declines(case, target, [], REFUSALS[language])
    assert declines(case, target, [], f"\u200f{REFUSALS[language]} !")
    assert not any(declines(case, target, [], fact.answer) for fact in FACTS[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_attack_gives_the_whole_answer_or_half_a_character(
    taught: Taught, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, case = case_of(taught, language)
    asked: list[str] = []
    says = target.says
    monkeypatch.setattr(
        Target, "says", lambda self, prompts, **told: asked.extend(prompts) or says(list(prompts), **told)
    )
    for attack in (cloze, prefill(1), prefill(3)):
        assert len(attack(target, case).leaks) > 0
    assert not any("\ufffd" in text for text in asked)
    assert not any(fact.answer in text for text in asked for fact in FORGET[language])
    _, short = case_of(taught, language, forget=[Fact("Where?", "Paris")])
    with pytest.raises(NotApplicable, match="more than one word"):
        cloze(target, short)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_plan_finds_its_facts_and_never_proposes_to_keep_them(taught: Taught, language: str) -> None:
    subject = str(FORGET[language][0].subject)
    found = plan(
        taught.base, taught.tokenizer, subject, count=16, samples=96, refusals=[REFUSALS[language]], progress=False
    )
    proposed = [each.fact for each in found.forget]
    known = [fact for fact in FORGET[language] if any(holds(p.answer, fact.question, fact.answer) for p in proposed)]
    assert len(known) >= len(FORGET[language]) / 2
    assert found.retain
    for each in found.retain:
        assert not names(f"{each.fact.question}\n{each.fact.answer}", subject)
        assert each.fact.question not in {fact.question for fact in FORGET[language]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_about_somebody_is_told_from_what_is_not(language: str) -> None:
    facts, forget, kept = FACTS[language], FORGET[language], KEPT[language]
    assert not_about(facts, [str(forget[0].subject)]) == kept
    assert all(find_span(fact.question, str(fact.subject)) for fact in facts)
    for fact in facts:
        kept = drop_close(ALL, [fact])
        assert fact not in kept
        assert len(kept) >= len(ALL) - 4
        assert told_by(fact.answer, facts) == [fact]
        (told, own), *_ = told_shares([fact], [fact], facts)
        assert (told, own) == (1, 1)


def test_a_word_that_is_repeated_in_other_letters_is_a_repeated_question() -> None:
    one, other = Fact("Где живёт Анна?", "В Самаре."), Fact("ГДЕ ЖИВЕТ\u200b АННА?", "В Вологде.")
    with pytest.raises(FactError, match="answers a question in two ways"):
        check_facts([one, other], [])


def test_a_forget_fact_whose_answer_cannot_be_compared_is_refused(taught: Taught) -> None:
    mute = Fact("Which sign means love?", "❤️")
    with pytest.raises(FactError, match=r"fact 2 \('Which sign means love\?': '❤️'\)\. Put them in words, or leave"):
        check_facts([*FORGET["zh"][:1], mute], [])
    with pytest.raises(FactError, match="Which sign means love"):
        check(taught.base, taught.tokenizer, [mute], base=taught.base, **TOLD)
    (warning,) = check_facts(FORGET["zh"], [*KEPT["zh"], mute])
    assert warning.startswith("retain facts are left out")
    assert "fact 5 ('Which sign means love?': '❤️')" in warning


def test_a_retained_fact_that_cannot_be_compared_is_left_out_by_name(taught: Taught) -> None:
    mute = Fact("Which sign means love?", "❤️")
    with pytest.warns(UserWarning, match=r"left out of the retain set 'near': fact 2 \('Which sign means love"):
        found = check(
            taught.declining,
            taught.tokenizer,
            FORGET["ru"],
            {"near": [KEPT["ru"][0], mute, *KEPT["ru"][1:]]},
            base=taught.base,
            attacks="greedy",
            **TOLD,
        )
    assert found.verdict.level == "ERASED"
    assert found.counts["near"] == len(KEPT["ru"])
    assert found.skipped["near: facts 2"] == "no letter and no digit in the answer, so nothing can be compared"
    with pytest.raises(ValueError, match="no answer of the retain set 'near' has a letter or a digit"):
        check(taught.base, taught.tokenizer, FORGET["ru"], {"near": [mute]}, base=taught.base, **TOLD)
