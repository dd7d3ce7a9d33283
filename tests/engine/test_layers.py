"""Which layers are edited, and what is refused."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from peft_unierase.engine.layers import choose_sites, share_of_layers


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2)
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [0]), (3, [0, 1]), (6, [1, 2, 3]), (8, [1, 2, 3, 4]), (30, list(range(6, 18))), (32, list(range(6, 20)))],
)
def test_a_share_of_the_layers_never_takes_the_last(count: int, expected: list[int]) -> None:
    assert share_of_layers(count, 0.2, 0.6) == expected
    assert len(share_of_layers(count, 0.0, 0.01)) == min(3, count - 1)
    assert max(share_of_layers(count, 0.5, 1.0)) == max(0, count - 2)


def test_without_a_share_the_early_layers_are_taken(model: LlamaForCausalLM) -> None:
    assert choose_sites(model)[1] == [1, 2]
    assert choose_sites(model, share=(0.2, 0.6))[1] == [1, 2, 3]


def test_all_projections_of_an_mlp_are_edited_or_the_last_alone(model: LlamaForCausalLM) -> None:
    kinds = [[name.rpartition(".")[2] for name in choose_sites(model, [2], modules=count)[2]] for count in (3, 1)]
    assert kinds == [["gate_proj", "up_proj", "down_proj"], ["down_proj"]]


def test_layers_can_be_named(model: LlamaForCausalLM) -> None:
    stack, indices, names = choose_sites(model, layers=[3, 1], modules=1)
    assert indices == [1, 3]
    assert names == ["model.layers.1.mlp.down_proj", "model.layers.3.mlp.down_proj"]
    assert len(stack) == 6


def test_target_modules_can_be_named(model: LlamaForCausalLM) -> None:
    assert choose_sites(model, target_modules=["model.layers.2.self_attn.o_proj"])[1] == [2]
    two = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    assert choose_sites(model, target_modules=two)[1:] == ([1], two)


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
        choose_sites(model, layers, target_modules, modules=1)
