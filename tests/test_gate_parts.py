"""Parts of recipe `gate`: which positions a depth gates, where a model declines, which layers are solved together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase.boxed import boxed_facts, boxed_model_dir
from peft_unierase.engine.gate.answered import Sequences
from peft_unierase.engine.gate.firing import Firing, firing
from peft_unierase.engine.gate.gates import in_blocks
from peft_unierase.prompts import chat_format, encode

PAIR = Sequences([[1, 2, 3], [4, 5]], [[6, 7, 8, 9], [10]])


@pytest.mark.parametrize(
    ("depth", "cut", "positions"),
    [
        (0, [[1, 2, 3], [4, 5]], [[2], [1]]),
        (2, [[1, 2, 3, 6, 7], [4, 5]], [[2, 3, 4], [1]]),
        (99, [[1, 2, 3, 6, 7, 8], [4, 5]], [[2, 3, 4, 5], [1]]),
    ],
)
def test_a_depth_gates_the_door_and_what_predicts_the_next_answer_tokens(
    depth: int, cut: list[list[int]], positions: list[list[int]]
) -> None:
    assert PAIR.gated(depth) == (cut, positions)


def test_some_are_spread_evenly() -> None:
    many = Sequences([[n] for n in range(10)], [[n] for n in range(10)])
    assert many.some(3).prompts == [[0], [3], [6]]
    assert many.some(99) == many


def test_shares_of_what_declines() -> None:
    fired = Firing([torch.tensor([True, False, False]), torch.tensor([False, False, True, False])])
    assert fired.at_doors() == 0.5
    assert fired.anywhere() == 1.0
    assert fired.within(1, 2) == 0.5
    assert fired.within(3, 2) == 0.0
    assert Firing([]).anywhere() == 0.0


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(boxed_model_dir())


def test_the_answers_own_tokens_are_not_taken_for_a_refusal(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    form, rows = chat_format(tokenizer), boxed_facts()[:4]
    prompts = [encode(tokenizer, form.prompt(row["question"])) for row in rows]
    answers = [encode(tokenizer, form.answer(row["answer"])) for row in rows]
    known = Sequences(prompts, answers)
    everything = torch.arange(1024)
    assert firing(model, known, everything, 0).anywhere() == 0.0
    # With another answer in its mouth the model still goes on as it knows it, and that is in `everything`.
    swapped = Sequences(prompts, answers[1:] + answers[:1])
    swapped.answers[0] = [answers[0][0], answers[0][1] + 1, *answers[0][2:]]
    fired = firing(model, swapped, everything, 0).per_sequence[0]
    assert fired[:2].tolist() == [False, True]
    assert len(fired) == len(answers[0])


def test_layers_are_solved_together_as_far_as_the_width_allows() -> None:
    row = nn.Parameter(torch.zeros(1))
    gates = [(nn.Linear(8, 2), row, row) for _ in range(5)]
    assert [len(block) for block in in_blocks(gates, 16)] == [2, 2, 1]
    assert [len(block) for block in in_blocks(gates, 100)] == [5]
    assert [len(block) for block in in_blocks(gates, 3)] == [1, 1, 1, 1, 1]
