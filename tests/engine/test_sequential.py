"""A further erasure on a model that carries one: both hold, neither takes what is the other's, and each can be off."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_pair
from helpers import invoke, train_tokenizer, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from peft_unierase import DistillSettings, Erasure, ErasureWarning, Fact, PaperSettings, UniEraseConfig, erase
from peft_unierase.adapter.fingerprint import base_fingerprint
from peft_unierase.adapter.swap import SwappingLayer
from peft_unierase.adapter.token_row import resize_vocabulary
from peft_unierase.checking import answer_questions, figures
from peft_unierase.cli.base import load_onto
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.engine.earlier import as_answered_now, switched_off
from peft_unierase.engine.spare_row import add_to_tokenizer, find_spare_rows
from peft_unierase.guard.load import Candidate, candidate
from peft_unierase.hub.folder import save_erasure
from peft_unierase.lm.formats import default_formats
from peft_unierase.retain.cache import weights_digest

QUICK = DistillSettings(samples=8, steps=2, steps_per_fact=0.0)
IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
DOWN = "model.layers.{}.mlp.down_proj"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning"),
    pytest.mark.usefixtures("few_neighbours"),
]


SUBJECTS = list(dict.fromkeys(row["subject"] for row in demo_facts()))


def person(number: int) -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] == SUBJECTS[number]]


def others(count: int = 2) -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in demo_facts() if row["subject"] not in SUBJECTS[:count]]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


@dataclass(frozen=True)
class Made:
    """Two erasures, one after the other, and what the model gave when it had the first alone."""

    model: PeftModel
    tokenizer: Any
    first: Erasure
    with_first: torch.Tensor
    trainable: int
    folder: Path

    def saved(self, *names: str) -> list[Candidate]:
        return [candidate(self.folder / name) for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    model, tokenizer = demo_pair()
    settings = DistillSettings(samples=64, steps=60)
    told: dict[str, Any] = {"refusals": demo_refusals(), "settings": settings, "progress": False}
    told["formats"] = default_formats(tokenizer)[:1]
    told["samples_cache"] = folder / "samples"
    model = erase(model, tokenizer, person(0), others()[::2], **told)
    first, with_first = model.erasure, logits(model)
    save_erasure(model, tokenizer, folder / "first", {}, "card")
    again = erase(model, tokenizer, person(1), others()[::2], **told)
    assert again is model
    save_erasure(model, tokenizer, folder / "second", {}, "card", adapter=model.erasure.adapter)
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    return Made(model, tokenizer, first, with_first, trainable, folder)


def recall(made: Made, facts: list[Fact]) -> float:
    form = default_formats(made.tokenizer)[0]
    return figures(answer_questions(made.model, made.tokenizer, facts, form)).recall


def carrying(
    tokenizer: Any = None, model: Any = None, name: str = "default", *, active: bool = True, **changes: Any
) -> tuple[PeftModel, Any]:
    """A model that carries an adapter of random weights, on a row of its own, without a run."""
    if model is None:
        model, tokenizer = demo_pair()
    spare = find_spare_rows(model, tokenizer, carried=list(getattr(model, "peft_config", {}).values()))[0]
    settings: dict[str, Any] = {"target_modules": [DOWN.format(3), DOWN.format(4)], "init_weights": False, **changes}
    config = UniEraseConfig(task_type="CAUSAL_LM", token_id=spare.token_id, token=spare.text, **settings)
    torch.manual_seed(len(name))
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        if active:
            model.base_model.set_adapter([*model.active_adapters, name])
    else:
        model = get_peft_model(model, config, adapter_name=name)
    with torch.no_grad():  # so small that the model still answers
        for key, parameter in model.named_parameters():
            if f"unierase_B.{name}" in key:
                parameter.mul_(1e-3)
    add_to_tokenizer(tokenizer, spare)
    return model, tokenizer


# What a further erasure is


def test_the_second_declines_and_the_first_goes_on_declining(made: Made) -> None:
    for number in (0, 1):
        assert recall(made, person(number)) <= 0.12
    assert recall(made, others()[1::2]) >= 0.98


def test_with_the_second_off_the_model_gives_the_bits_of_the_first(made: Made) -> None:
    model = made.model
    assert not torch.equal(logits(model), made.with_first)
    with switched_off(model, ["erasure-2"]):
        assert torch.equal(logits(model), made.with_first)
        assert recall(made, person(1)) >= 0.9
    with switched_off(model, ["default"]):
        assert recall(made, person(0)) >= 0.9
        assert recall(made, person(1)) <= 0.12
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(demo_base()))
    assert model.base_model.active_adapters == ["default", "erasure-2"]


def test_nothing_is_left_trainable(made: Made) -> None:
    assert made.trainable == 0
    assert not made.model.training


def test_each_has_a_row_and_a_token_of_its_own_and_the_record_says_what_was_there(made: Made) -> None:
    first, second = made.first, made.model.erasure
    assert first.token.token_id != second.token.token_id
    assert made.tokenizer.convert_tokens_to_ids([first.token.text, second.token.text]) == [
        first.token.token_id,
        second.token.token_id,
    ]
    assert (first.adapter, first.record()["onto"]) == ("default", [])
    assert (second.adapter, [one.adapter for one in second.onto]) == ("erasure-2", ["default"])
    (onto,) = json.loads(json.dumps(second.record()))["onto"]
    assert onto["token_id"] == first.token.token_id
    assert onto["digest"].startswith("sha256:")


def test_the_fingerprint_is_of_the_base_alone(made: Made) -> None:
    base, _ = demo_pair()
    for config in made.model.peft_config.values():
        assert config.base_fingerprint == base_fingerprint(base, config.target_modules)


def test_saved_apart_and_loaded_together_they_are_the_same(made: Made, tmp_path: Path) -> None:
    names = {path.name for path in (made.folder / "second").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "erasure-2" not in names
    model, tokenizer = demo_pair()
    both = load_onto(model, tokenizer, made.saved("first", "second"))
    assert both.base_model.active_adapters == ["default", "erasure-2"]
    assert torch.equal(logits(both), logits(made.model))
    assert tokenizer.get_vocab() == made.tokenizer.get_vocab()
    first, second = (load_file(made.folder / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()  # it alone was saved


def test_questions_that_the_first_declines_are_kept_as_it_answers_them(made: Made) -> None:
    form, facts = default_formats(made.tokenizer)[0], [*person(0), *others()[:20]]
    with switched_off(made.model, ["erasure-2"]):
        now = as_answered_now(made.model, made.tokenizer, form, facts)
    assert [fact.question for fact in now] == [fact.question for fact in facts]
    assert all(fact.answer.removeprefix(made.first.token.text) in demo_refusals() for fact in now[:6])
    assert now[6:] == facts[6:]


def test_samples_are_the_bare_base_s_and_come_from_its_cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = demo_pair()
    assert weights_digest(made.model.get_base_model()) == weights_digest(base)
    cache = importlib.import_module("peft_unierase.retain.cache")
    monkeypatch.setattr(cache, "sample_facts", lambda *_, **__: pytest.fail("sampled anew"))
    model, tokenizer = carrying()
    erase(model, tokenizer, person(2)[:2], settings=QUICK, samples_cache=made.folder / "samples", progress=False)


def test_facts_that_an_earlier_erasure_covers_are_warned_about(made: Made) -> None:
    model, tokenizer = demo_pair()
    model = load_onto(model, tokenizer, made.saved("first"))
    with pytest.warns(ErasureWarning) as caught:
        erase(model, tokenizer, [*person(0)[:2], *person(2)[:2]], settings=QUICK, progress=False)
    texts = [str(warning.message) for warning in caught]
    assert any(text.startswith("2 of 4 forget facts are answered otherwise with") for text in texts)
    assert not any("does not know" in text for text in texts)
    assert (model.erasure.known["facts"], model.erasure.known["known"]) == (4, 4)  # the bare base


# Failures


def snapshot(model: PeftModel, tokenizer: Any) -> dict[str, Any]:
    base, tuner = model.get_base_model(), model.base_model
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "layers": {
            name: (module.active_adapters, module.disable_adapters)
            for name, module in base.named_modules()
            if isinstance(module, SwappingLayer)
        },
        "active": (tuner.active_adapters, model.active_adapter),
        "configs": list(model.peft_config),
        "targeted": list(tuner.targeted_module_names),
        "words": len(tokenizer),
        "state": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(after: dict[str, Any], before: dict[str, Any]) -> None:
    state, old = after.pop("state"), before.pop("state")
    assert after == before
    assert state.keys() == old.keys()
    assert all(torch.equal(state[name], old[name]) for name in old)


@pytest.mark.parametrize(
    ("room", "stage"), [("run_facts", "samples_for"), ("distill.recipe", "descend"), ("erase", "add_to_tokenizer")]
)
def test_an_interruption_leaves_the_earlier_erasures_exactly_as_they_were(
    room: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On layers that the new one edits too and on one that it does not; one of them off, and some of it trainable.
    model, tokenizer = carrying()
    carrying(tokenizer, model, "off", active=False, target_modules=[DOWN.format(1)])
    model.train()
    model.base_model.model.model.layers[2].eval()
    next(p for name, p in model.named_parameters() if "unierase_A.off" in name).requires_grad_(True)
    before = snapshot(model, tokenizer)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"peft_unierase.engine.{room}"), stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        erase(model, tokenizer, person(0)[:2], settings=QUICK, progress=False)
    assert_same(snapshot(model, tokenizer), before)


def test_an_erasure_that_is_off_stays_off_and_its_row_and_name_are_left_to_it() -> None:
    model, tokenizer = carrying()
    carrying(tokenizer, model, "erasure-2", active=False)
    erased = erase(model, tokenizer, person(0)[:2], settings=QUICK, progress=False)
    assert erased.base_model.active_adapters == ["default", "erasure-3"]
    assert len({config.token_id for config in erased.peft_config.values()}) == 3
    assert erased.peft_config["erasure-3"].token == erased.erasure.token.text
    assert [one.adapter for one in erased.erasure.onto] == ["default"]


# Vocabulary


def small(tied: bool) -> tuple[Any, Any]:
    """A base without a spare row, and one row more than its tokenizer for a first erasure."""
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_next_row_has_the_next_name_and_a_new_row_is_made_only_if_that_is_allowed(tied: bool) -> None:
    base, tokenizer = small(tied)
    model, _ = carrying(tokenizer, base, target_modules=["down_proj"])
    config = model.peft_config["default"]
    assert config.token == "[UNL]"
    with pytest.raises(ValueError, match=r"so there is none for \[UNL-2\]"):
        find_spare_rows(base, tokenizer, carried=list(model.peft_config.values()))
    spare = find_spare_rows(base, tokenizer, carried=list(model.peft_config.values()), allow_resize=True)[0]
    assert (spare.text, spare.token_id, spare.resized) == ("[UNL-2]", config.token_id + 1, True)
    before = logits(model)
    resize_vocabulary(base, spare.token_id + 1)
    assert torch.equal(logits(model)[..., :-1], before)
    assert base.get_input_embeddings().unierase_row.keys() == {"default"}
    assert base.get_output_embeddings().out_features == spare.token_id + 1
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) is tied


def test_a_tokenizer_without_the_token_of_an_earlier_erasure_is_refused(made: Made) -> None:
    model, _ = carrying()
    _, plain = demo_pair()
    model.peft_config["default"].token = "[UNL]"
    with pytest.raises(ValueError, match=r"does not have \[UNL\] with id \d+, the token of an erasure that the model"):
        erase(model, plain, person(0), settings=QUICK)


# Refusals


def lora() -> PeftModel:
    return get_peft_model(demo_base(), LoraConfig(target_modules=["down_proj"], task_type="CAUSAL_LM"))


def merged() -> PeftModel:
    model, _ = carrying()
    model.merge_adapter()
    return model


def off() -> PeftModel:
    model, _ = carrying()
    model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lora, r"adapters of type LORA; .*merge_and_unload"),
        (lambda: lora().get_base_model(), r"adapter layers \(Linear\) that no PeftModel of erasures holds"),
        (lambda: carrying()[0].get_base_model(), r"\(EditLayer, InputRowLayer, OutputRowLayer\) that no PeftModel"),
        (merged, r"adapters \['default'\] are merged.*unmerge_adapter"),
        (off, r"switched off.*enable_adapter_layers"),
    ],
    ids=["LoRA", "LoRA without PeftModel", "without PeftModel", "merged", "switched off"],
)
def test_a_model_that_cannot_take_a_further_erasure_is_refused(make: Any, message: str) -> None:
    model = make()
    modules = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        erase(model, demo_pair()[1], person(0), settings=QUICK)
    assert {name: type(module) for name, module in model.named_modules()} == modules


@pytest.mark.parametrize(
    ("name", "message"),
    [("default", "already has an adapter 'default'; give another `adapter_name`"), ("a.b", "'a.b' holds a dot")],
)
def test_a_name_that_is_taken_or_no_name_is_refused(name: str, message: str) -> None:
    model, tokenizer = carrying()
    with pytest.raises(ValueError, match=message):
        erase(model, tokenizer, person(0), settings=QUICK, adapter_name=name)


# Recipe paper


def test_recipe_paper_protects_the_keys_of_the_first() -> None:
    model, tokenizer = demo_pair()
    settings = PaperSettings(samples=4, token_steps=2, robust_steps=1, output_steps=2, target_steps=2)
    for number in range(2):
        model = erase(
            model, tokenizer, person(number)[:3], others()[::8], recipe="paper", settings=settings, progress=False
        )
        protected = [layer.earlier for layer in model.erasure.outcome.layers]
        assert [count > 0 for count in protected] == [number == 1] * len(protected)


# The command


def test_the_command_makes_one_on_top_of_others_and_says_how_to_load_both(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = importlib.import_module("peft_unierase.engine")

    def hastily(*arguments: Any, **told: Any) -> PeftModel:
        return erase(*arguments, **{**told, "settings": QUICK})

    monkeypatch.setattr(engine, "erase", hastily)
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": f.question, "answer": f.answer} for f in person(2)])
    output = tmp_path / "third"
    onto = [option for name in ("first", "second") for option in ("--onto", made.folder / name)]
    ended = invoke("erase", demo_model_dir(), forget, "-o", output, *onto, "--no-check", "--format", "human")
    assert ended.exit_code == 0, ended.output
    record = json.loads((output / "erasure.json").read_text())["predicate"]
    assert [one["token_id"] for one in record["onto"]] == [made.first.token.token_id, made.model.erasure.token.token_id]
    assert record["check"] == {"verdict": None, "not_run": "--no-check was given"}
    assert str(made.folder) not in (output / "erasure.json").read_text()
    card = (output / "README.md").read_text()
    assert "2 earlier erasures" in card
    assert str(made.folder) not in card

    lines = ended.output.split("Next, in Python:")[1]
    model, _ = demo_pair()
    found: dict[str, Any] = {"base": model}
    exec("\n".join(line.strip() for line in lines.strip().splitlines()), found)
    assert found["model"].base_model.active_adapters == ["first", "second", "third"]
    ours, tokenizer = demo_pair()
    ours = load_onto(ours, tokenizer, [*made.saved("first", "second"), candidate(output)])
    assert torch.equal(logits(found["model"].eval()), logits(ours))
    assert not torch.equal(logits(ours), logits(made.model))


@pytest.mark.parametrize(
    ("onto", "message"),
    [
        (["nowhere"], "nowhere holds no erasure"),
        (["first", "first"], "first twice"),
        (["first", "out"], "out is both --onto and the output"),
    ],
)
def test_the_command_refuses_what_it_cannot_load(made: Made, tmp_path: Path, onto: list[str], message: str) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": f.question, "answer": f.answer} for f in person(2)])
    shutil.copytree(made.folder / "second", tmp_path / "out")
    places = {name: tmp_path / name for name in ("nowhere", "out")}
    told = [option for name in onto for option in ("--onto", places.get(name, made.folder / name))]
    ended = invoke("erase", demo_model_dir(), forget, "-o", tmp_path / "out", "--overwrite", *told)
    assert ended.exit_code == 2
    assert pytest.importorskip("re").search(message, ended.output.replace("\n", " "))


def test_a_base_that_is_not_the_erasure_s_is_refused(made: Made) -> None:
    model, tokenizer = demo_pair()
    with torch.no_grad():
        model.get_submodule(DOWN.format(2)).weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"^this is not the base that the erasure was made for"):
        load_onto(model, tokenizer, made.saved("first"))
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(made.folder / 'first'))}: this is not the base that the erasure"
    ):
        load_onto(model, tokenizer, made.saved("first", "second"))
