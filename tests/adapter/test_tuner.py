"""An adapter behaves like any other in PEFT: it is switched, saved, loaded, stacked, merged, taken back and trained.

Bit for bit where the project promises it (the base when switched off or unmerged, a loaded copy), else within rounding.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_unierase.adapter.edit import EditLayer
from peft_unierase.adapter.token_row import InputRowLayer, OutputRowLayer
from peft_unierase.guard.config import UniEraseConfig
from peft_unierase.lm.structure import find_mlp_projections

TOKEN_ID = 60
EDITS = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
ROWS = ["model.embed_tokens", "lm_head"]
PARTS = [f"{name}.unierase_{matrix}" for name in EDITS for matrix in "AB"] + [f"{row}.unierase_row" for row in ROWS]


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def greedy(model: nn.Module, token_ids: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    options = {"attention_mask": torch.ones_like(token_ids), **options}
    return model.generate(input_ids=token_ids, max_new_tokens=12, do_sample=False, **options)


def assert_close(got: torch.Tensor, expected: torch.Tensor, merged: int = 1) -> None:
    """Within 1e-5 in fp32 for each adapter merged; in bf16 within four of its steps at the size of the largest logit.

    bf16 keeps eight bits. Merging rounds each edited weight to it, where the live adapter adds in fp32 and rounds the
    sum; both errors are half a step for each weight or output, average out in the sums and pass two more layers.
    """
    bound = merged * 1e-5 if expected.dtype == torch.float32 else 4 * 2**-8 * expected.abs().max().item()
    assert (got - expected).abs().max().item() <= bound


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_is_the_base(model: PreTrainedModel, base: PreTrainedModel, token_ids: torch.Tensor) -> None:
    """The same modules, weights and logits to the bit, and the tie as it was."""
    expected = base.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in base.named_modules()
    }
    assert is_tied(model) == is_tied(base)
    assert model.config.tie_word_embeddings == base.config.tie_word_embeddings
    assert torch.equal(logits_of(model, token_ids), logits_of(base, token_ids))


def is_tied(model: nn.Module) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


# Live


def test_the_edited_modules_and_only_those_become_layers_of_the_tuner(tied_base):
    model = tied_base.with_adapter().get_base_model()
    found = {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, (EditLayer, InputRowLayer, OutputRowLayer))
    }
    assert found == {
        "model.embed_tokens": InputRowLayer,
        **dict.fromkeys(EDITS, EditLayer),
        "lm_head": OutputRowLayer,
    }


def test_an_edit_adds_b_times_a_times_the_input(tied_base):
    layer = tied_base.with_adapter(r=2).get_base_model().model.layers[1].mlp.down_proj
    a, b = layer.unierase_A["default"], layer.unierase_B["default"]
    assert (a.shape, b.shape) == ((2, 64), (32, 2))
    inputs = torch.randn(3, 64)
    expected = layer.base_layer(inputs) + inputs @ a.T @ b.T
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_any_projection_of_an_mlp_can_be_edited(family_base, token_ids):
    names = [name for layer in find_mlp_projections(family_base.load())[1:] for name in layer]
    model = family_base.with_adapter(target_modules=names, layers_to_transform=None, r=2)
    edited = [name for name, module in model.get_base_model().named_modules() if isinstance(module, EditLayer)]
    assert edited == names
    live, plain = logits_of(model, token_ids), logits_of(family_base.load(), token_ids)
    assert not torch.allclose(live, plain, atol=0.1)
    model.train()(input_ids=token_ids, labels=token_ids).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.requires_grad)
    model.eval()
    with model.disable_adapter():
        assert torch.equal(logits_of(model, token_ids), plain)
    # Edits of random weights this large give logits of some hundreds.
    assert torch.allclose(logits_of(model.merge_and_unload(), token_ids), live, rtol=1e-4, atol=1e-4)


def test_factors_can_be_replaced_by_ones_of_another_rank_and_must_fit(tied_base, token_ids):
    model = tied_base.with_adapter(r=2)
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    a, b = torch.randn(5, 64), torch.randn(32, 5)
    layer.set_factors("default", a, b)
    inputs = torch.randn(3, 64)
    assert torch.allclose(layer(inputs), layer.base_layer(inputs) + inputs @ a.T @ b.T, atol=1e-4)
    for wrong in ((a, b[:, :4]), (a[:, :60], b), (a, b[:30])):
        with pytest.raises(ValueError, match=r"do not fit a projection from 64 to 32; A must be \(r, 64\)"):
            layer.set_factors("default", *wrong)
    assert torch.equal(layer.unierase_A["default"], a)


def test_disabled_it_is_the_base_to_the_bit(base, token_ids):
    expected = logits_of(base.load(), token_ids)
    model = base.with_adapter()
    changed = logits_of(model, token_ids)
    assert not torch.allclose(changed, expected, atol=0.1)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, token_ids), expected)
        assert model.get_model_status().enabled is False
    assert torch.equal(logits_of(model, token_ids), changed)


def test_every_family_is_the_base_when_disabled_and_another_model_when_not(family_base, token_ids):
    expected = logits_of(family_base.load(), token_ids)
    model = family_base.with_adapter()
    assert not torch.allclose(logits_of(model, token_ids), expected, atol=0.1)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, token_ids), expected)


@pytest.mark.parametrize("family", ["tied", "untied", "gpt2", "gemma", "phi"])
def test_a_fresh_adapter_is_the_identity(make_base, token_ids, family):
    base = make_base(family)
    model = base.with_adapter(init_weights=True)
    expected = logits_of(base.load(), token_ids)
    got = logits_of(model, token_ids)
    others = torch.arange(64) != TOKEN_ID
    assert torch.equal(got[..., others], expected[..., others])
    # One logit is a sum of its own, so its last bits may differ.
    assert torch.allclose(got[..., TOKEN_ID], expected[..., TOKEN_ID], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["tied", "gpt2", "gemma", "phi"])
def test_a_fresh_input_row_is_the_bases_own_to_the_bit(make_base, token_ids, family, dtype):
    # A width whose square root bf16 rounds by a tenth of a percent, which shows where embeddings are scaled by it.
    base = make_base(family, dtype, hidden_size=48)
    embedding = base.with_adapter(init_weights=True).get_input_embeddings()
    assert torch.equal(embedding(token_ids), base.load().get_input_embeddings()(token_ids))


def test_with_edits_of_zero_an_output_row_changes_one_logit_alone(base):
    without_token = torch.tensor([[1, 5, 9, 33, 2, 7]])
    model = base.with_adapter()
    for name, parameter in model.named_parameters():
        if "unierase_B" in name:
            nn.init.zeros_(parameter)
    got, expected = logits_of(model, without_token), logits_of(base.load(), without_token)
    others = torch.arange(64) != TOKEN_ID
    assert torch.equal(got[..., others], expected[..., others])
    assert not torch.isclose(got[..., TOKEN_ID], expected[..., TOKEN_ID], rtol=0.05).any()


def test_an_input_row_changes_nothing_before_its_token(tied_base, token_ids):
    model = tied_base.with_adapter(target_modules=[], layers_to_transform=None)
    others = torch.arange(64) != TOKEN_ID
    got, expected = logits_of(model, token_ids)[..., others], logits_of(tied_base.load(), token_ids)[..., others]
    # [UNL] is the fourth token of the first prompt and not in the second.
    assert torch.equal(got[0, :3], expected[0, :3])
    assert not torch.isclose(got[0, 3:], expected[0, 3:]).all(dim=-1).any()
    assert torch.equal(got[1], expected[1])


def test_the_logit_of_the_token_includes_the_bias_of_the_head(make_base, token_ids):
    model = make_base("phi").with_adapter()
    head = model.get_output_embeddings()
    assert isinstance(head.base_layer, nn.Linear)
    assert head.base_layer.bias[TOKEN_ID].abs() > 0.1
    hidden = torch.randn(2, 5, 32)
    expected = hidden @ head.unierase_row["default"] + head.base_layer.bias[TOKEN_ID]
    assert torch.allclose(head(hidden)[..., TOKEN_ID], expected, atol=1e-5)


def test_a_scaled_embedding_scales_the_row_too(make_base):
    embedding = make_base("gemma").with_adapter().get_input_embeddings()
    expected = embedding.unierase_row["default"] * 32**0.5
    assert torch.allclose(embedding(torch.tensor([TOKEN_ID]))[0], expected, rtol=1e-6)


def test_left_padding_does_not_change_the_text(tied_base):
    model = tied_base.with_adapter()
    short = torch.tensor([[1, 8, TOKEN_ID, 3]])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1)
    batch = torch.cat([padded, torch.tensor([[1, 5, 9, 44, 33, 2, 7]])])
    texts = greedy(model, batch, attention_mask=(batch != 0).long())
    assert torch.equal(texts[0, 7:], greedy(model, short)[0, 4:])
    assert torch.equal(texts[1], greedy(model, batch[1:])[0])


def test_generating_with_a_cache_gives_the_same_text_as_without(tied_base, token_ids):
    model = tied_base.with_adapter()
    assert torch.equal(greedy(model, token_ids), greedy(model, token_ids, use_cache=False))


def test_status_tells_of_the_adapter(tied_base):
    model = tied_base.with_adapter()
    model.add_adapter("second", UniEraseConfig(layers_to_transform=[1], token_id=61))
    status = model.get_model_status()
    assert status.adapter_model_type == "UniEraseModel"
    assert status.peft_types == {"default": "UNIERASE", "second": "UNIERASE"}
    assert status.available_adapters == ["default", "second"]
    assert status.active_adapters == ["default"]
    assert status.requires_grad == {"default": True, "second": False}
    assert (status.num_adapter_layers, status.enabled, status.merged_adapters) == (4, True, [])
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]


def test_trainable_parameters_are_printed(tied_base, capsys):
    model = tied_base.with_adapter(r=2)
    model.print_trainable_parameters()
    whole = sum(parameter.numel() for parameter in tied_base.load().parameters())
    trainable = 2 * 2 * (64 + 32) + 2 * 32
    assert f"trainable params: {trainable:,} || all params: {whole + trainable:,}" in capsys.readouterr().out


# Training


def test_gradients_reach_the_adapter_and_nothing_else(base, token_ids):
    model = base.with_adapter().train()
    loss = model(input_ids=token_ids, labels=token_ids).loss
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"base_model.model.{part}.default" for part in PARTS}
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.grad is not None)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


def test_training_lowers_the_loss_and_leaves_the_base_alone(base, token_ids):
    model = base.with_adapter(init_weights=True).train()
    base_model = base.load()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        loss = model(input_ids=token_ids, labels=token_ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    with model.eval().disable_adapter():
        assert torch.equal(logits_of(model, token_ids), logits_of(base_model, token_ids))


def test_gradient_checkpointing_gives_the_same_gradients(tied_base, token_ids):
    model = tied_base.with_adapter().train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable()
        model.zero_grad()
        model(input_ids=token_ids, labels=token_ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)


# Saved and loaded


def test_saved_are_edits_and_two_rows_and_nothing_else(base, tmp_path):
    base.with_adapter(r=3).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    saved = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {"A": (3, 64), "B": (32, 3), "row": (32,)}
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        f"base_model.model.{part}": shapes[part.rpartition("_")[2]] for part in PARTS
    }
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_saved_while_merged_it_is_the_same_adapter(base, tmp_path):
    model = base.with_adapter()
    expected = get_peft_model_state_dict(model)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loaded_it_gives_the_same_logits_to_the_bit(base, save_adapter, token_ids, low_cpu_mem_usage):
    model = PeftModel.from_pretrained(base.load(), save_adapter(base), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits_of(model, token_ids), logits_of(base.with_adapter(), token_ids))
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("trainable", [False, True])
def test_loaded_it_is_frozen_unless_asked_otherwise(base, save_adapter, trainable):
    model = PeftModel.from_pretrained(base.load(), save_adapter(base), is_trainable=trainable)
    model.load_adapter(save_adapter(base), "second", is_trainable=trainable)
    states = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {state for name, state in states.items() if "unierase_" in name} == {trainable}
    assert not any(state for name, state in states.items() if "unierase_" not in name)


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits_to_the_bit(base, fresh_processes, token_ids):
    got = load_file(fresh_processes[0].folder / "logits.safetensors")[base.name]
    assert torch.equal(got, logits_of(base.with_adapter(), token_ids))


def test_auto_class_loads_base_and_adapter(base, save_adapter, token_ids):
    model = AutoPeftModelForCausalLM.from_pretrained(save_adapter(base), dtype=base.dtype)
    assert torch.equal(logits_of(model, token_ids), logits_of(base.with_adapter(), token_ids))


@pytest.mark.parametrize("way", ["load_adapter", "from_pretrained"])
def test_transformers_own_loader_switches_and_deletes(base, save_adapter, token_ids, way):
    if way == "load_adapter":
        model = base.load()
        model.load_adapter(str(save_adapter(base)))
    else:
        model = AutoModelForCausalLM.from_pretrained(save_adapter(base), dtype=base.dtype)
    # transformers keeps adapters in the dtype of the base; PEFT does so on request.
    same = PeftModel.from_pretrained(base.load(), save_adapter(base), autocast_adapter_dtype=False)
    live = logits_of(model, token_ids)
    assert torch.equal(live, logits_of(same, token_ids))
    assert_close(live, logits_of(base.with_adapter(), token_ids))
    expected = logits_of(base.load(), token_ids)
    model.disable_adapters()
    assert torch.equal(logits_of(model, token_ids), expected)
    model.enable_adapters()
    assert torch.equal(logits_of(model, token_ids), live)
    model.delete_adapter("default")
    assert torch.equal(logits_of(model, token_ids), expected)


def test_transformers_own_loader_switches_between_two(tied_base, save_adapter, tmp_path, token_ids):
    tied_base.with_adapter(seed=2).save_pretrained(tmp_path)
    model = tied_base.load()
    model.load_adapter(str(save_adapter(tied_base)), adapter_name="first")
    model.load_adapter(str(tmp_path), adapter_name="second")
    for name, seed in (("second", 2), ("first", 1)):
        model.set_adapter(name)
        assert torch.equal(logits_of(model, token_ids), logits_of(tied_base.with_adapter(seed), token_ids))
    with pytest.raises(ValueError, match="both use vocabulary row 60"):
        model.set_adapter(["first", "second"])
    assert model.active_adapters() == ["first"]


def test_pickled_and_copied_it_is_the_same(base, token_ids):
    model = base.with_adapter()
    expected, plain = logits_of(model, token_ids), logits_of(base.load(), token_ids)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits_of(copied, token_ids), expected)
        with copied.disable_adapter():
            assert torch.equal(logits_of(copied, token_ids), plain)
        # A copy, not another view of the same weights.
        nn.init.zeros_(copied.get_input_embeddings().unierase_row["default"])
    assert torch.equal(logits_of(model, token_ids), expected)


def test_copied_while_merged_it_can_still_be_unmerged(base, token_ids):
    model = base.with_adapter()
    model.merge_adapter()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.unmerge_adapter()
        assert_is_the_base(copied.unload(), base.load(), token_ids)


# Several adapters


def test_adapters_on_the_same_row_take_turns(base, save_adapter, tmp_path, token_ids):
    base.with_adapter(seed=2).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(base.load(), save_adapter(base), adapter_name="first")
    model.load_adapter(tmp_path, "second")
    assert model.active_adapters == ["first"]
    for name, seed in (("first", 1), ("second", 2), ("first", 1)):
        model.set_adapter(name)
        assert torch.equal(logits_of(model, token_ids), logits_of(base.with_adapter(seed), token_ids))


def test_adapters_on_the_same_row_are_not_active_together(tied_base, token_ids):
    model = tied_base.with_adapter()
    model.add_adapter("second", UniEraseConfig(layers_to_transform=[1], token_id=TOKEN_ID, init_weights=False))
    expected = logits_of(model, token_ids)
    with pytest.raises(ValueError, match="'default' and 'second' both use vocabulary row 60"):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
    assert torch.equal(logits_of(model, token_ids), expected)


@pytest.mark.parametrize("way", ["together", "one after the other"])
def test_adapters_on_the_same_row_are_not_merged_together(tied_base, token_ids, way):
    model = tied_base.with_adapter()
    model.add_adapter("second", UniEraseConfig(layers_to_transform=[1], token_id=TOKEN_ID, init_weights=False))
    if way == "one after the other":
        model.merge_adapter()
    expected, weights = logits_of(model, token_ids), weights_of(model)
    with pytest.raises(ValueError, match="both use vocabulary row 60"):
        model.merge_adapter(adapter_names=["default", "second"] if way == "together" else ["second"])
    assert torch.equal(logits_of(model, token_ids), expected)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_adapters_on_different_rows_stack(base, token_ids):
    def row(model: nn.Module, name: str) -> torch.Tensor:
        return model.get_input_embeddings().unierase_row[name]

    model = base.with_adapter()
    torch.manual_seed(2)
    model.add_adapter("second", UniEraseConfig(layers_to_transform=[0, 1], token_id=61, init_weights=False))
    model.base_model.set_adapter(["default", "second"])
    embedding = model.get_input_embeddings()
    assert torch.equal(embedding(torch.tensor([TOKEN_ID]))[0], row(model, "default").to(base.dtype))
    assert torch.equal(embedding(torch.tensor([61]))[0], row(model, "second").to(base.dtype))
    down = model.get_base_model().model.layers[1].mlp.down_proj
    key = torch.randn(4, 64).to(base.dtype)
    edits = down.get_delta_weight("default") + down.get_delta_weight("second")
    assert_close(down(key), (down.base_layer(key) + key.float() @ edits.T).to(base.dtype))
    both = logits_of(model, token_ids)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default", "second"]
    assert_close(logits_of(model, token_ids), both, merged=2)


def test_a_second_adapter_finds_the_same_projections_by_itself(family_base):
    model = family_base.with_adapter()
    model.add_adapter("second", UniEraseConfig(layers_to_transform=[1, 2], token_id=61))
    assert model.peft_config["second"].target_modules == model.peft_config["default"].target_modules
    assert model.peft_config["second"].token_modules == model.peft_config["default"].token_modules


def test_deleting_the_last_adapter_leaves_the_base(base, token_ids):
    model = base.with_adapter()
    model.delete_adapter("default")
    # PEFT's own wrapper cannot run without any adapter; the model in it can.
    assert torch.equal(logits_of(model.base_model.model, token_ids), logits_of(base.load(), token_ids))
    assert not any("unierase_" in name for name in model.state_dict())


def test_deleting_one_of_two_adapters_leaves_the_other(tied_base, save_adapter, tmp_path, token_ids):
    tied_base.with_adapter(seed=2).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tied_base.load(), save_adapter(tied_base), adapter_name="first")
    model.load_adapter(tmp_path, "second")
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("first")
    assert model.active_adapters == ["second"]
    assert torch.equal(logits_of(model, token_ids), logits_of(tied_base.with_adapter(seed=2), token_ids))
    assert not any("first" in name for name in model.state_dict())
    assert model.get_input_embeddings().unierase_token_ids == {"second": [TOKEN_ID]}
    # The name and the row are free again.
    model.load_adapter(save_adapter(tied_base), "first")
    model.set_adapter("first")
    assert torch.equal(logits_of(model, token_ids), logits_of(tied_base.with_adapter(), token_ids))


# Merged, unmerged, unloaded


def test_merged_it_is_a_plain_model_with_the_same_logits(base, tmp_path, token_ids):
    model = base.with_adapter()
    live = logits_of(model, token_ids)
    merged = model.merge_and_unload()
    assert_close(logits_of(merged, token_ids), live)
    expected = {name: type(module) for name, module in base.load().named_modules()}
    assert {name: type(module) for name, module in merged.named_modules()} == expected
    # Saved and loaded by transformers alone, also where the base was tied.
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=base.dtype)
    assert torch.equal(logits_of(loaded, token_ids), logits_of(merged, token_ids))
    assert not is_tied(loaded)
    assert loaded.config.tie_word_embeddings is False


def test_merged_it_writes_the_same_greedy_text(make_base, token_ids):
    for family in ("tied", "untied"):
        model = make_base(family).with_adapter()
        live = greedy(model, token_ids)
        assert torch.equal(greedy(model.merge_and_unload(), token_ids), live)
        assert not torch.equal(greedy(make_base(family).load(), token_ids), live)


def test_every_family_merges(family_base, token_ids):
    model = family_base.with_adapter()
    live = logits_of(model, token_ids)
    assert_close(logits_of(model.merge_and_unload(), token_ids), live)


def test_merged_weights_are_the_base_plus_the_edit(tied_base):
    model = tied_base.with_adapter(r=2)
    parts = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    merged, weights = model.merge_and_unload().state_dict(), tied_base.load().state_dict()
    for name in EDITS:
        edit = parts[f"base_model.model.{name}.unierase_B"] @ parts[f"base_model.model.{name}.unierase_A"]
        assert torch.allclose(merged[f"{name}.weight"], weights[f"{name}.weight"] + edit, atol=1e-6)
    for row in ROWS:
        weights[f"{row}.weight"] = weights[f"{row}.weight"].clone()
        weights[f"{row}.weight"][TOKEN_ID] = parts[f"base_model.model.{row}.unierase_row"]
        assert torch.equal(merged[f"{row}.weight"], weights[f"{row}.weight"])
    untouched = [name for name in weights if name.removesuffix(".weight") not in EDITS + ROWS]
    assert all(torch.equal(merged[name], weights[name]) for name in untouched)


def test_a_merged_conv1d_has_the_edit_the_right_way_round(make_base):
    layer = make_base("gpt2").with_adapter().get_base_model().transformer.h[1].mlp.c_proj
    assert isinstance(layer.base_layer, Conv1D)
    assert layer.get_delta_weight("default").shape == layer.base_layer.weight.shape == (64, 32)
    key = torch.randn(3, 64)
    live = layer(key)
    layer.merge()
    assert torch.allclose(layer(key), live, atol=1e-5)


def test_a_merged_row_gives_what_the_live_row_gave_where_embeddings_are_scaled(make_base):
    for dtype in (torch.float32, torch.bfloat16):
        embedding = make_base("gemma", dtype).with_adapter().get_input_embeddings()
        live = embedding(torch.tensor([TOKEN_ID]))
        embedding.merge()
        # Merging rounds the row before it is scaled and the live row is rounded after it: one step each way.
        assert torch.allclose(embedding(torch.tensor([TOKEN_ID])), live, rtol=1e-6 if dtype == torch.float32 else 2**-7)


def test_unmerged_it_is_live_again_and_the_base_is_the_very_same(base, token_ids):
    model = base.with_adapter()
    live = logits_of(model, token_ids)
    tied_before = is_tied(model)
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    model.merge_adapter()
    assert_close(logits_of(model, token_ids), live)
    assert not is_tied(model)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model, token_ids), live)
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == parameters
    assert is_tied(model) == tied_before
    assert_is_the_base(model.unload(), base.load(), token_ids)


def test_disabled_while_merged_it_is_the_base_to_the_bit(base, token_ids):
    model = base.with_adapter()
    live = logits_of(model, token_ids)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits_of(model, token_ids), logits_of(base.load(), token_ids))
    assert torch.equal(logits_of(model, token_ids), live)


def test_moved_while_merged_it_comes_back_where_the_model_is(tied_base, token_ids):
    model = tied_base.with_adapter()
    model.merge_adapter()
    model.to(torch.float64)
    model.unmerge_adapter()
    weights = tied_base.load().state_dict()
    unmerged = model.unload().state_dict()
    assert all(tensor.dtype == torch.float64 for name, tensor in unmerged.items())
    assert all(torch.equal(tensor, weights[name].double()) for name, tensor in unmerged.items())


def test_merging_twice_and_unmerging_twice_is_harmless(tied_base, token_ids):
    model = tied_base.with_adapter()
    model.merge_adapter()
    merged = logits_of(model, token_ids)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert torch.equal(logits_of(model, token_ids), merged)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert_is_the_base(model.unload(), tied_base.load(), token_ids)


def test_unloaded_it_is_the_base(base, token_ids):
    assert_is_the_base(base.with_adapter().unload(), base.load(), token_ids)


def test_unloading_a_merged_adapter_is_refused(tied_base):
    model = tied_base.with_adapter()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"unmerge_adapter\(\) first .* or merge_and_unload\(\)"):
        model.unload()


def test_a_tied_base_is_merged_without_peft_warning_that_it_cannot_be(base):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base.with_adapter().merge_and_unload()
    assert not any("can lead to complications" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
def test_merging_into_a_quantised_weight_is_refused_before_anything_is_merged(tied_base, dtype, way):
    model = tied_base.with_adapter()
    # A stand-in for a quantiser's layer, none of which runs here: the last edit's weight in a quantiser's dtype.
    quantised = model.get_base_model().model.layers[2].mlp.down_proj.base_layer
    quantised.weight = nn.Parameter(torch.ones(32, 64).to(dtype), requires_grad=False)
    weights = weights_of(model)
    with pytest.raises(ValueError, match=f"cannot merge into a weight of dtype {dtype}: load the base in float32"):
        getattr(model, way)()
    assert model.get_model_status().merged_adapters == []
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_safe_merge_refuses_a_broken_adapter(tied_base):
    layer = tied_base.with_adapter().get_base_model().model.layers[1].mlp.down_proj
    weight = layer.weight
    with torch.no_grad():
        layer.unierase_B["default"][3] = float("nan")
    with pytest.raises(ValueError, match="The adapter default seems to be broken"):
        layer.merge(safe_merge=True)
    assert layer.weight is weight
    assert not layer.merged


def test_a_base_that_had_an_adapter_can_have_another(tied_base, token_ids):
    expected = logits_of(tied_base.with_adapter(), token_ids)
    bare = tied_base.with_adapter(seed=2).unload()
    torch.manual_seed(1)
    again = get_peft_model(
        bare, UniEraseConfig(layers_to_transform=[1, 2], token_id=TOKEN_ID, init_weights=False, task_type="CAUSAL_LM")
    )
    assert torch.equal(logits_of(again, token_ids), expected)
