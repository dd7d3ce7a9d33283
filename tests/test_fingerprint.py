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

from peft_unierase import UniEraseConfig
from peft_unierase.tuner.fingerprint import BaseWarning, base_dtype, base_fingerprint

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


def test_it_can_be_loaded_all_the_same(folder: Path) -> None:
    config = UniEraseConfig.from_pretrained(str(folder / "erasure"))
    config.base_fingerprint = None
    onto(edited(load(folder)), folder, config=config)


def test_another_format_is_allowed_and_said(folder: Path) -> None:
    with pytest.warns(BaseWarning, match="loaded in bfloat16 and the erasure was made in float32"):
        onto(load(folder, torch.bfloat16), folder)


def test_a_base_that_was_stored_in_that_format_is_the_same_in_both(folder: Path, tmp_path: Path) -> None:
    load(folder, torch.bfloat16).save_pretrained(tmp_path / "base")
    assert base_fingerprint(load(tmp_path, torch.bfloat16), [DOWN]) == base_fingerprint(load(tmp_path), [DOWN])


def test_a_quantised_base_cannot_be_compared_and_that_is_said(folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = load(folder)
    quantize_(model.model.layers, Int8WeightOnlyConfig())
    with pytest.warns(BaseWarning, match="cannot be compared"):
        onto(model, folder)


def test_an_offloaded_base_cannot_be_compared_and_that_is_said(folder: Path) -> None:
    model = load(folder)
    model.get_submodule(DOWN).to("meta")
    with pytest.warns(BaseWarning, match="is offloaded, so it cannot be compared"):
        onto(model, folder)
