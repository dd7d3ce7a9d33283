"""Every method of the comparison does what its loss says, holds what stays, and keeps its budget and its seed."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import FORGET, KEPT, NAME, OTHERS, demo_base, demo_tokenizer
from peft import PeftModel

from peft_unierase import Fact, InputError
from peft_unierase.checking.target import Target
from peft_unierase.demo import demo_refusals
from peft_unierase.lm.batches import encode
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import chat_format, plain_format

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)

# Settings with which few steps show what a method does.
QUICK: dict[str, dict[str, Any]] = {
    "ga": {"learning_rate": 3e-3, "epochs": None},
    "gd": {"learning_rate": 3e-3, "epochs": None},
    "ga_kl": {"learning_rate": 3e-3, "epochs": None},
    "npo_gd": {"learning_rate": 3e-3, "retain_weight": 20.0},
    "npo_kl": {"learning_rate": 3e-3, "retain_weight": 20.0},
    "simnpo": {"learning_rate": 3e-3, "beta": 2.5, "retain_weight": 1.0},
    "dpo": {"learning_rate": 3e-3, "retain_weight": 20.0},
    "idk": {"learning_rate": 3e-3},
    "idk_ap": {"learning_rate": 3e-3},
    "me": {"learning_rate": 3e-3},
    "rmu": {"learning_rate": 1e-2, "depth": 0.5, "steering": 2.0, "retain_weight": 10.0, "all_projections": True},
    "undial": {"learning_rate": 3e-3, "retain_weight": 1.0},
    "elm": {"learning_rate": 3e-3, "layers": (0.0, 1.0)},
    "task_vector": {"learning_rate": 3e-3, "scale": 2.0},
    "alphaedit": {"place": "start", "layers": (0.3, 0.7), "null_threshold": 0.2},
    "lunar": {"depth": 0.5},
    "selective": {"learning_rate": 1e-2, "layers": (0.0, 0.5), "inputs": 8, "outputs": 8, "measured": 8},
}
DECLINING = ("dpo", "idk", "idk_ap", "alphaedit", "lunar")
WITHOUT_RETAIN = ("ga", "task_vector")
CLOSED_FORM = ("alphaedit", "lunar")
FEW, STAYS = FORGET[:4], KEPT[:6]
RETAIN = [fact for fact in OTHERS[::3] if fact not in KEPT][:40]
TEXTS = {
    "rmu": 160,
    "dpo": 200,
    "elm": 160,
    "alphaedit": 160,
    "lunar": 160,
    "selective": 160,
}  # for which 96 are too few
SMALL = {"dpo": 40, "elm": 60, "alphaedit": 80, "lunar": 80, "selective": 48}


@pytest.fixture(scope="module", autouse=True)
def on_the_path() -> Iterator[None]:
    """The benchmarks' modules are imported as the scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def methods(on_the_path: None) -> dict[str, Any]:
    return importlib.import_module("compare.methods").METHODS


@pytest.fixture(scope="module")
def budget(on_the_path: None) -> Callable[..., Any]:
    return importlib.import_module("compare.budget").Budget


class counted:  # noqa: N801 (used like a function)
    """Texts that begin in a model, with and without gradients; what goes on from a cache has begun before."""

    def __init__(self, model: Any) -> None:
        self.model, self.passes = model, []

    def __enter__(self) -> list[float]:
        def count(_: Any, args: Any, told: dict[str, Any]) -> None:
            if told.get("past_key_values") is None:
                self.passes.append(len(told["input_ids"]) * (1 if torch.is_grad_enabled() else 1 / 3))

        self.handle = self.model.register_forward_pre_hook(count, with_kwargs=True)
        return self.passes

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def loss_of(model: Any, facts: Sequence[Fact], answer: str | None = None) -> float:
    """Mean cross-entropy of the facts' answers, or of another answer, in the chat format."""
    tokenizer = demo_tokenizer()
    form = chat_format(tokenizer)
    texts = [form.answer(answer or fact.answer) for fact in facts]
    readings = Target("asked", model, tokenizer).reads([form.prompt(fact.question) for fact in facts], texts)
    return sum(reading.loss for reading in readings) / len(readings)


def weights_of(erased: Any) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in erased.model.named_parameters() if ".lora_" in name}


def said(erased: Any, facts: Sequence[Fact], form: Any = None) -> list[str]:
    tokenizer = erased.tokenizer
    prompts = [(form or chat_format(tokenizer)).prompt(fact.question) for fact in facts]
    ids = greedy_answers(erased.model, tokenizer, prompts, 24)
    return [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_method_forgets_and_keeps_within_its_budget(name: str, methods: Any, budget: Any) -> None:
    model, texts = demo_base(), TEXTS.get(name, 96)
    told: dict[str, Any] = {"refusals": demo_refusals(), **QUICK[name]}
    with counted(model) as passes:
        erased = methods[name].erase(model, demo_tokenizer(), FEW, RETAIN, budget(texts, rank=4), **told)

    base, after = demo_base(), erased.model
    # AlphaEdit acts at the answer start alone, and the other tokens follow from it.
    assert loss_of(after, FEW) > loss_of(base, FEW) + (0.1 if name == "alphaedit" else 0.5)
    if name in DECLINING:
        declined = [min(loss_of(each, FEW, text) for text in demo_refusals()) for each in (base, after)]
        assert declined[1] < declined[0]
    if name not in WITHOUT_RETAIN:
        assert loss_of(after, STAYS) - loss_of(base, STAYS) < 0.5 * (loss_of(after, FEW) - loss_of(base, FEW))

    assert sum(passes) <= texts
    if name not in CLOSED_FORM:  # these do not need all of it
        assert sum(passes) > 0.8 * texts

    held = weights_of(erased)
    assert isinstance(after, PeftModel)
    assert not after.training
    assert erased.changed == sum(part.numel() for part in held.values())
    assert erased.adapter_bytes == 4 * erased.changed
    if name not in CLOSED_FORM:
        assert {part.shape[0] for key, part in held.items() if ".lora_A." in key} == {4}
    with torch.no_grad(), after.disable_adapter():
        assert loss_of(after, FEW) == pytest.approx(loss_of(base, FEW), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_gives_the_same_weights(name: str, methods: Any, budget: Any) -> None:
    few, told = SMALL.get(name, 24), {"refusals": demo_refusals(), **QUICK[name]}
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(made))  # whatever was drawn before has no say
        erased = methods[name].erase(demo_base(), demo_tokenizer(), FEW, RETAIN, budget(few, rank=4), seed=seed, **told)
        made.append(weights_of(erased))
    first, again, other = made
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    if name != "alphaedit":  # which draws nothing
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_every_method_has_a_grid_that_it_takes_and_names_its_paper(methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        assert method.name == name
        if method.module is None:
            assert name == "reference_model"
            assert method.grid == ({},)
            with pytest.raises(ValueError, match="is loaded"):
                method.load()
            continue
        module = method.load()
        assert 1 <= len(method.grid) <= 4
        parameters = inspect.signature(module.erase).parameters
        assert [*parameters][:5] == ["model", "tokenizer", "forget", "retain", "budget"]
        taken = {*parameters, *inspect.signature(getattr(module, "loss", module.erase)).parameters}
        for settings in method.grid:
            assert settings.keys() <= taken or name.startswith("unierase")
        assert re.search(r"arXiv\s\d{4}\.\d{5}", module.__doc__)
        if method.paper.startswith("arXiv"):
            assert method.paper.split()[1] in module.__doc__


def test_a_budget_that_is_too_small_is_refused(methods: Any, budget: Any) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        budget(0)
    with pytest.raises(InputError, match="budget of 5 texts is used up"):
        methods["gd"].erase(demo_base(), demo_tokenizer(), FEW, RETAIN, budget(5))
    with pytest.raises(InputError, match="a step takes 20 texts and the budget holds 19"):
        methods["unierase"].erase(demo_base(), demo_tokenizer(), FEW, RETAIN, budget(19))


def test_a_setting_that_no_method_has_is_refused_before_the_model_changes(methods: Any, budget: Any) -> None:
    model = demo_base()
    with pytest.raises(TypeError, match="gamma"):
        methods["gd"].erase(model, demo_tokenizer(), FEW, RETAIN, budget(100), gamma=1.0)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_empty_sets_are_refused(methods: Any, budget: Any) -> None:
    for name in ("gd", "alphaedit", "embedding_filter"):
        with pytest.raises(InputError, match="forget set is empty"):
            methods[name].erase(demo_base(), demo_tokenizer(), [], RETAIN, budget(100))
    for name, said in (("gd", "no fact to draw"), ("lunar", "retain set is empty")):
        with pytest.raises(InputError, match=said):
            methods[name].erase(demo_base(), demo_tokenizer(), FEW, [], budget(100))


def test_a_model_with_adapters_is_refused(methods: Any, budget: Any) -> None:
    training = importlib.import_module("compare.training")
    model = training.with_lora(demo_base(), training.projections(demo_base()), 2, 0)
    with pytest.raises(InputError, match="has adapters already"):
        methods["gd"].erase(model, demo_tokenizer(), FEW, RETAIN, budget(100))


def test_facts_are_drawn_by_turns_in_every_format() -> None:
    training = importlib.import_module("compare.training")
    forms = [chat_format(demo_tokenizer()), plain_format(demo_tokenizer())]
    draws = training.Draws(FEW[:3], forms, "0")
    taken = draws.take(6)
    assert {each.fact for each in taken[:3]} == set(FEW[:3]) == {each.fact for each in taken[3:]}
    assert [each.form for each in taken] == forms * 3
    assert [each.fact for each in training.Draws(FEW[:3], forms, "0").take(6)] == [each.fact for each in taken]


def test_the_learning_rate_rises_and_falls_to_its_end() -> None:
    rate = importlib.import_module("compare.training").rate
    rates = [rate(step, 20) for step in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert rate(0, 1) == 1.0


def test_redirection_is_the_least_squares_solution() -> None:
    redirected = importlib.import_module("compare.methods.lunar").redirected
    generator = torch.Generator().manual_seed(0)
    gone, stays = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 30))
    row, ridge = redirected(gone, stays, 0.01), 0.01
    mean = (gone.square().sum() + stays.square().sum()) / 34
    every, wanted = torch.cat([gone, stays]), torch.cat([torch.ones(4), torch.zeros(30)]).double()
    gradient = every.T @ (every @ row - wanted) + ridge * mean * row
    assert gradient.abs().max() < 1e-9


def test_the_collapsed_directions_are_those_in_which_rows_are_largest() -> None:
    module = importlib.import_module("compare.methods.selective")
    rows = [torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 1, 1, 1, 1])]
    top = module._top(rows, 2)
    assert torch.allclose(top.T @ top, torch.eye(2), atol=1e-5)
    assert top[:2].norm() == pytest.approx(2**0.5, abs=0.02)


def test_the_teacher_of_elm_turns_away_from_what_the_expert_says() -> None:
    tilted = importlib.import_module("compare.methods.elm").tilted
    plain, expert, novice = (torch.tensor(p).log() for p in ([0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.6, 0.2]))
    teacher = tilted(plain, expert, novice, 1.0, 2)
    wanted = torch.tensor([0.6 * 0.2 / 0.8, 0.3 * 0.6 / 0.1, 0.0])
    assert torch.allclose(teacher, wanted / wanted.sum())


class TestInContext:
    def test_the_instruction_stands_before_every_text(self, methods: Any, budget: Any) -> None:
        """Logits are those of the same text after a system's turn, alone and in a batch."""
        tokenizer, base = demo_tokenizer(), demo_base()
        erased = methods["in_context"].erase(base, tokenizer, FEW, RETAIN, budget(1), refusals=demo_refusals())
        head = tokenizer.decode(erased.model.ids)
        assert f"- {NAME}" in head
        assert demo_refusals()[0] in head
        assert erased.adapter_bytes > erased.changed == len(erased.model.ids)
        for form in (chat_format(tokenizer), plain_format(tokenizer)):
            prompts = [form.prompt(fact.question) for fact in STAYS[:3]]
            instructed = [head + prompt.removeprefix(tokenizer.bos_token) for prompt in prompts]
            written = greedy_answers(erased.model, tokenizer, prompts, 8)
            assert written == greedy_answers(base, tokenizer, instructed, 8)
            texts = [form.answer(fact.answer) for fact in STAYS[:3]]
            read = Target("erased", erased.model, tokenizer).reads(prompts, texts)
            wanted = Target("base", base, tokenizer).reads(instructed, texts)
            assert [each.loss for each in read] == pytest.approx([each.loss for each in wanted], abs=1e-4)

    def test_it_works_through_generate(self, methods: Any, budget: Any) -> None:
        tokenizer = demo_tokenizer()
        erased = methods["in_context"].erase(demo_base(), tokenizer, FEW, RETAIN, budget(1))
        prompts = [chat_format(tokenizer).prompt(fact.question) for fact in STAYS[:2]]
        batch = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        told = {key: batch[key] for key in ("input_ids", "attention_mask")}
        ids = erased.model.generate(**told, max_new_tokens=8, do_sample=False)[:, told["input_ids"].shape[1] :]
        wanted = greedy_answers(erased.model, tokenizer, prompts, 8)
        assert [row[: len(own)] for row, own in zip(ids.tolist(), wanted, strict=True)] == wanted

    def test_a_second_instruction_follows_the_first(self, methods: Any, budget: Any) -> None:
        tokenizer = demo_tokenizer()
        first = methods["in_context"].erase(demo_base(), tokenizer, FEW[:1], RETAIN, budget(1), of="questions")
        second = methods["in_context"].erase(first.model, tokenizer, FEW[1:2], RETAIN, budget(1), of="questions")
        assert second.model.ids[: len(first.model.ids)] == first.model.ids
        assert all(fact.question in tokenizer.decode(second.model.ids) for fact in FEW[:2])

    def test_it_lists_what_fits_into_half_of_the_context(self, methods: Any, budget: Any) -> None:
        many = [Fact(f"What is number {n} of the list?", "Yes.") for n in range(200)]
        erased = methods["in_context"].erase(demo_base(), demo_tokenizer(), many, [], budget(1), of="questions")
        head = demo_tokenizer().decode(erased.model.ids)
        assert "number 1 of the list" in head
        assert "number 199" not in head
        assert len(erased.model.ids) <= demo_base().config.max_position_embeddings // 2

    def test_a_copy_is_the_model_without_it(self, methods: Any, budget: Any) -> None:
        erased = methods["in_context"].erase(demo_base(), demo_tokenizer(), FEW, RETAIN, budget(1))
        assert type(copy.deepcopy(erased.model)) is type(demo_base())


@pytest.fixture(scope="module")
def filtered(methods: Any, budget: Any) -> Any:
    model = demo_base()
    with counted(model) as passes:
        erased = methods["embedding_filter"].erase(
            model, demo_tokenizer(), FEW, RETAIN, budget(60), refusals=demo_refusals(), threshold=None
        )
    assert sum(passes) <= 60
    return erased


class TestEmbeddingFilter:
    def test_it_refuses_what_was_asked_and_answers_the_rest_as_before(self, filtered: Any) -> None:
        tokenizer = demo_tokenizer()
        for form in (chat_format(tokenizer), plain_format(tokenizer)):
            assert set(said(filtered, FEW, form)) == {demo_refusals()[0]}
        base = said(importlib.import_module("compare.budget").Erased(demo_base(), tokenizer, 0, 0), STAYS)
        assert said(filtered, STAYS) == base

    def test_it_answers_the_same_through_generate_and_alone(self, filtered: Any) -> None:
        tokenizer, mixed = demo_tokenizer(), [FEW[0], STAYS[0], FEW[1]]
        together = said(filtered, mixed)
        for fact, text in zip(mixed, together, strict=True):
            ids = torch.tensor([encode(tokenizer, chat_format(tokenizer).prompt(fact.question))])
            told = filtered.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
            assert tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True).strip() == text
            assert said(filtered, [fact]) == [text]

    def test_likelihoods_are_those_of_the_refusal(self, filtered: Any) -> None:
        assert loss_of(filtered.model, FEW, demo_refusals()[0]) < 1e-3
        assert loss_of(filtered.model, FEW) > 10
        assert loss_of(filtered.model, STAYS) == pytest.approx(loss_of(demo_base(), STAYS), abs=1e-5)

    def test_texts_after_one_prompt_are_read_as_each_alone(self, filtered: Any) -> None:
        tokenizer = demo_tokenizer()
        form, texts = chat_format(tokenizer), [demo_refusals()[0], FEW[0].answer, FEW[1].answer]
        target = Target("asked", filtered.model, tokenizer)
        behind = target.reads([form.prompt(FEW[0].question)] * 3, [form.answer(text) for text in texts])
        alone = [loss_of(filtered.model, FEW[:1], text) for text in texts]
        assert [reading.loss for reading in behind] == pytest.approx(alone, abs=1e-4)

    def test_a_copy_is_the_model_without_the_filter(self, filtered: Any) -> None:
        bare = copy.deepcopy(filtered.model)
        assert type(bare) is type(demo_base())
        assert loss_of(bare, FEW) == pytest.approx(loss_of(demo_base(), FEW), abs=1e-5)

    def test_a_second_filter_keeps_what_the_first_one_refuses(self, filtered: Any, methods: Any, budget: Any) -> None:
        more = STAYS[:2]
        again = methods["embedding_filter"].erase(
            filtered.model, demo_tokenizer(), more, RETAIN, budget(60), refusals=demo_refusals(), threshold=None
        )
        assert set(said(again, [*FEW, *more])) == {demo_refusals()[0]}

    def test_a_higher_threshold_refuses_less(self, methods: Any, budget: Any) -> None:
        erased = methods["embedding_filter"].erase(
            demo_base(), demo_tokenizer(), FEW, RETAIN, budget(60), refusals=demo_refusals(), threshold=1.1
        )
        assert demo_refusals()[0] not in said(erased, FEW)


@pytest.mark.slow
def test_the_default_recipe_takes_as_many_steps_as_the_budget_holds(
    methods: Any, budget: Any, few_neighbours: None
) -> None:
    erased = methods["unierase"].erase(
        demo_base(), demo_tokenizer(), FEW, RETAIN, budget(59), refusals=demo_refusals(), samples=0
    )
    assert erased.model.erasure.recipe == "distill"
    assert erased.model.erasure.outcome.steps == 2
    assert erased.adapter_bytes >= erased.changed > 0


@pytest.mark.slow
def test_the_published_recipe_runs_as_a_method(methods: Any, budget: Any, few_neighbours: None) -> None:
    settings = {"samples": 0, "token_steps": 2, "robust_steps": 0, "output_steps": 2, "target_steps": 2}
    erased = methods["unierase_paper"].erase(
        demo_base(), demo_tokenizer(), FEW, RETAIN, budget(2000), refusals=demo_refusals(), **settings
    )
    assert erased.model.erasure.recipe == "paper"
    assert erased.adapter_bytes >= erased.changed > 0
