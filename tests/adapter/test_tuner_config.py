"""What a configuration may hold, what is refused before a model is changed, and the file that it becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from peft_unierase.guard.config import UniEraseConfig
from peft_unierase.lm.structure import UnsupportedModelError

BAD_NAMES = ["a", "train", "x.y", "", "unierase", "training", "keys"]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that adding an adapter could change."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)},
        "peft_config": dict(getattr(model, "peft_config", {})),
    }


@pytest.mark.parametrize("rank", [0, -1, 1.0, "1", True, None])
def test_rank_must_be_a_positive_integer(rank):
    with pytest.raises(ValueError, match=r"r must be a positive integer, got "):
        UniEraseConfig(r=rank)


@pytest.mark.parametrize("token_id", [-1, 3.0, "60", True])
def test_token_id_must_be_a_row_number(token_id):
    with pytest.raises(ValueError, match="token_id must be None or a whole number"):
        UniEraseConfig(token_id=token_id)


def test_layers_cannot_be_chosen_beside_a_regular_expression():
    with pytest.raises(ValueError, match="layers_to_transform does not go with a regular expression"):
        UniEraseConfig(target_modules=".*down_proj", layers_to_transform=[1])


def test_a_layers_pattern_needs_layers():
    with pytest.raises(ValueError, match="layers_pattern needs layers_to_transform"):
        UniEraseConfig(layers_pattern="layers")


def test_every_field_survives_the_file(tmp_path):
    config = UniEraseConfig(
        r=3,
        rank_pattern={"layers.2.mlp.down_proj": 2},
        target_modules=["down_proj"],
        exclude_modules=["layers.0.mlp.down_proj"],
        layers_to_transform=[1, 2],
        layers_pattern="layers",
        token_id=60,
        token="[GONE]",
        token_modules=["model.embed_tokens", "lm_head"],
        modules_to_save=["norm"],
        init_weights=False,
        base_fingerprint="sha256:0123",
        task_type="CAUSAL_LM",
        base_model_name_or_path="org/base",
    )
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_saved_config_names_what_was_found(tied_base, tmp_path):
    tied_base.with_adapter().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "UNIERASE"
    assert saved["target_modules"] == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    assert saved["token_modules"] == ["model.embed_tokens", "lm_head"]
    assert (saved["token_id"], saved["token"], saved["r"]) == (60, "[UNL]", 1)
    assert saved["base_model_name_or_path"] == str(tied_base.path)
    assert saved["inference_mode"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["found", "named", "many"])
def test_saved_files_are_the_same_whatever_the_hash_seed(fresh_processes, name):
    first, second = (process.folder / name for process in fresh_processes)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


@pytest.mark.slow
def test_many_targets_are_saved_by_their_full_names_in_order(fresh_processes):
    """PEFT shortens such a list to ends of names, with which the base cannot be compared on loading."""
    saved = json.loads((fresh_processes[0].folder / "many" / "adapter_config.json").read_text())
    names = [f"model.layers.{layer}.mlp.{kind}_proj" for layer in range(12) for kind in ("down", "up")]
    assert saved["target_modules"] == sorted(names)


@pytest.mark.parametrize("ranks", [{"down_proj": 0}, {"down_proj": "2"}, {"": 2}, ["down_proj"], None])
def test_ranks_of_modules_must_be_positive_integers_by_name(ranks):
    with pytest.raises(ValueError, match="rank_pattern must be a mapping of module names to positive integers, got "):
        UniEraseConfig(rank_pattern=ranks)


def test_modules_have_the_rank_of_the_pattern_and_the_others_r(tied_base, tmp_path):
    ranks = {"layers.2.mlp.down_proj": 5, "gate_proj": 1}
    model = tied_base.with_adapter(r=3, target_modules=["gate_proj", "down_proj"], rank_pattern=ranks)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tied_base.load(), tmp_path)
    for each in (model, loaded):
        found = {
            name.removeprefix("base_model.model.model."): len(module.unierase_A["default"])
            for name, module in each.named_modules()
            if hasattr(module, "unierase_A")
        }
        assert found == {
            "layers.1.mlp.gate_proj": 1,
            "layers.1.mlp.down_proj": 3,
            "layers.2.mlp.gate_proj": 1,
            "layers.2.mlp.down_proj": 5,
        }


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_for_the_first_adapter_and_the_model_is_unchanged(tied_base, name):
    model = tied_base.load()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"adapter name .* choose another"):
        get_peft_model(model, UniEraseConfig(token_id=60), adapter_name=name)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_for_a_further_adapter_and_the_model_is_unchanged(tied_base, name):
    model = tied_base.with_adapter()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"adapter name .* choose another"):
        model.add_adapter(name, UniEraseConfig(token_id=61))
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["default", "erasure_1", "harry-potter", "2"])
def test_a_good_name_is_taken(tied_base, name):
    model = get_peft_model(tied_base.load(), UniEraseConfig(token_id=60), adapter_name=name)
    assert model.active_adapters == [name]


REFUSED = {
    "token outside the vocabulary": ({"token_id": 64}, ValueError, "token_id 64 is outside .* 64 rows"),
    "token far outside the vocabulary": ({"token_id": 10**6}, ValueError, "outside the vocabulary"),
    "token module that is not there": (
        {"token_id": 60, "token_modules": ["head"]},
        ValueError,
        r"no modules \['head'\]",
    ),
    "target that is not there": (
        {"token_id": 60, "target_modules": ["down_proj", "c_proj"]},
        ValueError,
        r"no modules \['c_proj'\]",
    ),
    "expression without a match": (
        {"token_id": 60, "target_modules": r".*\.c_proj"},
        ValueError,
        r"no modules '.*c_proj'",
    ),
    "layer that is not there, named target": (
        {"token_id": 60, "target_modules": ["down_proj"], "layers_to_transform": [9]},
        ValueError,
        "no modules",
    ),
    "layer that is not there": ({"layers_to_transform": [1, 3]}, ValueError, r"names layers \[3\].* 0 to 2"),
    "target that is not linear": (
        {"target_modules": ["down_proj", "post_attention_layernorm"]},
        TypeError,
        "layers.0.post_attention_layernorm.*linear projection only",
    ),
    "head to be saved whole as well": ({"token_id": 60, "modules_to_save": ["lm_head"]}, ValueError, "modules_to_save"),
}


@pytest.mark.parametrize("further", [False, True], ids=["first", "further"])
@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused_and_the_model_is_unchanged(tied_base, reason, further):
    settings, error, message = REFUSED[reason]
    model = tied_base.with_adapter() if further else tied_base.load()
    before = snapshot(model)
    config = UniEraseConfig(**settings)
    with pytest.raises(error, match=message):
        model.add_adapter("further", config) if further else get_peft_model(model, config)
    assert snapshot(model) == before


def test_a_token_outside_the_head_alone_is_refused_and_the_model_is_unchanged(make_base):
    model = make_base("untied").load()
    # The head is the last module that gets an adapter; everything before it fits.
    model.lm_head = nn.Linear(32, 50, bias=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"token_id 60 is outside .* 50 rows"):
        get_peft_model(model, UniEraseConfig(token_id=60))
    assert snapshot(model) == before


def test_a_model_without_a_head_cannot_hold_a_token(tied_base):
    with pytest.raises(UnsupportedModelError, match="input embedding and an output head"):
        get_peft_model(tied_base.load().model, UniEraseConfig(token_id=60))


def test_edits_alone_need_no_token(tied_base, token_ids):
    model = tied_base.with_adapter(token_id=None)
    assert not any("unierase_row" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        changed = model(input_ids=token_ids).logits
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=token_ids).logits, changed)


def test_rows_alone_need_no_edit(tied_base):
    model = tied_base.with_adapter(target_modules=[], layers_to_transform=None)
    names = [name for name, _ in model.named_parameters() if "unierase_" in name]
    assert names == [f"base_model.model.{part}.unierase_row.default" for part in ("model.embed_tokens", "lm_head")]
