"""The engine's smaller parts on the demo model: refusal losses, retain samples, what the base knows, prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from demo_erasure import demo_tokenizer

from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_facts, demo_refusals
from peft_unierase.engine.paper.cached_prompts import CachedPrompts
from peft_unierase.lm.batches import batches, encode
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import chat_format, default_formats, plain_format
from peft_unierase.retain.samples import drop_close

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in demo_facts()[:20]]


def test_formats_meet_at_the_answer_start(demo: tuple[Any, Any]) -> None:
    _, tokenizer = demo
    chat = chat_format(tokenizer)
    assert chat.prompt("Who?") == "<|bos|><|user|>Who?<|assistant|>"
    assert chat.answer("Me.") == "Me.<|eos|>"
    assert plain_format(tokenizer).prompt("Who?") == "<|bos|>Question: Who?\nAnswer:"
    with_system = chat_format(tokenizer, "Be brief.")
    assert "Be brief." in with_system.head
    assert [form.name for form in default_formats(tokenizer)] == ["chat", "plain", "chat with system prompt"]


def test_a_tokenizer_without_a_template_gets_plain_formats_alone(demo: tuple[Any, Any]) -> None:
    tokenizer = demo_tokenizer()
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


def test_answers_do_not_depend_on_the_company_in_the_batch(demo: tuple[Any, Any], facts: list[Fact]) -> None:
    model, tokenizer = demo
    form = chat_format(tokenizer)
    prompts = [form.prompt(fact.question) for fact in facts[:6]]
    together = greedy_answers(model, tokenizer, prompts)
    assert together == [greedy_answers(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in together] == [f.answer for f in facts[:6]]


@pytest.mark.parametrize("skips", [[0] * 5, [1] * 5, [0, 2, 1, 1, 2]])
def test_losses_from_the_cache_are_those_of_the_whole_sequence(
    demo: tuple[Any, Any], facts: list[Fact], skips: list[int]
) -> None:
    model, tokenizer = demo
    form = chat_format(tokenizer)
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts[:5]]
    texts = [encode(tokenizer, text) for text in demo_refusals()[:5]]
    (batch,) = batches(prompts, 0, CPU)
    before, behind = [texts[n][: skips[n]] for n in batch.index], [texts[n][skips[n] :] for n in batch.index]
    for grad in (torch.enable_grad(), torch.no_grad()):
        with grad:
            total, count = CachedPrompts(model, batch).losses(before, behind)
        for row, index in enumerate(batch.index):
            ids = torch.tensor([prompts[index] + texts[index]])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits.log_softmax(dim=-1)[0]
            start = len(prompts[index]) + skips[index]
            expected = torch.stack([-log_probs[place - 1, ids[0, place]] for place in range(start, ids.shape[1])])
            assert count[row] == len(texts[index]) - skips[index]
            assert torch.allclose(total[row], expected.sum(), rtol=1e-4)


def test_the_gradient_of_a_loss_is_that_of_the_token_before_the_text(demo: tuple[Any, Any], facts: list[Fact]) -> None:
    model, tokenizer = demo
    form = chat_format(tokenizer)
    (batch,) = batches([encode(tokenizer, form.prompt(fact.question)) for fact in facts[:3]], 0, CPU)
    token = 1008  # in none of these texts
    before = [[*encode(tokenizer, "Yes, of course")[:count], token] for count in (0, 3, 1)]
    texts = [encode(tokenizer, text) for text in demo_refusals()[:3]]
    embedding = model.get_input_embeddings()
    total, _ = CachedPrompts(model, batch).losses(before, texts)
    found = torch.autograd.grad(total.sum(), embedding.weight)[0][token]
    whole = torch.zeros(())
    for row in range(3):
        ids = torch.tensor([[*batch.ids[row, batch.mask[row].bool()].tolist(), *before[row], *texts[row]]])
        log_probs = model(input_ids=ids).logits.log_softmax(dim=-1)[0]
        start = ids.shape[1] - len(texts[row])
        whole = whole - log_probs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()
    expected = torch.autograd.grad(whole, embedding.weight)[0][token]
    assert float(expected.norm()) > 1e-4
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_samples_that_touch_the_forget_set_are_dropped(facts: list[Fact]) -> None:
    rows = demo_facts()
    subject = rows[0]["subject"]
    candidates = [Fact(row["paraphrased_question"], row["answer"]) for row in rows]
    forget = [Fact(row["question"], row["answer"]) for row in rows if row["subject"] == subject]
    kept = drop_close(candidates, forget)
    assert all(subject not in fact.question for fact in kept)
    assert len(kept) > 0.9 * (len(candidates) - len(forget))
