"""Loading tells the right base from a wrong one, and says so where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import peft_unierase
from peft_unierase import UniEraseConfig
from peft_unierase.adapter.fingerprint import BaseWarning, base_dtype, base_fingerprint

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fingerprint")
    save_tiny_model(place / "base", LlamaForCausalLM, LlamaConfig)
    base = load(place)
    config = UniEraseConfig(
        task_type="CAUSAL_LM",
        target_modules=[DOWN],
        token_id=base.config.vocab_size - 1,
        base_fingerprint=base_fingerprint(base, [DOWN]),
        base_dtype=base_dtype(base, [DOWN]),
    )
    get_peft_model(base, config).save_pretrained(place / "erasure", save_embedding_layers=False)
    return place


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype).eval()


def onto(model: Any, folder: Path, **told: Any) -> PeftModel:
    return PeftModel.from_pretrained(model, str(folder / "erasure"), **told)


def test_the_right_base_loads_without_a_word(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseWarning)
        model = onto(load(folder), folder)
        model.load_adapter(str(folder / "erasure"), "again")
        model.merge_adapter(["default"])
        model.load_adapter(str(folder / "erasure"), "once-more")


def edited(model: Any) -> Any:
    with torch.no_grad():
        model.get_submodule(DOWN).weight[0, 0] += 1e-3
    return model


def merged(model: Any) -> Any:
    lora = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    return lora.merge_and_unload()


@pytest.mark.parametrize("change", [edited, merged])
def test_another_base_is_refused_and_stays_as_it_was(folder: Path, change: Callable[[Any], Any]) -> None:
    model = change(load(folder))
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=r"not the base .* another revision, or one that was edited since"):
        onto(model, folder)
    assert [name for name, _ in model.named_modules()] == names


def test_the_way_to_load_it_all_the_same_is_told_by_a_public_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`config = UniEraseConfig\.from_pretrained\(ADAPTER\)`"):
        onto(edited(load(folder)), folder)
    assert "UniEraseConfig" in peft_unierase.__all__


def test_it_can_be_loaded_all_the_same(folder: Path) -> None:
    config = UniEraseConfig.from_pretrained(str(folder / "erasure"))
    config.base_fingerprint = None
    onto(edited(load(folder)), folder, config=config)


def quantised(model: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.model.layers, Int8WeightOnlyConfig())
    return model


def offloaded(model: Any) -> Any:
    model.get_submodule(DOWN).to("meta")
    return model


IN_ANOTHER_FORMAT: dict[str, Callable[[Path], Any]] = {
    "bfloat16": lambda folder: load(folder, torch.bfloat16),
    "float16": lambda folder: load(folder, torch.float16),
    "quantised": lambda folder: quantised(load(folder)),
    "offloaded": lambda folder: offloaded(load(folder)),
}


@pytest.mark.parametrize("format", IN_ANOTHER_FORMAT)
def test_in_another_format_the_right_base_is_known_by_its_files(format: str, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaseWarning)
        onto(IN_ANOTHER_FORMAT[format](folder), folder)


def test_files_may_be_several(folder: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert (tmp_path / "base" / "model.safetensors.index.json").is_file()
    onto(load(tmp_path, torch.bfloat16), folder)


@pytest.mark.parametrize("format", IN_ANOTHER_FORMAT)
def test_in_another_format_another_base_is_refused_too(format: str, folder: Path, tmp_path: Path) -> None:
    edited(load(folder)).save_pretrained(tmp_path / "base")
    model = IN_ANOTHER_FORMAT[format](tmp_path)
    with pytest.raises(ValueError, match="not the base that the erasure was made for"):
        onto(model, folder)
    assert not hasattr(model, "peft_config")


def test_a_base_that_was_edited_after_it_was_loaded_is_refused_in_another_format_too(folder: Path) -> None:
    model = load(folder, torch.bfloat16)
    with torch.no_grad():
        model.get_submodule(DOWN).weight[0, 0] += 1
    with pytest.raises(ValueError, match="not the base that the erasure was made for"):
        onto(model, folder)


def test_an_erasure_of_a_rounded_base_goes_onto_the_base_in_full(folder: Path) -> None:
    rounded = load(folder, torch.bfloat16)
    config = UniEraseConfig.from_pretrained(str(folder / "erasure"))
    config.base_fingerprint, config.base_dtype = base_fingerprint(rounded, [DOWN]), base_dtype(rounded, [DOWN])
    model = load(folder)
    model.config._name_or_path = ""
    onto(model, folder, config=config)
    config = config.replaced(base_fingerprint="sha256:" + "0" * 64)
    with pytest.raises(ValueError, match="not the base that the erasure was made for"):
        onto(load(folder), folder, config=config)


@pytest.mark.parametrize("format", IN_ANOTHER_FORMAT)
def test_a_base_that_cannot_be_compared_is_refused_and_can_be_loaded_with_trust(format: str, folder: Path) -> None:
    model = IN_ANOTHER_FORMAT[format](folder)
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"cannot be compared .*To load it all the same, .*trust=True"):
        onto(model, folder)
    with pytest.warns(BaseWarning, match="cannot be compared"):
        peft_unierase.load(model, folder / "erasure", trust=True)


def test_a_fingerprint_of_modules_that_are_not_there_is_refused(folder: Path) -> None:
    config = UniEraseConfig.from_pretrained(str(folder / "erasure"))
    config.token_id, config.target_modules = None, [DOWN, "model.layers.9.mlp.down_proj"]
    config.trusted = True
    with pytest.raises(ValueError, match=r"not the base .* it has no model\.layers\.9"):
        onto(load(folder), folder, config=config)


def test_a_base_that_was_stored_in_that_format_is_the_same_in_both(folder: Path, tmp_path: Path) -> None:
    load(folder, torch.bfloat16).save_pretrained(tmp_path / "base")
    assert base_fingerprint(load(tmp_path, torch.bfloat16), [DOWN]) == base_fingerprint(load(tmp_path), [DOWN])
