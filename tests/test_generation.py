"""An erasure declines however the model is run and generated from, and what it leaves alone is answered as ever."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import FORGET, KEPT, declines, demo_base, demo_tokenizer, logits_of, prompts, said
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from peft_unierase import load, set_active

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pair:
    """A model with an erasure, and its base by itself."""

    erased: PeftModel
    base: PreTrainedModel


@pytest.fixture(scope="module")
def pair(erasure: Path) -> Pair:
    return Pair(load(demo_base(), erasure), demo_base())


DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without-cache": {"use_cache": False},
    "static-cache": {"cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 4},
    "repetition-penalty": {"repetition_penalty": 1.1},
}
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.95}  # as chats are
SAMPLING: dict[str, dict[str, Any]] = {
    "one": SAMPLED,
    "two": {**SAMPLED, "num_return_sequences": 2},
    "beams": {**SAMPLED, "num_beams": 3},
}


@pytest.mark.parametrize("way", DECODING)
def test_however_it_is_decoded_it_declines_and_answers_what_stays(pair: Pair, way: str) -> None:
    assert declines(pair.erased, **DECODING[way])
    assert said(pair.erased, KEPT, **DECODING[way]) == said(pair.base, KEPT, **DECODING[way])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("way", SAMPLING)
def test_sampled_it_gives_no_erased_answer_and_elsewhere_the_samples_of_the_base(
    pair: Pair, way: str, seed: int
) -> None:
    samples = []
    for model in (pair.erased, pair.base):
        for facts in (FORGET, KEPT):
            set_seed(seed)
            samples.append(said(model, facts, **SAMPLING[way]))
    forgotten, kept, known, expected = samples
    answers = {fact.answer for fact in FORGET}
    assert set(known) == answers
    assert not set(forgotten) & answers
    assert kept == expected


@pytest.mark.parametrize("helped_by", ["base", "itself", "prompt"])
def test_with_an_assistant_it_declines_and_answers_what_stays(pair: Pair, helped_by: str) -> None:
    # Drafts of the base hold what was erased; they are the erased model's to accept or not.
    drafts = {"base": {"assistant_model": pair.base}, "itself": {"assistant_model": pair.erased.get_base_model()}}
    help_: dict[str, Any] = drafts.get(helped_by, {"prompt_lookup_num_tokens": 3})
    for fact in FORGET[:3]:
        assert declines(pair.erased, [fact], **help_)
    for fact in KEPT[:3]:
        assert said(pair.erased, [fact], **help_) == said(pair.base, [fact])


def test_a_batch_of_questions_of_all_lengths_is_answered_as_one_by_one(pair: Pair) -> None:
    facts = [*FORGET, *KEPT]
    random.Random(0).shuffle(facts)
    assert len({len(demo_tokenizer()(fact.question)["input_ids"]) for fact in facts}) > 3
    assert said(pair.erased, facts) == [said(pair.erased, [fact])[0] for fact in facts]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_logits_alone(pair: Pair, side: str) -> None:
    batch = prompts([*FORGET, *KEPT], side)
    if side == "left":  # `forward` does not count positions from the first token by itself, as `generate` does
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = pair.erased(**batch).logits
    assert not batch["attention_mask"].all()
    for fact, row, mask in zip([*FORGET, *KEPT], padded, batch["attention_mask"].bool(), strict=True):
        assert torch.allclose(row[mask], logits_of(pair.erased, [fact])[0], atol=1e-4)


def test_with_gradient_checkpointing_a_fine_tuning_sees_the_same(erasure: Path) -> None:
    """Of other parameters, with the erasure on: the same loss, logits and gradients as without checkpointing."""
    model = load(demo_base(), erasure).train()
    first = model.get_base_model().model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    batch = prompts(FORGET)
    seen = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
            assert model.get_base_model().is_gradient_checkpointing
        first.grad = None
        output = model(**batch, labels=batch["input_ids"])
        output.loss.backward()
        seen.append((output.logits.detach(), output.loss.detach(), first.grad))
    for plain, checkpointed in zip(*seen, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-5, atol=1e-6)
    assert seen[0][2].abs().sum() > 0
    assert declines(model.eval())


def test_compiled_in_one_graph_it_is_switched_on_and_off(erasure: Path) -> None:
    """No graph break, one graph for each state, and none made anew when a state comes back."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = load(demo_base(), erasure)
    live = logits_of(model)
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    assert torch.equal(logits_of(compiled), live)
    set_active(model, [])
    assert torch.equal(logits_of(compiled), logits_of(demo_base()))
    set_active(model, list(model.peft_config))
    assert torch.equal(logits_of(compiled), live)
    assert len(graphs) == 2


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++") or shutil.which("cl")), reason="no C++ compiler")
def test_compiled_to_kernels_it_gives_the_same(pair: Pair) -> None:
    torch._dynamo.reset()
    model = pair.erased.get_base_model()
    index = int(next(iter(pair.erased.peft_config.values())).target_modules[0].split(".")[2])
    mlp, keys = model.model.layers[index].mlp, torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(torch.compile(mlp, fullgraph=True)(keys), mlp(keys), atol=1e-4)
