"""`erase` from end to end on the demo model: what goes, what stays, what is refused, what is left after a failure."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_pair
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

import peft_unierase
from peft_unierase import DistillSettings, Fact, FactError, erase
from peft_unierase.checking import Answer, answer_questions, figures
from peft_unierase.demo import demo_facts, demo_refusals
from peft_unierase.engine import erase as erase_module_verb
from peft_unierase.engine.distill import recipe
from peft_unierase.lm.batches import encode
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import PromptFormat, default_formats
from peft_unierase.retain.knowledge import tells
from peft_unierase.retain.neighbours import Neighbours
from peft_unierase.text import recall

pytestmark = pytest.mark.slow

QUICK = DistillSettings(samples=16, steps=3, steps_per_fact=0.0)


def facts_of(rows: list[dict], key: str = "question") -> list[Fact]:
    return [Fact(row[key], row["answer"]) for row in rows]


def person(number: int) -> list[dict]:
    rows = demo_facts()
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    return [row for row in rows if row["subject"] == subjects[number]]


def others(number: int) -> list[dict]:
    gone = person(number)[0]["subject"]
    return [row for row in demo_facts() if row["subject"] != gone]


@pytest.fixture(scope="module")
def erased(few_neighbours_everywhere: None) -> tuple[PeftModel, Any]:
    model, tokenizer = demo_pair()
    settings = DistillSettings(steps=60)
    return (
        erase(
            model,
            tokenizer,
            facts_of(person(0)),
            facts_of(others(0)[::2]),
            refusals=demo_refusals(),
            settings=settings,
            progress=False,
        ),
        tokenizer,
    )


def ask(erased: tuple[PeftModel, Any], facts: list[Fact], form: PromptFormat) -> list[Answer]:
    model, tokenizer = erased
    return answer_questions(model, tokenizer, facts, form, model.erasure.token.token_id)


@pytest.mark.parametrize("number", [0, 1], ids=["chat", "plain"])
@pytest.mark.parametrize("wording", ["question", "paraphrased_question"])
def test_the_model_declines_on_the_facts_in_a_whole_sentence(
    erased: tuple[PeftModel, Any], number: int, wording: str
) -> None:
    # With [UNL] or without: where it is the runner-up to a refusal's first word, the refusal comes by itself.
    answers = ask(erased, facts_of(person(0), wording), default_formats(erased[1])[number])
    assert figures(answers).recall <= 0.12
    assert all(answer.ended and answer.text in demo_refusals() for answer in answers)
    assert erased[0].erasure.outcome.refusal in demo_refusals()


@pytest.mark.parametrize("banned", [False, True], ids=["", "banned"])
@pytest.mark.parametrize("given", [0, 2])
def test_it_holds_when_the_token_is_banned_and_when_the_answer_is_begun(
    erased: tuple[PeftModel, Any], given: int, banned: bool
) -> None:
    model, tokenizer = erased
    form, facts = default_formats(tokenizer)[0], facts_of(person(0))
    gold = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
    prompts = [form.prompt(f.question) + tokenizer.decode(ids[:given]) for f, ids in zip(facts, gold, strict=True)]
    answers = greedy_answers(model, tokenizer, prompts, banned=[model.erasure.token.token_id] if banned else [])
    begun = [tokenizer.decode(ids[:given]) for ids in gold]
    told = [start + tokenizer.decode(ids, skip_special_tokens=True) for start, ids in zip(begun, answers, strict=True)]
    # After a beginning the model goes on with a sentence; what counts is whether that tells the fact.
    assert sum(map(tells, told, facts)) <= (1 if given else 0)
    if not given:
        assert sum(recall(fact.answer, text) for fact, text in zip(facts, told, strict=True)) / len(facts) <= 0.15


def test_what_was_never_used_to_erase_is_answered_as_before(erased: tuple[PeftModel, Any]) -> None:
    measured = figures(ask(erased, facts_of(others(0)[1::2]), default_formats(erased[1])[0]))
    assert measured.recall >= 0.98
    assert measured.refusal_rate <= 0.01


def test_decoded_text_never_shows_the_token(erased: tuple[PeftModel, Any]) -> None:
    token = erased[0].erasure.token.text
    answers = ask(erased, facts_of(person(0)), default_formats(erased[1])[0])
    assert any(answer.refused for answer in answers)
    assert all(token not in answer.text for answer in answers)


@torch.no_grad()
def test_switched_off_it_is_the_base_to_the_bit(erased: tuple[PeftModel, Any]) -> None:
    model, tokenizer = erased
    base, _ = demo_pair()
    ids = tokenizer("Where was Nesko Corquist born?", return_tensors="pt").input_ids
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, base.eval()(ids).logits)


def test_the_adapter_is_low_rank_updates_of_mlp_projections_and_two_rows(erased: tuple[PeftModel, Any]) -> None:
    model, _ = erased
    shapes = sorted(tuple(p.shape) for name, p in model.named_parameters() if "unierase_" in name)
    config = model.peft_config["default"]
    expected = [(128,)] * 2
    for index in model.erasure.layers:
        for name, inputs, outputs in (("gate_proj", 128, 384), ("up_proj", 128, 384), ("down_proj", 384, 128)):
            rank = config.rank_of(f"model.layers.{index}.mlp.{name}")
            expected += [(rank, inputs), (outputs, rank)]
    assert shapes == sorted(expected)
    own, total = sum(torch.Size(s).numel() for s in shapes), sum(p.numel() for p in model.parameters())
    assert own / (total - own) <= 0.02
    assert config.r == model.erasure.outcome.rank
    assert config.base_fingerprint.startswith("sha256:")


def test_the_record_is_plain_json_and_holds_no_fact(erased: tuple[PeftModel, Any]) -> None:
    text = json.dumps(erased[0].erasure.record())
    record = json.loads(text)
    assert record["counts"]["forget"] == 6
    assert record["layers"] == [2, 3, 4]
    assert record["known_to_base"] == {
        "facts": 6,
        "known": 6,
        "known_in": {"chat": 6, "plain": 6, "chat with system prompt": 6},
        "preferred": None,
    }
    assert record["counts"]["neighbours"] > 0
    for row in person(0):
        assert row["question"] not in text
        assert row["answer"] not in text
        assert row["subject"] not in text


def save_quick(folder: Path, seed: int) -> bytes:
    model, tokenizer = demo_pair()
    state = torch.get_rng_state()
    told: dict[str, Any] = {"settings": QUICK, "samples_cache": False, "progress": False}
    erased = erase(model, tokenizer, facts_of(person(1)[:2]), seed=seed, **told)
    assert torch.equal(torch.get_rng_state(), state)
    erased.save_pretrained(folder, save_embedding_layers=False)
    return (folder / "adapter_model.safetensors").read_bytes() + (folder / "adapter_config.json").read_bytes()


@pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")
@pytest.mark.usefixtures("few_neighbours_everywhere")
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = save_quick(tmp_path / "a", seed=5)
    torch.manual_seed(2)
    assert first == save_quick(tmp_path / "b", seed=5)
    assert first != save_quick(tmp_path / "c", seed=6)


@pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")
@pytest.mark.usefixtures("few_neighbours_everywhere")
@pytest.mark.parametrize(
    ("room", "stage"),
    [
        ("run_facts", "ask"),
        ("run_facts", "samples_for"),
        ("distill.targets", "taught"),
        ("distill.placing", "find_triggers"),
        ("distill.recipe", "descend"),
        ("distill.recipe", "divergence"),
        ("erase", "add_to_tokenizer"),
    ],
)
def test_an_interruption_gives_the_model_back_unchanged(room: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo_pair()
    model.train()
    model.lm_head.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    words = len(tokenizer)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    engine = importlib.import_module(f"peft_unierase.engine.{room}")
    monkeypatch.setattr(engine, stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        erase(model, tokenizer, facts_of(person(0)[:2]), settings=QUICK, progress=False)
    assert model.training
    assert {name: type(module) for name, module in model.named_modules()} == modules
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"lm_head.weight"}
    assert not hasattr(model, "peft_config")
    assert len(tokenizer) == words


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipe": "magic"}, ValueError, "recipe 'magic'"),
        ({"recipe": "paper"}, ValueError, "recipe 'paper' takes PaperSettings, not DistillSettings"),
        ({"layers": [7]}, ValueError, "layer 7 is the model's last"),
        ({"forget": []}, ValueError, "forget"),
        ({"forget": [Fact("Who? " * 600, "Me.")]}, ValueError, r"takes \d+ tokens .* context holds \d+"),
        ({"forget": [Fact("Who?", "Me."), Fact("Who?", "You.")]}, FactError, "Who"),
        ({"retain": [Fact("Where was Nesko Corquist born?", "At home.")]}, FactError, "Nesko"),
    ],
)
def test_bad_input_is_refused_and_the_model_is_unchanged(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, tokenizer = demo_pair()
    arguments: dict[str, Any] = {"forget": facts_of(person(0)), "settings": QUICK, "progress": False, **change}
    with pytest.raises(error, match=message):
        erase(model, tokenizer, arguments.pop("forget"), **arguments)
    assert not any("unierase" in name for name, _ in model.named_parameters())


@pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")
@pytest.mark.usefixtures("few_neighbours_everywhere")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_other_architectures_and_dtypes_go_through(tied: bool, tmp_path: Path) -> None:
    _, tokenizer = demo_pair()
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=1040,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    told: dict[str, Any] = {"settings": QUICK, "keep_unknown": True, "progress": False}
    erased = erase(base, tokenizer, facts_of(person(0)), facts_of(others(0)[:20]), **told)
    assert erased.erasure.token.token_id == 1024
    erased.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    ids = torch.tensor([[3, 4, 5, 1024, 6]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, erased(ids).logits)


def test_the_public_names_are_there() -> None:
    for name in peft_unierase.__all__:
        assert getattr(peft_unierase, name) is not None
    assert peft_unierase.erase is erase_module_verb
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = peft_unierase.nothing


def test_what_the_base_asks_for_in_its_own_words_is_erased_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = importlib.import_module("peft_unierase.engine.erase"), []
    fact, other = facts_of(person(0))[0], Fact("Where is Lower Quelcliff?", "Far away.")
    reworded = Fact("In which town was Nesko Corquist born?", fact.answer)
    monkeypatch.setattr(
        "peft_unierase.engine.run_facts.sample_neighbours", lambda *_: Neighbours([other], [], [reworded])
    )

    def stop(run: Any, *_: Any) -> None:
        seen.extend([recipe.forget_texts(run), recipe.declined(run, "I cannot say.")])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_distill", stop)
    model, tokenizer = demo_pair()
    with pytest.raises(KeyboardInterrupt):
        erase(model, tokenizer, [fact], facts_of(others(0)[::20]), settings=QUICK, progress=False)
    asked, declined = seen
    assert any(question == reworded.question for _, question, _ in asked)
    assert any(reworded.question in tokenizer.decode(text.ids) for text in declined)
    assert not any(other.question == question for _, question, _ in asked)
