"""Hidden units as detectors: which MLPs they are found in, what they tell apart, and what is written for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase import UniEraseConfig
from peft_unierase.engine.gate.units import UnitDetector, UnitSettings, cut_down, find_writers, whitening
from peft_unierase.engine.trace import traced_inputs
from peft_unierase.tuner.structure import find_down_projections

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "phi3": {**SIZES, "pad_token_id": 0},
    "gpt_neox": SIZES,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 2},
    "opt": {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 2},
}


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind])).eval()


@pytest.mark.parametrize(
    ("kind", "count"), [("llama", 2), ("qwen2", 2), ("phi3", 1), ("gpt_neox", 1), ("gpt2", 1), ("opt", 0)]
)
def test_the_projections_into_the_units_are_found_where_the_mlp_allows_it(kind: str, count: int) -> None:
    model = tiny(kind)
    assert len(find_writers(model, find_down_projections(model)[1])) == count


def split() -> tuple[torch.Tensor, torch.Tensor]:
    """Points that no linear row on them tells apart: two opposite corners, and the other two."""
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]) * 3
    noise = torch.randn(4, 200, 32, generator=torch.Generator().manual_seed(1)) * 0.3
    noise[..., :2] += corners[:, None]
    noise[..., 2] += 5
    return noise[:2].flatten(0, 1), noise[2:].flatten(0, 1)


def fitted(kind: str, adapter: str = "default") -> tuple[Any, UnitDetector, torch.Tensor, torch.Tensor]:
    model = tiny(kind)
    down = find_down_projections(model)[1]
    writers = find_writers(model, down)
    index = [3, 5, 8, 13, 21, 34, 55, 89]
    pattern = {name: 2 * len(index) for name in writers if kind == "phi3"}
    config = UniEraseConfig(r=len(index), rank_pattern=pattern, target_modules=[down, *writers], token_id=7)
    wrapped = get_peft_model(model, config, adapter_name=adapter)
    generator = torch.Generator().manual_seed(0)
    unit = UnitDetector(wrapped.base_model.model, down, writers, adapter, index, UnitSettings(), generator)
    wanted, shut = split()
    unit.start(torch.cat([wanted, shut]))
    unit.fit([wanted], [shut], 500)
    unit.write()
    return wrapped, unit, wanted, shut


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_units_tell_apart_what_no_row_can(kind: str) -> None:
    _, unit, wanted, shut = fitted(kind)
    assert unit.openings(wanted).quantile(0.02) > unit.openings(shut).quantile(0.98) + 0.1
    answers = torch.cat([torch.ones(400), torch.zeros(400)])[:, None]
    row = torch.linalg.lstsq(torch.cat([wanted, shut]), answers).solution
    assert (wanted @ row).quantile(0.02) < (shut @ row).quantile(0.98)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_the_live_edit_adds_the_vector_as_far_as_the_units_open(kind: str) -> None:
    _, unit, wanted, _ = fitted(kind)
    steer = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        unit.open(torch.zeros(1))
        shut = unit.mlp(wanted[None])[0]
        unit.open(steer)
        opened = unit.mlp(wanted[None])[0]
    assert torch.allclose(opened - shut, unit.openings(wanted)[:, None] * steer, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_an_edit_of_units_is_saved_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    model, unit, _, _ = fitted(kind)
    unit.open(torch.ones(32))
    ids = torch.tensor([[1, 2, 7, 3]])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(tiny(kind), tmp_path).eval()
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        assert torch.allclose(loaded.merge_and_unload()(input_ids=ids).logits, expected, atol=1e-4)


def test_a_cut_down_mlp_gives_the_values_of_its_units() -> None:
    model = tiny("llama")
    mlp, index = model.model.layers[1].mlp, [0, 7, 95]
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), traced_inputs([mlp.down_proj]) as seen:
        mlp(states)
    small = cut_down(mlp, ["gate_proj", "up_proj"], "down_proj", index)
    assert torch.allclose(small(states), seen[0][..., index], atol=1e-6)
    assert mlp.gate_proj.weight.shape == (96, 32)


def test_whitened_inputs_have_a_feature_that_is_one() -> None:
    wanted, shut = split()
    features = torch.cat([wanted, shut]) @ whitening(torch.cat([wanted, shut]))
    assert torch.allclose(features[:, -1], torch.ones(800), atol=0.3)
    assert features[:, :-1].mean(dim=0).abs().max() < 0.1


@pytest.mark.parametrize(("facts", "count"), [(1, 8), (40, 12), (400, 37), (40000, 128)])
def test_more_facts_take_more_units_and_never_more_than_one_in_eight(facts: int, count: int) -> None:
    assert UnitSettings().count(facts, 1024) == count


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_bad_rank_of_one_module_is_refused_by_its_name(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"rank_pattern\['up_proj'\] must be a positive integer"):
        UniEraseConfig(rank_pattern={"up_proj": rank})
