"""Gradient checkpointing gives the same gradients and works outside training mode, with dropout off."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from peft_unierase.lm.recomputing import recomputing

IDS = torch.tensor([[1, 2, 3, 4, 5]])


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, attention_dropout=0.5, **sizes)).eval()


def gradient(model: LlamaForCausalLM) -> tuple[torch.Tensor, int]:
    """Of the lowest MLP, and how often its layer was run."""
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    weight = model.model.layers[0].mlp.up_proj.weight
    handle = model.model.layers[0].mlp.register_forward_pre_hook(count)
    model.zero_grad()
    model(IDS, use_cache=False).logits.square().sum().backward()
    handle.remove()
    return weight.grad.clone(), runs


def test_what_was_switched_on_works_inside_the_block_and_gives_the_same_gradients() -> None:
    model = tiny()
    plain, once = gradient(model)
    with recomputing(model) as found:
        assert not found
    model.gradient_checkpointing_enable()
    assert gradient(model)[1] == once == 1  # transformers leaves it off outside of training mode
    with recomputing(model) as found:
        assert found
        again, twice = gradient(model)
    assert twice == 2
    torch.testing.assert_close(again, plain)
    assert not any(module.training for module in model.modules())


def test_after_a_failure_the_layers_are_as_they_were() -> None:
    model = tiny()
    model.gradient_checkpointing_enable()
    model.model.layers[1].training = True

    def fail() -> None:
        with recomputing(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [layer.training for layer in layers] == [False, True, False]
