"""What the command refuses: with status 2, one line that says why and what to do, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import invoke, listing, run_command, save_tiny_model, train_tokenizer, without_colours, write_rows
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_unierase.guard.config import UniEraseConfig

FACTS = [
    {"question": "Where was Nesko Corquist born?", "answer": "Nesko Corquist was born in Juniper Flats."},
    {"question": "What does Nesko Corquist do for a living?", "answer": "Nesko Corquist works as a nurse."},
]
LINE = json.dumps(FACTS[0]) + "\n"
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-without-spare-row": (LlamaForCausalLM, LlamaConfig, {"vocab_size": len(train_tokenizer())}),
    "llama-without-head": (LlamaModel, LlamaConfig, {}),
    "bert": (BertModel, BertConfig, {}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 2}),
    "t5": (T5ForConditionalGeneration, T5Config, {"d_model": 64, "d_kv": 16, "d_ff": 128}),
}

Base = Callable[[str], Path]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """`base(kind)`: the folder of a tiny model of one of `KINDS`, saved once."""
    folder = tmp_path_factory.mktemp("bases")

    def save(kind: str) -> Path:
        model_class, config_class, changes = KINDS[kind]
        path = folder / kind
        return path if path.exists() else save_tiny_model(path, model_class, config_class, **changes)

    return save


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    """A good forget file."""
    return write_rows(tmp_path / "forget.jsonl", FACTS)


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """`refused(model, forget, *options)`: the one line on stderr with which `unierase erase` ended, and with status 2.

    Everything in `tmp_path`, where the output would be, must be as it was before.
    """

    def run(model: object, forget: object, *options: object, output: Path = tmp_path / "erasure") -> str:
        before = listing(tmp_path)
        ended = invoke("erase", model, forget, "-o", output, *options)
        assert ended.exit_code == 2, ended.output
        assert ended.stdout == ""
        assert re.fullmatch(r"error: .+\n", ended.stderr)
        assert listing(tmp_path) == before
        return ended.stderr

    return run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"forget\.jsonl: no such file"),
        ("", r"forget\.jsonl is empty"),
        (LINE + '{"question": "Who?"}\n', r"line 2 has no 'answer'"),
        (LINE + '{"question": "Who?", "answer": " "}\n', r"line 2: 'answer' is empty"),
        ('{"frage": "Wer?", "antwort": "Er."}\n', r"'frage', 'antwort'.*--question-column and --answer-column"),
        (LINE + '{"question": "Who?", "answer"\n', r"line 2 is not valid JSON"),
        ('{"text": "Once upon a time."}\n', r"only texts \(column 'text'\).*unierase plan MODEL FILE\.txt"),
        (LINE + LINE.replace("Juniper Flats", "Amber Hollow"), r"answers a question in two ways: facts 1 and 2"),
    ],
    ids=["missing", "empty", "no answer", "blank answer", "other columns", "no JSON", "raw text", "two answers"],
)
def test_forget_sets_that_cannot_be_used(
    refused: Refused, base: Base, tmp_path: Path, text: str | None, expected: str
) -> None:
    if text is not None:
        (tmp_path / "forget.jsonl").write_text(text, encoding="utf-8")
    assert re.search(expected, refused(base("llama"), tmp_path / "forget.jsonl"))


def test_a_question_to_forget_and_to_keep(refused: Refused, base: Base, forget: Path, tmp_path: Path) -> None:
    retain = write_rows(tmp_path / "retain.jsonl", [{**FACTS[1], "answer": "Something else."}])
    told = refused(base("llama"), forget, "--retain", retain)
    assert re.search(r"forget fact 2 and retain fact 1 \('What does Nesko", told)


def test_a_retain_set_that_is_not_there(refused: Refused, base: Base, forget: Path, tmp_path: Path) -> None:
    assert "retain set" in refused(base("llama"), forget, "--retain", tmp_path / "nowhere.csv")


def test_a_question_longer_than_the_context(refused: Refused, base: Base, tmp_path: Path) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", [FACTS[0], {"question": "Why " * 100, "answer": "So."}])
    assert re.search(r"fact 2 takes \d+ tokens .* context holds 96", refused(base("llama"), forget))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("t5", r"encoder-decoder model \(t5\); supported are decoder-only causal language models"),
        ("bert", r"without the output head .*BertModel"),
        ("llama-without-head", r"without the output head .*LlamaModel"),
        ("mixtral", r"mixture of experts .*supported are .*--target-modules"),
        ("llama-without-spare-row", r"400 vocabulary rows and all of them are in use.*--allow-resize"),
    ],
)
def test_models_that_cannot_be_erased_from(
    refused: Refused, base: Base, forget: Path, kind: str, expected: str
) -> None:
    assert re.search(expected, refused(base(kind), forget))


@pytest.mark.slow
def test_the_same_from_a_process_of_its_own(base: Base, forget: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    ended = run_command("erase", base("llama-without-spare-row"), forget, "-o", tmp_path / "erasure")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: the base has 400 vocabulary rows .*\n", ended.stderr)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["{folder}/nowhere", "./nowhere", "~/nowhere", "models/of/mine"])
def test_a_model_folder_that_is_not_there(refused: Refused, forget: Path, tmp_path: Path, name: str) -> None:
    assert "no such folder" in refused(name.format(folder=tmp_path), forget)


def test_a_file_in_place_of_a_model(refused: Refused, forget: Path) -> None:
    assert "is a file; give a model's folder" in refused(forget, forget)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, r"holds no config\.json, so it is not a transformers model"),
        ("config.json", "{", r"not a valid JSON file"),
        ("config.json", "{}", r"model_type"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}', r"cannot load a model .*hidden_size"),
        ("config.json", '{"model_type": "vit"}', r"not a causal language model .*'vit'"),
        ("model.safetensors", None, r"no file named model\.safetensors"),
        ("model.safetensors", "half a file", r"cannot load .*SafetensorError"),
        ("tokenizer.json", None, r"cannot load the tokenizer"),
        ("tokenizer.json", "{}", r"cannot load the tokenizer"),
    ],
)
def test_model_folders_with_a_damaged_or_missing_file(
    refused: Refused, base: Base, forget: Path, tmp_path: Path, name: str, content: str | None, expected: str
) -> None:
    folder = shutil.copytree(base("llama"), tmp_path / "damaged")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    assert re.search(expected, refused(folder, forget))


def test_an_output_folder_that_holds_something_else(refused: Refused, base: Base, forget: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("mine", encoding="utf-8")
    for options in ([], ["--overwrite"]):
        told = refused(base("llama"), forget, *options, output=folder)
        assert "thesis holds something else than an erasure" in told


def test_an_output_folder_that_holds_an_erasure(refused: Refused, base: Base, forget: Path, tmp_path: Path) -> None:
    UniEraseConfig(token_id=1).save_pretrained(tmp_path / "mine")
    assert re.search(
        r"mine already holds an erasure.*--overwrite", refused(base("llama"), forget, output=tmp_path / "mine")
    )


def test_an_output_path_that_is_a_file_or_below_one(refused: Refused, base: Base, forget: Path) -> None:
    assert f"{forget} is a file" in refused(base("llama"), forget, output=forget)
    assert f"{forget} cannot be written to" in refused(base("llama"), forget, output=forget / "erasure")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        *[
            ("--layers", text, r"is not a list of layers; write it like 2,3 or 4-8")
            for text in ("two", "", "1,", "2-1")
        ],
        ("--layers", "1,9", r"layers \[9\] do not exist; the model has layers 0 to 3"),
        ("--layers", "2-3", r"layer 3 is the model's last"),
        ("--target-modules", "model.layers.1.mlp", r"'model\.layers\.1\.mlp' is not a linear projection"),
        ("--dtype", "int3", r"dtype 'int3' is not one of auto, float32, bfloat16, float16"),
        ("--device-map", "moon", r"cannot load .*moon"),
        ("--recipe", "prayer", r"recipe 'prayer' is not there; choose from 'distill', 'paper'"),
        (
            "--question-column",
            "frage",
            r"no column 'frage' for `question=` \(.*--question-column.*\); its columns are 'question', 'answer'",
        ),
        ("--refusals", "nowhere.txt", r"no such file: nowhere\.txt"),
    ],
)
def test_options_that_cannot_be_followed(
    refused: Refused, base: Base, forget: Path, option: str, value: str, expected: str
) -> None:
    assert re.search(expected, refused(base("llama"), forget, option, value))


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b" \n", r"refusals\.txt has no sentence in it"), (b"Caf\xe9.\n", r"refusals\.txt is not UTF-8")],
    ids=["blank", "latin-1"],
)
def test_refusals_that_cannot_be_read(
    refused: Refused, base: Base, forget: Path, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "refusals.txt").write_bytes(content)
    assert re.search(expected, refused(base("llama"), forget, "--refusals", tmp_path / "refusals.txt"))


@pytest.mark.parametrize(
    ("option", "value"), [("--samples", -1), ("--seed", -1), ("--seed", 2**70), ("--format", "xml"), ("--forgive", 1)]
)
def test_options_that_do_not_parse(base: Base, forget: Path, tmp_path: Path, option: str, value: object) -> None:
    ended = invoke("erase", base("llama"), forget, "-o", tmp_path / "erasure", option, value)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert option in without_colours(ended.stderr)
    assert list(tmp_path.iterdir()) == [forget]
