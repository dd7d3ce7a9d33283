"""The formulas of the cost estimate against the operations that torch counts while the engine's own parts run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase.decoding import continuations
from peft_unierase.engine import cost
from peft_unierase.engine.cost import Sizes, Work, estimate_cost, sizes_of, with_unit
from peft_unierase.engine.detector import ShutKeys, solve_detector
from peft_unierase.engine.known import known_shares
from peft_unierase.engine.replay import Recording
from peft_unierase.engine.trace import inputs_at
from peft_unierase.facts import Fact
from peft_unierase.prompts import encode, pad_left, plain_format

CPU = torch.device("cpu")
SMALL = {"width": 512, "mlp": 1024, "layers": 4, "vocabulary": 900}


def model_of(kind: str = "llama", **changes: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=500,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        eos_token_id=1,
        pad_token_id=1,
        **changes,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of(intermediate_size=160, num_key_value_heads=2)


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def work(**changes: int) -> Work:
    return replace(Work(facts=6, retain=5, samples=0, formats=1, edited=1, last=1), **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"intermediate_size": 160, "num_key_value_heads": 2}),
        ("gpt2", {"n_inner": 160, "n_positions": 8}),
        ("phi", {}),
    ],
)
def test_the_weights_of_a_model_are_told_from_its_structure(kind: str, changes: dict[str, int]) -> None:
    model = model_of(kind, **changes)
    assert sizes_of(model).weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.06)


def test_asking_costs_what_torch_counts(model: Any) -> None:
    tokenizer = train_tokenizer()
    form = plain_format(tokenizer)
    facts = [Fact("Who is it?", "It is nobody.")] * 6
    question, answer = (
        len(encode(tokenizer, form.prompt("Who is it?"))),
        len(encode(tokenizer, form.answer("It is nobody."))),
    )
    expected = cost.asking(sizes_of(model), work(question=question, answer=answer)).flops
    assert counted(lambda: known_shares(model, tokenizer, facts, form)) == pytest.approx(expected, rel=0.15)


def test_sampling_costs_what_torch_counts(model: Any) -> None:
    def first(logits: torch.Tensor) -> torch.Tensor:
        return torch.full((len(logits),), 7)

    def run() -> None:
        for read, written in ((1, 24), (24, 32)):
            ids = torch.full((5, read), 7)
            continuations(model, ids, torch.ones_like(ids), written, {1}, first)

    expected = cost.sampling(sizes_of(model), work(samples=5, question=24, answer=32)).flops
    assert counted(run) == pytest.approx(expected, rel=0.15)


def test_recording_costs_what_torch_counts(model: Any) -> None:
    projection = [model.model.layers[3].mlp.down_proj]

    def run() -> None:
        inputs_at(model, projection, [[7] * 24] * 20, [[23]] * 20, 1)
        inputs_at(model, projection, [[7] * 56] * 5, [[0]] * 5, 1)

    expected = cost.recording(sizes_of(model), work(formats=4, question=24, answer=32, last=3)).flops
    assert counted(run) == pytest.approx(expected, rel=0.15)


def test_bending_the_upper_part_forward_and_back_costs_what_torch_counts(model: Any) -> None:
    model.requires_grad_(False)
    recording = Recording(model, model.model.layers, 1, pad_left([[7] * 40] * 4, 1, CPU, [0, 1, 2, 3]))
    states = recording.states.clone().requires_grad_(True)
    expected = sizes_of(model).both_ways(160, 40, layers=2, predicted=160)
    assert counted(lambda: recording.logits(states).sum().backward()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("width", "dual"), [(64, False), (512, True)])
def test_the_solve_costs_what_torch_counts_and_takes_the_smaller_dimension(width: int, dual: bool) -> None:
    plan = work(retain=3, weights_tried=1, question=10, answer=8, refusal=1)
    sizes = Sizes(16, width, 2, 10, heads=1, kv_heads=1, head_dim=16)
    keys, shut = torch.randn(plan.doors, width), ShutKeys([torch.randn(plan.shut_keys, width)])
    assert (plan.doors + plan.shut_keys < width) is dual
    rows = plan.doors + plan.shut_keys if dual else width
    expected = cost.editing(sizes, plan).solving - 2 / 3 * rows**3  # which torch does not count
    assert counted(lambda: solve_detector(keys, torch.ones(len(keys)), shut, 1.0)) == pytest.approx(expected, rel=0.15)


def test_every_stage_grows_with_what_it_works_on() -> None:
    few, many = (estimate_cost(SMALL, facts, retain=100) for facts in (100, 400))
    grown = {a.name for a, b in zip(few.stages, many.stages, strict=True) if b.flops > 1.2 * a.flops}
    assert {"asking the base", "editing layers"} <= grown
    more = estimate_cost(SMALL, 100, retain=100, samples=1024)
    grown = {a.name for a, b in zip(few.stages, more.stages, strict=True) if b.flops > 1.2 * a.flops}
    assert grown == {"sampling retain data", "recording retain keys"}


def test_the_adapter_has_the_size_that_is_saved() -> None:
    estimate = estimate_cost({"width": 128, "mlp": 384, "layers": 8, "vocabulary": 1008}, 6)
    assert estimate.adapter_bytes == 4 * (2 * (384 + 128) + 2 * 128)


def test_the_table_names_every_stage_and_the_whole() -> None:
    estimate = estimate_cost(SMALL, 10)
    lines = str(estimate).splitlines()
    assert [line.split("  ")[1] for line in lines] == [*(stage.name for stage in estimate.stages), "in all"]
    assert with_unit(estimate.flops, "FLOP") in lines[-1]
    assert with_unit(estimate.peak_bytes, "B") in lines[-1]
    assert estimate.dominant.flops == max(stage.flops for stage in estimate.stages)
    assert estimate.seconds is None


def test_with_a_model_there_are_seconds_and_without_one_there_are_none(model: Any) -> None:
    estimate = estimate_cost(model, 10)
    assert estimate.seconds is not None
    assert estimate.seconds > 0
    assert str(estimate).splitlines()[-1].endswith(" s")
    without = estimate_cost(model.config, 10)
    assert without.seconds is None
    assert without.flops == estimate.flops


@pytest.mark.parametrize(
    ("base", "message"),
    [({"width": 8, "mlp": 8}, "without layers, vocabulary"), (object(), "object tells no hidden_size")],
)
def test_sizes_that_are_missing_are_named(base: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_cost(base, 10)


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [with_unit(value, "B") for value in (0, 12, 1_500, 16.06e9, 3e15)] == [
        "0 B",
        "12 B",
        "1.5 kB",
        "16.1 GB",
        "3 PB",
    ]


def test_the_table_for_the_docs_is_printed() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "cost_table.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    lines = run.stdout.splitlines()
    assert len(lines) == 2 + 3 * 4
    assert {line.count("|") for line in lines} == {8}
