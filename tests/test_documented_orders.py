"""The orders of loading and switching that README.md and docs/ show, run as they stand there."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made_apart import IDS, base_of, config_of
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_unierase
from peft_unierase import load, set_active
from peft_unierase.adapter.active import active
from peft_unierase.cli.loading import loading_lines

ROOT = Path(__file__).resolve().parents[1]
SEVERAL = "docs/guides/sequential-and-staged.md"
TOLD: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}

pytestmark = pytest.mark.parametrize("kind", ["llama"], indirect=True)


def block(file: str, holding: str) -> str:
    """The code in a document that holds a text."""
    blocks = re.findall(r"```py(?:thon)?\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [code for code in blocks if holding in code]
    return found


def run(code: str, places: Mapping[str, Path], names: dict[str, Any]) -> dict[str, tuple[list[str], Any]]:
    """Run code statement by statement with folders in the place of what it loads.

    Returns:
        What is on after each statement, and its value if it has one.
    """
    for name, folder in places.items():
        code = code.replace(f'"{name}"', repr(str(folder))).replace(f'"{name}/', f'"{folder}/')
    found = {}
    for statement in ast.parse(code).body:
        value = None
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), "document", "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), "document", "exec"), names)
        model = names.get("model")
        on = active(model) if isinstance(model, PeftModel) and hasattr(model.base_model, "switch") else []
        found[ast.unparse(statement)] = (on, value)
    return found


def batch(rows: int) -> dict[str, Any]:
    ids = IDS.repeat(rows, 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **TOLD}


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a base, with a token on each row before that of the erasures."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = base_of(folder).config.vocab_size
    tokenizer.add_tokens([f"<{n}>" for n in range(len(tokenizer), rows - 3)])
    return tokenizer


def test_several_at_once(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    places = {"org/erase-a": apart("erase-a", 1), "org/erase-b": apart("erase-b", 2)}
    names = {"base": base_of(kind[1]), "tokenizer": tokenizer_of(kind[1]), "inputs": batch(3)}
    names |= {name: getattr(peft_unierase, name) for name in ("align_tokenizer", "load", "set_active", "toggle")}
    found = run(block(SEVERAL, "set_active(model, [])"), places, names)
    model = names["model"]
    states = {line.partition("(")[0] + ("([])" if "[]" in line else ""): on for line, (on, _) in found.items()}
    assert states["toggle"] == ["erase-a", "erase-b"]
    assert states["set_active([])"] == states["align_tokenizer"] == states["model.generate"] == []
    assert states["model.set_adapter"] == active(model) == model.active_adapters == ["erase-b"]
    (generated,) = [value for line, (_, value) in found.items() if "generate" in line]
    for row, on in zip(generated, (["erase-a"], ["erase-a", "erase-b"], []), strict=True):
        set_active(model, on)
        own = model.generate(**batch(1))[0]
        assert torch.equal(row[: len(own)], own), on


def test_one_that_is_switched_off_and_merged(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    names: dict[str, Any] = {}
    run(block("README.md", "merged = model"), {"org/model": kind[1], "erase-xyz": apart("erase-xyz", 1)}, names)
    merged = names["merged"]
    model = load(base_of(kind[1]), apart("again", 1))
    ids = {"input_ids": IDS}
    with torch.no_grad():
        assert torch.allclose(merged(**ids).logits, model(**ids).logits, atol=1e-4)


def test_a_further_erasure(
    kind: tuple[str, Path], apart: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def erase(model: Any, *_: Any) -> Any:
        model.add_adapter("erasure-2", config_of(model.get_base_model()))
        model.base_model.set_adapter(["default", "erasure-2"], inference_mode=True)
        return model

    first, base = apart("erase-xyz", 1), base_of(kind[1])
    names: dict[str, Any] = {
        "model": PeftModel.from_pretrained(base_of(kind[1]), str(first)), "base": base, "PeftModel": PeftModel,
        "tokenizer": tokenizer_of(kind[1]), "erase": erase, "read_facts": lambda _: [],
        "AutoModelForCausalLM": AutoModelForCausalLM,
    }  # fmt: skip
    places = {"org/model": kind[1], "erase-xyz": first, "erase-later": tmp_path / "erase-later"}
    run(block(SEVERAL, 'selected_adapters=["erasure-2"]'), places, names)
    found = run(block(SEVERAL, 'load_adapter("erase-later'), places, names)
    assert list(found.values())[-1][0] == ["default", "erasure-2"]
    both = names["model"]
    with torch.no_grad():
        alone = [both(input_ids=IDS, adapter_names=[name]).logits for name in ("default", "erasure-2", "__base__")]
        assert torch.allclose(alone[2], base_of(kind[1])(input_ids=IDS).logits, atol=1e-4)
    assert len({logits.sum().item() for logits in alone}) == 3


def test_what_the_command_shows_after_a_further_erasure(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    first, second = apart("first", 1), apart("second", 2)
    names: dict[str, Any] = {"base": base_of(kind[1])}
    run(textwrap.dedent(loading_lines(second, onto=[first])), {}, names)
    assert active(names["model"]) == ["first", "second"]
