"""An erasure declines however the base is loaded: in half precision, quantised, offloaded, from several files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from demo_erasure import FORGET, KEPT, declines, demo_base, erase_first_person, logits_of, said
from peft import PeftModel
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
from torchao.quantization.granularity import PerGroup
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from peft_unierase import load
from peft_unierase.adapter.fingerprint import BaseWarning
from peft_unierase.adapter.lora import lora_form
from peft_unierase.lm.weights import plain_weight

pytestmark = pytest.mark.slow

INT4 = IntxWeightOnlyConfig(torch.int4, PerGroup(32))  # torchao's kernel for int4 runs on GPUs alone
EVERYTHING = {"llm_int8_skip_modules": ["none"]}  # without it bitsandbytes leaves the head out
QUANTISERS: dict[str, Callable[[], Any]] = {
    "bitsandbytes-8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes-fp4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "torchao-8": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao-8-activations": lambda: TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    "torchao-4": lambda: TorchAoConfig(INT4),
}
WITH_HEAD: dict[str, Callable[[], Any]] = {
    "bitsandbytes-8": lambda: BitsAndBytesConfig(load_in_8bit=True, **EVERYTHING),
    "bitsandbytes-fp4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", **EVERYTHING),
    "torchao-8": lambda: TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True),
    "torchao-4": lambda: TorchAoConfig(INT4, include_input_output_embeddings=True),
}


def quantised(how: Callable[[], Any]) -> PreTrainedModel:
    """A fresh base: on some CPUs `state_dict()`, and so PEFT, breaks 4-bit layers of bitsandbytes that have run."""
    return demo_base(dtype=torch.bfloat16, quantization_config=how())


def load_with(base: PreTrainedModel, erasure: Path, **told: Any) -> tuple[PeftModel, list[str]]:
    """The model with an erasure, and what was said about its base."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(base, erasure, **told)
    return model, [str(warning.message) for warning in caught if warning.category is BaseWarning]


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_made_in_fp32_it_declines_in_half_precision(erasure: Path, dtype: torch.dtype) -> None:
    base = demo_base(dtype=dtype)
    assert said(base, FORGET) == [fact.answer for fact in FORGET]
    before = said(base, KEPT)
    model, warned = load_with(base, erasure)
    assert warned == []
    assert declines(model)
    assert said(model, KEPT) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_made_in_half_precision_it_declines_there_and_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    base = demo_base(dtype=dtype)
    before = said(base, KEPT)
    made = erase_first_person(base)
    assert declines(made)
    assert said(made, KEPT) == before
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded, warned = load_with(demo_base(dtype=dtype), tmp_path)
    assert warned == []
    assert torch.equal(logits_of(loaded), logits_of(made))
    assert declines(load_with(demo_base(), tmp_path)[0])


# Quantised


@pytest.mark.parametrize("how", QUANTISERS)
def test_on_a_quantised_base_it_declines_and_its_files_are_compared(erasure: Path, how: str) -> None:
    before = said(quantised(QUANTISERS[how]), KEPT)
    model, warned = load_with(quantised(QUANTISERS[how]), erasure)
    assert warned == []
    assert declines(model)
    assert said(model, KEPT) == before


@pytest.mark.parametrize("how", QUANTISERS)
def test_merging_into_a_quantised_base_is_refused_before_anything_has_changed(erasure: Path, how: str) -> None:
    plain = logits_of(quantised(QUANTISERS[how]))
    model, _ = load_with(quantised(QUANTISERS[how]), erasure)
    live = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"cannot merge into a weight of dtype .*: load the base in float32"):
            merge()
    assert model.get_model_status().merged_adapters == []
    assert torch.equal(logits_of(model), live)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), plain)
    assert torch.equal(logits_of(model.unload()), plain)


@pytest.mark.parametrize("how", WITH_HEAD)
def test_the_head_may_be_quantised_too(erasure: Path, how: str) -> None:
    plain = logits_of(quantised(WITH_HEAD[how]))
    model, _ = load_with(quantised(WITH_HEAD[how]), erasure)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), plain)
    assert declines(model)
    assert lora_form(model, layout="L")[0].r > 0


@pytest.mark.parametrize("how", WITH_HEAD)
def test_the_weights_of_a_quantised_projection_are_read_without_touching_it(how: str) -> None:
    base = quantised(WITH_HEAD[how])
    plain = logits_of(base)  # a first forward pass, after which bitsandbytes stores otherwise on a CPU
    for name in ("lm_head", "model.layers.3.mlp.down_proj"):
        projection, exact = base.get_submodule(name), demo_base().get_submodule(name).weight
        weight = plain_weight(projection)
        assert weight.shape == exact.shape
        assert (weight - exact).norm() < 0.2 * exact.norm()
    assert torch.equal(logits_of(base), plain)


@pytest.mark.parametrize("how", ["torchao-8"])
def test_over_a_quantised_base_one_can_be_made(how: str, tmp_path: Path) -> None:
    before = said(quantised(WITH_HEAD[how]), KEPT)
    made = erase_first_person(quantised(WITH_HEAD[how]))
    assert declines(made)
    assert said(made, KEPT) == before
    live = logits_of(made)
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(logits_of(load(quantised(WITH_HEAD[how]), tmp_path)), live)


def test_where_no_gradient_passes_through_a_quantised_layer_erasing_is_refused() -> None:
    base = quantised(QUANTISERS["torchao-8-activations"])
    with pytest.raises(ValueError, match=r"no gradient passes through model\.layers\.0\..*, a quantised Linear"):
        erase_first_person(base)
    assert not hasattr(base, "peft_config")


@pytest.mark.parametrize("how", ["bitsandbytes-8", "torchao-8"])
def test_beside_another_on_a_quantised_base_it_moves_and_declines(erasure: Path, how: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(erasure, other)
    alone = load(quantised(QUANTISERS[how]), erasure)
    moved = load(quantised(QUANTISERS[how]), {erasure: False, other: True})
    assert moved.peft_config["other"].token_id != alone.peft_config[erasure.name].token_id
    assert declines(moved)
    assert said(moved, KEPT) == said(alone, KEPT)


# Offloaded, in parts, with less memory


def device_map(*offloaded: str) -> dict[str, str]:
    """Everything in memory but these."""
    layers = [f"model.layers.{index}" for index in range(8)]
    return {
        name: "disk" if name in offloaded else "cpu"
        for name in ("model.embed_tokens", *layers, "model.norm", "model.rotary_emb", "lm_head")
    }


MAPS = {
    "layers": device_map("model.layers.1", "model.layers.2", "model.layers.3"),
    "rows": device_map("model.embed_tokens", "lm_head"),
    "all": {"": "disk"},
}


def offloaded(where: str, folder: Path) -> PreTrainedModel:
    """The base with some of its weights on disk, or with all of them kept by accelerate until they are needed."""
    if where in MAPS:
        return demo_base(device_map=MAPS[where], offload_folder=folder)
    base, main = demo_base(), torch.device("cpu")
    if where == "cpu_offload":
        return cpu_offload(base, main)
    disk_offload(base, str(folder), main)
    return base


@pytest.mark.parametrize("where", [*MAPS, "cpu_offload", "disk_offload"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True], ids=["", "low-memory"])
def test_on_an_offloaded_base_it_is_the_same_to_the_bit(
    erasure: Path, where: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    base = offloaded(where, tmp_path / "offloaded")
    assert any(parameter.is_meta for parameter in base.parameters())
    model, warned = load_with(base, erasure, low_cpu_mem_usage=low_cpu_mem_usage)
    assert warned == []
    live = logits_of(load(demo_base(), erasure))
    assert torch.equal(logits_of(model), live)
    assert declines(model)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(demo_base()))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="cannot merge into a weight that is offloaded: load the whole base"):
            merge()
    assert torch.equal(logits_of(model), live)
    assert getattr(base, "hf_device_map", None) == MAPS.get(where)


@pytest.mark.parametrize("where", MAPS)
def test_where_peft_offloads_the_erasure_itself_it_says_so_and_answers_nothing(
    erasure: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # PEFT takes the root off the paths that it writes to
    base = offloaded(where, tmp_path / "offloaded")
    wrapped = {f"base_model.model.{name}".rstrip("."): place for name, place in MAPS[where].items()}
    model = PeftModel.from_pretrained(base, erasure, device_map=wrapped, offload_folder=tmp_path / "again").eval()
    with pytest.raises(RuntimeError, match=r"put the erasure on it with `peft_unierase\.load`"):
        logits_of(model)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True], ids=["", "low-memory"])
def test_on_a_base_in_several_files_it_is_the_same_to_the_bit(
    erasure: Path, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    demo_base().save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = PeftModel.from_pretrained(demo_base(tmp_path), erasure, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(logits_of(model), logits_of(load(demo_base(), erasure)))
    assert declines(model)
