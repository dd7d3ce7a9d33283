"""`unierase merge` and `unierase export`: what comes out needs nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENVIRONMENT, invoke, listing, save_tiny_model
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_unierase import UniEraseConfig, load

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert "peft_unierase" not in sys.modules
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two erasures that were made apart, of random weights."""
    folder = tmp_path_factory.mktemp("ship")
    save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, tie_word_embeddings=request.param)
    for seed, name in enumerate(("one", "other"), start=1):
        torch.manual_seed(seed)
        base = base_of(folder)
        spare = len(AutoTokenizer.from_pretrained(folder / "base"))
        config = UniEraseConfig(
            task_type="CAUSAL_LM",
            target_modules=["model.layers.1.mlp.down_proj"],
            token_id=spare,
            spare_tokens=[[spare + 1, "[UNL-2]"]],
            init_weights=False,
        )
        get_peft_model(base, config).save_pretrained(folder / name, save_embedding_layers=False)
    return folder


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def test_merged_it_loads_in_a_process_that_knows_transformers_alone(place: Path, tmp_path: Path) -> None:
    wanted = logits(load(base_of(place), [place / "one", place / "other"]))
    told = ("merge", place / "one", place / "other", "-o", tmp_path / "merged", "--format", "json")
    ended = invoke(*told)
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["merged"] == ["one", "other"]
    assert not list((tmp_path / "merged").glob("adapter*"))
    torch.save(IDS, tmp_path / "ids.pt")
    arguments = [tmp_path / "merged", tmp_path / "ids.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, arguments)], env=ENVIRONMENT, check=True, timeout=120)
    found = torch.load(tmp_path / "logits.pt")
    assert torch.allclose(found, wanted, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    spare = len(AutoTokenizer.from_pretrained(place / "base"))
    assert tokenizer.convert_ids_to_tokens([spare, spare + 1]) == ["[UNL]", "[UNL-2]"]
    assert tokenizer.decode([spare, 5, spare + 1], skip_special_tokens=True) == tokenizer.decode([5])


def test_the_card_of_a_merged_model_says_what_was_merged_and_no_path(place: Path, tmp_path: Path) -> None:
    assert invoke("merge", place / "one", "-o", tmp_path / "merged", "--format", "quiet").exit_code == 0
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert "`base` with erasures merged into its weights: `one`" in card.text
    assert "no proof" in card.text
    assert card.data.library_name == "transformers"
    assert str(place) not in str(card)


def test_exported_several_are_one_lora(place: Path, tmp_path: Path) -> None:
    wanted = logits(load(base_of(place), [place / "one", place / "other"]))
    ended = invoke("export", place / "one", place / "other", "-o", tmp_path / "lora", "--format", "json")
    assert ended.exit_code == 0, ended.output
    tied = base_of(place).config.tie_word_embeddings
    assert json.loads(ended.stdout)["layout"] == ("L" if tied else "T")
    found = PeftModel.from_pretrained(base_of(place), str(tmp_path / "lora")).eval()
    assert torch.allclose(logits(found), wanted, atol=1e-4)
    told = invoke("export", place / "one", place / "other", "-o", tmp_path / "again", "--format", "human").stdout
    assert f"a LoRA of rank 2 in layout {'L' if tied else 'T'}" in told


def lora(folder: Path) -> list[Any]:
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "base")
    get_peft_model(model, LoraConfig(target_modules=["down_proj"])).save_pretrained(folder)
    return [folder]


@pytest.mark.parametrize("command", ["merge", "export"])
@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lambda place: [place / "nothing"], "nothing is no adapter: neither a folder with adapter_config.json nor"),
        (lambda place: lora(place / "lora"), "lora is an adapter of type LORA, not an erasure"),
        (lambda place: [place / "one", "-o", place / "base"], "base is there already; name a new folder"),
        (lambda place: [place / "one", "--base", place / "none"], "/none; give a model's folder or Hub id"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    command: str, told: Callable[[Path], list[Any]], message: str, place: Path, tmp_path: Path
) -> None:
    arguments = told(place)
    before = listing(place)
    ended = invoke(command, *([] if "-o" in arguments else ["-o", tmp_path / "out"]), *arguments)
    assert ended.exit_code == 2
    assert message in ended.output.replace("\n", " ")
    assert listing(tmp_path) == {}
    assert listing(place) == before


def test_layout_t_is_refused_for_a_tied_base(place: Path, tmp_path: Path) -> None:
    ended = invoke("export", place / "one", "-o", tmp_path / "out", "--layout", "T")
    assert ended.exit_code == (2 if base_of(place).config.tie_word_embeddings else 0)
    assert (tmp_path / "out").exists() != base_of(place).config.tie_word_embeddings


def test_the_base_beside_a_lora_has_a_head_of_its_own_and_is_the_base(place: Path, tmp_path: Path) -> None:
    ended = invoke("export", place / "one", "--with-base", "-o", tmp_path / "lora", "--format", "json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["layout"] == "L"
    untied = base_of(tmp_path / "lora")
    assert not untied.config.tie_word_embeddings
    assert untied.get_input_embeddings().weight is not untied.get_output_embeddings().weight
    assert torch.equal(logits(untied), logits(base_of(place)))
    wanted = logits(load(base_of(place), place / "one"))
    found = PeftModel.from_pretrained(untied, tmp_path / "lora").eval()
    assert torch.allclose(logits(found), wanted, atol=1e-4)
    assert torch.allclose(logits(found.merge_and_unload()), wanted, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lora" / "base")
    assert tokenizer.decode([len(AutoTokenizer.from_pretrained(place / "base"))], skip_special_tokens=True) == ""


def test_the_base_beside_a_lora_keeps_its_format(place: Path, tmp_path: Path) -> None:
    base_of(place).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(place / "base").save_pretrained(tmp_path / "half")
    told = ("--base", tmp_path / "half", "--trust", "--with-base", "-o", tmp_path / "lora")
    ended = invoke("export", place / "one", *told)
    assert ended.exit_code == 0, ended.output
    weights = load_file(tmp_path / "lora" / "base" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert set(weights) >= {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_base_that_lacks_the_row_of_an_erasure_is_not_written_beside_it(place: Path, tmp_path: Path) -> None:
    base = base_of(place)
    rows = base.config.vocab_size
    base.resize_token_embeddings(rows + 1)
    config = UniEraseConfig(task_type="CAUSAL_LM", target_modules=["model.layers.1.mlp.down_proj"], token_id=rows)
    get_peft_model(base, config).save_pretrained(tmp_path / "one", save_embedding_layers=False)
    told = ("--base", place / "base", "--trust", "--with-base", "-o", tmp_path / "out")
    ended = invoke("export", tmp_path / "one", *told)
    assert ended.exit_code == 2
    assert "base lacks the vocabulary row of an erasure; merge it instead" in " ".join(ended.output.split())
    assert not (tmp_path / "out").exists()
