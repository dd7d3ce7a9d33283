"""The stock LoRA form of an erasure gives what the erasure gives, and plain PEFT loads it without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base
from helpers import ENVIRONMENT, save_tiny_model
from peft import LoraConfig, PeftMixedModel, PeftModel, convert_to_lora, get_peft_model, save_as_lora
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from peft_unierase import UniEraseConfig, load, set_active
from peft_unierase.adapter.lora import default_layout, lora_form, save_lora
from peft_unierase.lm.structure import find_down_projections, find_mlp_projections

pytestmark = pytest.mark.slow

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "untied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "scaled embeddings": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16}),
    "Conv1D": (GPT2LMHeadModel, GPT2Config, {}),
    "biased head": (PhiForCausalLM, PhiConfig, {"tie_word_embeddings": False}),
}

PLAIN = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2], subfolder="lora").eval()
assert "peft_unierase" not in sys.modules
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[3])).logits, sys.argv[4])
"""


@pytest.fixture(scope="module", params=list(FAMILIES))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_class, config_class, options = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    save_tiny_model(folder / "base", model_class, config_class, **options)
    return folder


def base_of(place: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32).eval()


def erased(place: Path, seed: int = 1, number: int = 1) -> PeftModel:
    """An adapter of random weights on all projections of the MLPs of two layers, of rank 2 and one of rank 3."""
    base = base_of(place)
    names = [name for layer in find_mlp_projections(base)[1:3] for name in layer]
    torch.manual_seed(seed)
    config = UniEraseConfig(
        r=2,
        rank_pattern={names[-1]: 3},
        task_type="CAUSAL_LM",
        target_modules=names,
        token_id=base.get_input_embeddings().weight.shape[0] - number,
        init_weights=False,
    )
    return get_peft_model(base, config).eval()


def ids_of(model: Any) -> torch.Tensor:
    last = model.get_input_embeddings().weight.shape[0] - 1
    return torch.tensor([[3, 4, 5, last, 7, last - 1, 9]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=ids_of(model)).logits


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_it_gives_the_same_logits(place: Path, tmp_path: Path) -> None:
    model = erased(place)
    wanted = logits(model)
    assert relative(wanted, logits(base_of(place))) > 0.01
    layouts = ["L"] if default_layout(model) == "L" else ["T", "L"]
    for layout in layouts:
        save_lora(model, tmp_path / layout, layout=layout)
        found = PeftModel.from_pretrained(base_of(place), str(tmp_path / layout)).eval()
        assert found.peft_config["default"].peft_type == "LORA"
        assert relative(logits(found), wanted) < 1e-5


def test_plain_peft_loads_it_in_a_process_without_this_package(place: Path, tmp_path: Path) -> None:
    model = erased(place)
    model.save_pretrained(tmp_path / "erasure", save_embedding_layers=False)
    save_lora(model, tmp_path / "erasure" / "lora")
    torch.save(ids_of(model), tmp_path / "ids.pt")
    told = [place / "base", tmp_path / "erasure", tmp_path / "ids.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, told)], env=ENVIRONMENT, check=True, timeout=120)
    assert relative(torch.load(tmp_path / "logits.pt"), logits(model)) < 1e-5


def test_one_rank_throughout_alpha_is_r_and_no_matrix_is_whole(place: Path, tmp_path: Path) -> None:
    model = erased(place)
    save_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert not config["modules_to_save"]
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        assert tensor.dtype == torch.float32
        if "trainable_tokens_delta" in name:
            assert tensor.shape[0] == 1
        else:
            assert 3 in tensor.shape, name
        assert "base_layer" not in name


# What llama.cpp's convert_lora_to_gguf.py and vLLM read, and nothing else: any other name makes them refuse the file.
NAME = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
# Settings that change what the tensors mean and that not every loader knows. PEFT's defaults.
UNUSED = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "bias": "none",
    "init_lora_weights": True,
    "layer_replication": None,
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def check_other_loaders(folder: Path, base: Any) -> None:
    """A LoRA of one rank on matrices of the base as they are: no other tensors, no row more, no special setting."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {key: config.get(key, value) for key, value in UNUSED.items()} == UNUSED
    assert (config["peft_type"], config["lora_alpha"]) == ("LORA", config["r"])
    embedding = base.get_input_embeddings()
    weights = {name.removesuffix(".weight") for name, _ in base.named_parameters(remove_duplicate=False)}
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        found = NAME.fullmatch(name)
        assert found, name
        assert bool(found[3]) == (base.get_submodule(found[1]) is embedding), name
        pairs.setdefault(found[1], {})[found[2] or found[3]] = tensor
    assert set(pairs) <= weights
    assert sorted(pairs) == sorted(config["target_modules"])
    for name, pair in pairs.items():
        module = base.get_submodule(name)
        rows, columns = module.weight.shape
        wide, high = (rows, columns) if module is embedding or isinstance(module, Conv1D) else (columns, rows)
        assert pair["A"].shape == (config["r"], wide), name
        assert pair["B"].shape == (high, config["r"]), name
    assert len(base.get_output_embeddings().weight) == base.config.vocab_size


def test_layout_l_is_a_plain_lora_for_loaders_other_than_peft(place: Path, tmp_path: Path) -> None:
    save_lora(erased(place), tmp_path, layout="L")
    check_other_loaders(tmp_path, base_of(place))


def test_so_is_that_of_a_real_erasure(erasure: Path, tmp_path: Path) -> None:
    save_lora(load(demo_base(), erasure), tmp_path, layout="L")
    check_other_loaders(tmp_path, demo_base())


def test_several_are_fused_into_one(place: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("other", 2)):
        erased(place, seed, number=seed).save_pretrained(tmp_path / name, save_embedding_layers=False)
    model = load(base_of(place), [tmp_path / "one", tmp_path / "other"])
    save_lora(model, tmp_path / "both")
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["r"] == 6
    found = PeftModel.from_pretrained(base_of(place), str(tmp_path / "both")).eval()
    assert relative(logits(found), logits(model)) < 1e-5
    save_lora(model, tmp_path / "alone", ["other"])
    set_active(model, ["other"])
    alone = PeftModel.from_pretrained(base_of(place), str(tmp_path / "alone")).eval()
    assert relative(logits(alone), logits(model)) < 1e-5


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (None, {"layout": "X"}, "layout 'X' is none; there are T and L"),
        (None, {"adapters": []}, "there is no adapter to put as a LoRA; name at least one"),
        (None, {"adapters": ["two"]}, "the model has no adapter 'two'; it has 'default'"),
        (lambda model: model.merge_adapter(), {}, r"adapters are merged; call `unmerge_adapter\(\)` first"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    place: Path, tmp_path: Path, change: Callable[[Any], Any] | None, told: dict[str, Any], message: str
) -> None:
    model = erased(place)
    if change:
        change(model)
    with pytest.raises(ValueError, match=message):
        save_lora(model, tmp_path / "out", **told)
    assert not (tmp_path / "out").exists()
    if default_layout(model) == "L":
        with pytest.raises(ValueError, match="which are tied in this base; take layout L"):
            lora_form(model, layout="T")


def test_a_users_own_lora_goes_beside_it(place: Path, tmp_path: Path) -> None:
    model = erased(place)
    save_lora(model, tmp_path / "erasure", layout="L")
    down = find_down_projections(base_of(place))[0]
    torch.manual_seed(3)
    own = get_peft_model(
        base_of(place), LoraConfig(target_modules=[down], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    own.save_pretrained(tmp_path / "own")
    both = PeftModel.from_pretrained(base_of(place), str(tmp_path / "own"), adapter_name="own").eval()
    both.load_adapter(str(tmp_path / "erasure"), adapter_name="erasure")
    both.base_model.set_adapter(["own", "erasure"])
    assert relative(logits(both), logits(own.eval())) > 1e-3
    both.base_model.set_adapter(["erasure"])
    assert relative(logits(both), logits(model)) < 1e-5


def test_pefts_own_conversion_takes_edits_and_refuses_rows(place: Path, tmp_path: Path) -> None:
    """It knows linear layers only, and an erasure without its token's rows would not be one."""
    model = erased(place)
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        save_as_lora(tmp_path / "lora", model, rank=2)
    assert not list((tmp_path / "lora").iterdir())
    base = base_of(place)
    config = UniEraseConfig(r=2, target_modules=find_down_projections(base)[1:3], init_weights=False)
    edits = get_peft_model(base, config).eval()
    wanted, (found, tensors) = logits(edits), convert_to_lora(edits, rank=2)
    found.fan_in_fan_out = "c_proj" in str(config.target_modules)  # which PEFT leaves to the user
    lora = get_peft_model(base_of(place), found).eval()
    lora.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}, strict=False
    )
    assert relative(logits(lora), wanted) < 1e-5


def test_pefts_mixed_model_takes_its_own_types_only(place: Path) -> None:
    model = erased(place)
    with pytest.raises(ValueError, match="type"):
        PeftMixedModel(base_of(place), model.peft_config["default"])
