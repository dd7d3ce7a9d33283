"""Which layers are edited, and what is refused."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from peft_unierase.engine.layers import choose_gates, middle_layers, two_for_units


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2)
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, [0]),
        (3, [1, 2]),
        (6, [2, 3, 4]),
        (8, [3, 4, 5]),
        (16, [6, 7, 8, 9, 10]),
        (32, [17, 18, 19, 20, 21]),
        (80, [49, 50, 51, 52, 53]),
    ],
)
def test_the_rule_takes_up_to_five_layers_at_the_end_of_the_middle_third(count: int, expected: list[int]) -> None:
    assert middle_layers(count) == expected


def test_layers_can_be_named(model: LlamaForCausalLM) -> None:
    stack, indices, names = choose_gates(model, layers=[3, 1])
    assert indices == [1, 3]
    assert names == ["model.layers.1.mlp.down_proj", "model.layers.3.mlp.down_proj"]
    assert len(stack) == 6


def test_target_modules_can_be_named(model: LlamaForCausalLM) -> None:
    assert choose_gates(model, target_modules=["model.layers.2.self_attn.o_proj"])[1] == [2]


@pytest.mark.parametrize(
    ("layers", "target_modules", "message"),
    [
        ([9], None, r"layers \[9\] do not exist; the model has layers 0 to 5"),
        ([-1], None, "do not exist"),
        ([], None, "no layer to edit"),
        ([4, 5], None, "layer 5 is the model's last"),
        ([1], ["model.layers.1.mlp.down_proj"], "not both"),
        (None, ["model.layers.1.mlp"], "is not a linear projection"),
        (None, ["lm_head"], "must be the only one named in a layer"),
        (None, ["model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"], "must be the only one"),
    ],
)
def test_layers_that_cannot_be_edited_are_refused(
    model: LlamaForCausalLM, layers: list[int] | None, target_modules: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_gates(model, layers, target_modules)


def test_few_facts_take_the_lowest_two_layers_and_many_the_highest() -> None:
    assert [2, 3, 4][two_for_units(100)] == [2, 3]
    assert [2, 3, 4][two_for_units(101)] == [3, 4]
    assert [2][two_for_units(400)] == [2]
