"""Which layers are edited, and what is refused."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from peft_unierase.engine.layers import choose_sites, trigger_layers


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2)
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [0]), (3, [1]), (4, [2]), (6, [2, 3, 4]), (8, [2, 3, 4]), (30, [5, 6, 7]), (32, [5, 6, 7])],
)
def test_triggers_are_put_into_early_layers_and_never_into_the_last(count: int, expected: list[int]) -> None:
    assert trigger_layers(count) == expected


def test_each_recipe_has_its_layers(model: LlamaForCausalLM) -> None:
    assert choose_sites(model)[1] == [2, 3, 4]
    assert choose_sites(model, whole=False)[1] == [1, 2]


def test_all_projections_of_an_mlp_are_edited_or_the_last_alone(model: LlamaForCausalLM) -> None:
    kinds = [[name.rpartition(".")[2] for name in choose_sites(model, [2], whole=whole)[2]] for whole in (True, False)]
    assert kinds == [["gate_proj", "up_proj", "down_proj"], ["down_proj"]]


def test_layers_can_be_named(model: LlamaForCausalLM) -> None:
    stack, indices, names = choose_sites(model, layers=[3, 1], whole=False)
    assert indices == [1, 3]
    assert names == ["model.layers.1.mlp.down_proj", "model.layers.3.mlp.down_proj"]
    assert len(stack) == 6


def test_target_modules_can_be_named(model: LlamaForCausalLM) -> None:
    assert choose_sites(model, target_modules=["model.layers.2.self_attn.o_proj"], whole=False)[1] == [2]
    mlp = [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    assert choose_sites(model, target_modules=mlp[-1:])[1:] == ([1], mlp)


def test_what_is_no_down_projection_leads_to_no_mlp(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="o_proj' is not the down-projection of an MLP"):
        choose_sites(model, target_modules=["model.layers.2.self_attn.o_proj"])


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
        choose_sites(model, layers, target_modules, whole=False)
