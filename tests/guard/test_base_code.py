"""Code that a base brings is never run, and nobody is asked whether to: an adapter names its base, and so its code."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model, write_rows
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import peft_unierase
from peft_unierase import UniEraseConfig
from peft_unierase.cli.app import app
from peft_unierase.lm.load import load_base

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
NEEDED = (
    r"it needs Python code of its own, and no command runs such code\. Give a model that transformers has a class for"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an erasure of it that names it."""
    folder = tmp_path_factory.mktemp("code")
    save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    config = UniEraseConfig(
        task_type="CAUSAL_LM", target_modules=["model.layers.1.mlp.down_proj"], token_id=len(tokenizer)
    )
    tokenizer.add_tokens(["[UNL]"], special_tokens=True)
    get_peft_model(model, config).save_pretrained(folder / "erasure", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "erasure")
    return folder


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def in_config(base: Path) -> None:
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(base / "config.json", model_type="own", architectures=["OwnModel"], auto_map=named)


def in_tokenizer(base: Path) -> None:
    named = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    change(base / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=named)


@pytest.fixture(params=[in_config, in_tokenizer])
def needs_code(request: pytest.FixtureRequest, place: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Lets a base bring code, and gives the file that is there if that has run."""

    def make(base: Path) -> Path:
        request.param(base)
        marker = tmp_path / "it ran"
        (base / "own.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
        return marker

    return make


COMMANDS: dict[str, list[str]] = {
    "merge": ["merge", "{erasure}", "-o", "{out}"],
    "export": ["export", "{erasure}", "-o", "{out}"],
    "check": ["check", "{erasure}", "--forget", "{facts}", "-o", "{out}"],
    "check of a model": ["check", "{base}", "--base", "{base}", "--forget", "{facts}", "-o", "{out}"],
    "erase": ["erase", "{base}", "{facts}", "-o", "{out}"],
    "plan": ["plan", "{base}", "{facts}", "-o", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_base_that_needs_its_code_is_refused_whatever_stands_on_stdin(
    place: Path, tmp_path: Path, needs_code: Callable[[Path], Path], command: list[str]
) -> None:
    for name in ("base", "erasure"):
        shutil.copytree(place / name, tmp_path / name)
    base, out = tmp_path / "base", tmp_path / "out"
    change(tmp_path / "erasure" / "adapter_config.json", base_model_name_or_path=str(base))
    marker = needs_code(base)
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "Nobody at all."}])
    named = {"erasure": tmp_path / "erasure", "base": base, "facts": facts, "out": out}
    ended = CliRunner().invoke(app, [part.format(**named) for part in command], input="y\n" * 9)
    assert not marker.exists()
    assert ended.exit_code == 2, ended.output
    assert re.search(NEEDED, ended.stderr), ended.stderr
    assert "trust_remote_code=True, and hand them to" in ended.stderr
    assert "[y/N]" not in ended.output
    assert ended.stderr.count("\n") == 1
    assert not out.exists()


def test_the_tokenizer_beside_an_erasure_brings_none_either(
    place: Path, tmp_path: Path, needs_code: Callable[[Path], Path]
) -> None:
    shutil.copytree(place / "erasure", tmp_path / "erasure")
    shutil.copytree(place / "base", tmp_path / "base")
    marker = needs_code(tmp_path / "base")
    for name in ("tokenizer_config.json", "own.py"):
        shutil.copy(tmp_path / "base" / name, tmp_path / "erasure" / name)
    arguments = ["stack", str(tmp_path / "erasure"), "-o", str(tmp_path / "out"), "--trust"]
    CliRunner().invoke(app, arguments, input="y\n" * 9)
    assert not marker.exists()


def test_code_for_what_transformers_has_itself_is_left_alone(place: Path, tmp_path: Path) -> None:
    base, marker = Path(shutil.copytree(place / "base", tmp_path / "base")), tmp_path / "it ran"
    change(base / "config.json", auto_map={"AutoModelForCausalLM": "own.OwnModel"})
    (base / "own.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    model, _ = load_base(str(base))
    assert type(model) is LlamaForCausalLM
    assert not marker.exists()


def test_every_call_that_could_run_such_code_says_that_it_must_not() -> None:
    """Without the argument transformers asks on the terminal."""
    found = []
    for file in Path(peft_unierase.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.match(
                r"Auto\w+\.from_pretrained\(|SentenceTransformer\(", ast.unparse(node)
            ):
                found.append((file.name, ast.unparse(node)))
    assert len(found) >= 7
    assert [call for call in found if not re.search(r"trust_remote_code=False|\*\*told", call[1])] == []
