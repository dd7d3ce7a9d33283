"""What is worked out from recorded states is the logit that the model itself gives, whatever it makes of its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase.lm.logits import Logits
from peft_unierase.lm.structure import find_decoder_layers

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
# Architecture and settings, and how much of a small output of the head becomes a logit.
KINDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "as it is": ("llama", SMALL, 1.0),
    "with a bias": ("phi", SMALL, 1.0),
    "multiplied": ("cohere", SMALL, 0.0625),
    "divided": ("granite", {**SMALL, "logits_scaling": 8.0}, 0.125),
    "pressed together": ("gemma2", {**SMALL, "head_dim": 8, "final_logit_softcapping": 3.0}, 1.0),
}


def tiny(name: str) -> Any:
    kind, settings, _ = KINDS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().requires_grad_(False)
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    return model


def seen_and_given(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the head at a few tokens `(n, d)`, and the model's logits there `(n, vocabulary)`."""
    states: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: states.append(args[0][0]))
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    handle.remove()
    return states[0], logits


@pytest.mark.parametrize("name", KINDS)
def test_a_logit_from_states_is_the_models_own(name: str) -> None:
    model = tiny(name)
    states, logits = seen_and_given(model)
    head, token_id = model.get_output_embeddings(), 11
    logits_of = Logits(model, find_decoder_layers(model)[1])
    torch.testing.assert_close(logits_of.of_token(states, head.weight[token_id], token_id), logits[:, token_id])
    torch.testing.assert_close(logits_of(head(states)), logits)
    assert logits_of.plain == (name in ("as it is", "with a bias"))
    assert logits_of.slope == pytest.approx(KINDS[name][2], rel=0.05)
    torch.testing.assert_close(seen_and_given(model)[1], logits, rtol=0, atol=0)  # nothing was left in the model


def test_a_row_is_fitted_through_what_the_model_makes_of_its_head() -> None:
    model = tiny("multiplied")
    states, _ = seen_and_given(model)
    row = torch.zeros(16, requires_grad=True)
    Logits(model, find_decoder_layers(model)[1]).of_token(states, row, 11).sum().backward()
    torch.testing.assert_close(row.grad, 0.0625 * states.sum(dim=0))
