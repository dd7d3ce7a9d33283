"""Running the upper part of a model from recorded states gives what the whole model gives."""

from __future__ import annotations

import pytest
import torch
from helpers import changed_output
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase.lm.batches import pad_left
from peft_unierase.lm.replay import Recording
from peft_unierase.lm.structure import find_decoder_layers
from peft_unierase.lm.trace import inputs_at

SEQUENCES = [[3, 5, 7, 9, 11], [4, 6], [8, 2, 1]]


@pytest.fixture(params=["llama", "gemma2", "gpt2"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        request.param,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        n_positions=64,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def test_replaying_the_recorded_states_gives_the_models_own_logits(model: torch.nn.Module) -> None:
    _, layers = find_decoder_layers(model)
    batch = pad_left(SEQUENCES, 0, torch.device("cpu"), [0, 1, 2])
    recording = Recording(model, layers, 1, batch)
    real = batch.mask.bool()
    assert torch.equal(recording.logits(recording.states)[real], model(**batch.inputs()).logits[real])


@torch.no_grad()
def test_replaying_changed_states_is_changing_the_layer(model: torch.nn.Module) -> None:
    _, layers = find_decoder_layers(model)
    batch = pad_left(SEQUENCES, 0, torch.device("cpu"), [0, 1, 2])
    recording = Recording(model, layers, 2, batch)
    vector = torch.linspace(-1, 1, recording.states.shape[-1])
    with changed_output(layers[2], lambda stream: stream + vector):
        expected = model(**batch.inputs()).logits
    real = batch.mask.bool()
    assert torch.allclose(recording.logits(recording.states + vector)[real], expected[real], atol=1e-6)
    assert not torch.allclose(model(**batch.inputs()).logits[real], expected[real], atol=1e-3)


def test_the_layers_are_back_even_after_a_failure(model: torch.nn.Module) -> None:
    _, layers = find_decoder_layers(model)
    before = list(layers)
    batch = pad_left(SEQUENCES, 0, torch.device("cpu"), [0, 1, 2])
    recording = Recording(model, layers, 1, batch)
    with pytest.raises(RuntimeError):
        recording.logits(torch.zeros(1, 1, 3))
    assert all(one is other for one, other in zip(layers, before, strict=True))


@torch.no_grad()
def test_inputs_are_taken_at_the_positions_asked_for_whatever_the_padding(model: torch.nn.Module) -> None:
    _, layers = find_decoder_layers(model)
    modules = [layers[1], layers[3]]
    together = inputs_at(model, modules, SEQUENCES, [[0, 4], [1], [2, 0]], pad=0)
    for index, positions in enumerate([[0, 4], [1], [2, 0]]):
        alone = inputs_at(model, modules, [SEQUENCES[index]], [positions], pad=0)
        for number in range(2):
            assert torch.allclose(together[number][index], alone[number][0], atol=1e-5)
