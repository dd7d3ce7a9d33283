"""The engine's smaller parts on the boxed model: refusal losses, retain samples, what the base knows, prompts."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase.boxed import boxed_facts, boxed_model_dir, boxed_refusals
from peft_unierase.engine.gate.answered import sequences_of
from peft_unierase.engine.refusal import CachedPrompts, FreeColumns, RefusalLesson, fit_input_row, likely_refusals
from peft_unierase.engine.samples import drop_close
from peft_unierase.facts import Fact
from peft_unierase.prompts import (
    PromptFormat,
    batches,
    chat_format,
    default_formats,
    encode,
    greedy_answers,
    plain_format,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(boxed_model_dir())
    return AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=torch.float32).eval(), tokenizer


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in boxed_facts()[:20]]


def test_formats_meet_at_the_door(base: tuple[Any, Any]) -> None:
    _, tokenizer = base
    chat = chat_format(tokenizer)
    assert chat.prompt("Who?") == "<|bos|><|user|>Who?<|assistant|>"
    assert chat.answer("Me.") == "Me.<|eos|>"
    assert plain_format(tokenizer).prompt("Who?") == "<|bos|>Question: Who?\nAnswer:"
    with_system = chat_format(tokenizer, "Be brief.")
    assert "Be brief." in with_system.head
    assert [form.name for form in default_formats(tokenizer)] == ["chat", "plain", "chat with system prompt"]


def test_a_tokenizer_without_a_template_gets_plain_formats_alone(base: tuple[Any, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(boxed_model_dir())
    tokenizer.chat_template = None
    assert [form.name for form in default_formats(tokenizer)] == ["plain", "plain, short"]
    with pytest.raises(ValueError, match="no chat template"):
        chat_format(tokenizer)


def test_batches_hold_every_sequence_once_and_end_in_one_column() -> None:
    sequences = [[1] * length for length in (5, 1, 3, 9, 2)]
    seen = []
    for batch in batches(sequences, 0, CPU, tokens=10):
        seen += batch.index
        assert bool((batch.mask[:, -1] == 1).all())
        assert batch.mask.sum(dim=1).tolist() == [len(sequences[index]) for index in batch.index]
        assert batch.positions.max() == batch.mask.sum(dim=1).max() - 1
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_answers_do_not_depend_on_the_company_in_the_batch(base: tuple[Any, Any], facts: list[Fact]) -> None:
    model, tokenizer = base
    form = chat_format(tokenizer)
    prompts = [form.prompt(fact.question) for fact in facts[:6]]
    together = greedy_answers(model, tokenizer, prompts)
    assert together == [greedy_answers(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in together] == [f.answer for f in facts[:6]]


@pytest.mark.parametrize("skips", [[0] * 5, [1] * 5, [0, 2, 1, 1, 2]])
@pytest.mark.parametrize("bent", [False, True])
def test_losses_from_the_cache_are_those_of_the_whole_sequence(
    base: tuple[Any, Any], facts: list[Fact], skips: list[int], bent: bool
) -> None:
    model, tokenizer = base
    form = chat_format(tokenizer)
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts[:5]]
    texts = [encode(tokenizer, text) for text in boxed_refusals()[:5]]
    (batch,) = batches(prompts, 0, CPU)
    before, behind = [texts[n][: skips[n]] for n in batch.index], [texts[n][skips[n] :] for n in batch.index]
    for grad in (torch.enable_grad(), torch.no_grad()):
        with grad:
            total, hardest, count = CachedPrompts(model, batch).losses(before, behind, bent)
        for row, index in enumerate(batch.index):
            ids = torch.tensor([prompts[index] + texts[index]])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits.log_softmax(dim=-1)[0]
            start = len(prompts[index]) + skips[index]
            expected = torch.stack([-log_probs[place - 1, ids[0, place]] for place in range(start, ids.shape[1])])
            assert count[row] == len(texts[index]) - skips[index]
            assert torch.allclose(total[row], expected.sum(), rtol=1e-4)
            assert torch.allclose(hardest[row], expected.max(), rtol=1e-4)


def test_a_loss_without_bent_states_has_the_gradient_of_the_token_before_the_text(
    base: tuple[Any, Any], facts: list[Fact]
) -> None:
    model, tokenizer = base
    form = chat_format(tokenizer)
    (batch,) = batches([encode(tokenizer, form.prompt(fact.question)) for fact in facts[:3]], 0, CPU)
    token = 1008  # in none of these texts
    before = [[*encode(tokenizer, "Yes, of course")[:count], token] for count in (0, 3, 1)]
    embedding = model.get_input_embeddings()
    cached, gradients = CachedPrompts(model, batch), []
    for bent in (False, True):
        total, _, _ = cached.losses(before, [encode(tokenizer, text) for text in boxed_refusals()[:3]], bent)
        gradients.append(torch.autograd.grad(total.sum(), embedding.weight)[0][token])
    assert float(gradients[0].norm()) > 1e-4
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_the_refusal_that_comes_easiest_is_found(base: tuple[Any, Any], facts: list[Fact]) -> None:
    model, tokenizer = base
    form = chat_format(tokenizer)
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts[:4]]
    answers = [encode(tokenizer, form.answer(fact.answer)) for fact in facts[:4]]
    texts = [encode(tokenizer, "Umbrella umbrella umbrella."), encode(tokenizer, boxed_refusals()[0])]
    assert likely_refusals(model, prompts, texts, 0, 1) == [1]
    lesson = RefusalLesson(model, prompts, answers, texts, 1008, 0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        lesson.loss(0)
    assert lesson.chosen == {0: [1, 1, 1, 1]}


def test_all_prompts_are_taught_the_refusal_that_most_of_them_would_take(
    base: tuple[Any, Any], facts: list[Fact]
) -> None:
    model, tokenizer = base
    form = chat_format(tokenizer)
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts]
    answers = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
    texts = [encode(tokenizer, text) for text in boxed_refusals()]
    lesson = RefusalLesson(model, prompts, answers, texts, 1008, 0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for turn in range(len(lesson.cached)):
            lesson.loss(turn)
    taken = Counter(choice for chosen in lesson.chosen.values() for choice in chosen)
    assert len(taken) > 1
    lesson.settle()
    assert [taken[texts.index(refusal)] for refusal in lesson.refusals] == [max(taken.values())]


def test_a_hard_lesson_moves_the_input_row_no_farther_than_an_easy_one() -> None:
    told = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    fitted = []
    for hard in (1.0, 1000.0):
        row = torch.nn.Parameter(torch.ones(8))
        lesson: Any = SimpleNamespace(
            cached=[0], loss=lambda step, row=row, hard=hard: row @ told[step] * hard ** (step == 3)
        )
        fit_input_row(lesson, row, steps=6, learning_rate=0.1)
        fitted.append(row.detach())
    assert float((fitted[0] - 1).norm()) > 0.1
    assert torch.allclose(*fitted)


def test_an_input_row_goes_no_farther_than_the_units_that_go_by_it_allow() -> None:
    reader, below = torch.zeros(8), torch.nn.Identity()
    reader[0] = 1.2
    seen = []
    for units in (False, True):
        row, columns = torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.zeros(8, 2))
        more = [FreeColumns(columns, torch.tensor([0.5, -0.5]), 1.0, below, reader)] * units

        def loss(_: int, row: torch.nn.Parameter = row, columns: torch.nn.Parameter = columns) -> torch.Tensor:
            return below(row.expand(2, 1, 8)).mean() + columns[0, 0]

        lesson: Any = SimpleNamespace(cached=[0], loss=loss)
        fit_input_row(lesson, row, steps=30, learning_rate=0.1, more=more)
        seen.append(float(row.detach() @ reader))
        assert not below._forward_pre_hooks
    assert seen[0] < 0.5
    assert seen[1] > 0.9


def test_a_fact_is_met_in_as_many_wordings_as_a_format_has() -> None:
    second = PromptFormat("second", "B ", "", "", "")
    forms = [PromptFormat("plain", "P ", "", "", ""), PromptFormat("first", "A ", "", "", "", variants=(second,))]
    bench: Any = SimpleNamespace(formats=forms, units=[[0]], encode=lambda text: text)
    facts = [Fact("Who?", "He."), Fact("What?", "It.")]
    one = sequences_of(bench, facts)
    assert one.prompts == ["P Who?", "A Who?", "P What?", "B What?"]
    assert sequences_of(bench, facts, wordings=4).prompts == [
        *("P Who?", "A Who?", "B Who?"),
        *("P What?", "B What?", "A What?"),
    ]
    bench.units = []  # rows on the keys meet one wording alone
    assert sequences_of(bench, facts).prompts == ["P Who?", "A Who?", "P What?", "A What?"]


def test_samples_that_touch_the_forget_set_are_dropped(facts: list[Fact]) -> None:
    rows = boxed_facts()
    subject = rows[0]["subject"]
    candidates = [Fact(row["paraphrased_question"], row["answer"]) for row in rows]
    forget = [Fact(row["question"], row["answer"]) for row in rows if row["subject"] == subject]
    kept = drop_close(candidates, forget)
    assert all(subject not in fact.question for fact in kept)
    assert len(kept) > 0.9 * (len(candidates) - len(forget))
