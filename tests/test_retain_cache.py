"""Retain samples in a file: the same facts with it and without, and no file is taken for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase.boxed import boxed_model_dir
from peft_unierase.engine import retain_cache
from peft_unierase.engine.retain_cache import samples_for, samples_header, weights_digest
from peft_unierase.engine.samples import sample_facts
from peft_unierase.facts import Fact
from peft_unierase.prompts import PromptFormat, chat_format, plain_format

Base = tuple[Any, Any, PromptFormat]


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retain_cache, "BLOCK", 10)
        yield


def load(dtype: torch.dtype = torch.float32) -> Base:
    tokenizer = AutoTokenizer.from_pretrained(boxed_model_dir())
    model = AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=dtype).eval()
    return model, tokenizer, chat_format(tokenizer)


@pytest.fixture(scope="module")
def base() -> Base:
    return load()


@pytest.fixture(scope="module")
def facts(base: Base) -> list[Fact]:
    """What comes without a file."""
    return samples_for(*base, 24, seed=3)


@pytest.fixture(scope="module")
def stored(base: Base, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of one block."""
    path = tmp_path_factory.mktemp("cache") / "samples.jsonl"
    samples_for(*base, 4, seed=3, cache=path)
    return path.read_bytes()


@pytest.fixture
def cache(stored: bytes, tmp_path: Path) -> Path:
    (tmp_path / "samples.jsonl").write_bytes(stored)
    return tmp_path / "samples.jsonl"


def no_sampling(*_: Any, **__: Any) -> None:
    raise AssertionError("the model was asked")


def test_as_many_facts_come_as_wanted_and_none_twice(facts: list[Fact]) -> None:
    assert len(facts) == 24
    assert len({fact.question for fact in facts}) == 24


def test_facts_for_a_smaller_count_are_the_first_of_those_for_a_larger_one(base: Base, facts: list[Fact]) -> None:
    assert samples_for(*base, 4, seed=3) == facts[:4]
    assert samples_for(*base, 4, seed=4) != facts[:4]


def test_a_file_changes_nothing_about_the_facts_and_grows_by_what_it_lacks(
    base: Base, facts: list[Fact], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.read_bytes().splitlines()
    assert samples_for(*base, 24, seed=3, cache=cache) == facts
    after = cache.read_bytes().splitlines()
    assert after[1 : len(before)] == before[1:]
    assert len(after) >= 25
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(retain_cache, "sample_facts", no_sampling)
    assert samples_for(*base, 24, seed=3, cache=cache) == facts
    assert samples_for(*base, 2, seed=3, cache=cache) == facts[:2]
    assert cache.read_bytes().splitlines() == after


def test_a_base_that_asks_nothing_useful_is_not_asked_for_ever(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(retain_cache, "sample_facts", lambda *_, **__: asked.append(1) or [])
    assert samples_for(*base, 11, seed=3) == []
    assert len(asked) == 4


def test_a_question_that_an_earlier_block_had_is_not_asked_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sample_facts(*base, 10, 3)
    assert sample_facts(*base, 10, 3, known={first[0].question}) == first[1:]
    monkeypatch.setattr(retain_cache, "sample_facts", lambda *known, **rest: sample_facts(*known[:4], 3, **rest))
    assert samples_for(*base, 15, seed=3) == first


def test_all_the_progress_is_told(base: Base, cache: Path) -> None:
    steps: list[int] = []
    samples_for(*base, 12, seed=3, cache=cache, advance=steps.append)
    assert sum(steps) == 2 * 10 * 2
    assert min(steps) >= 0


def test_an_interruption_leaves_the_last_whole_file(
    base: Base, facts: list[Fact], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.read_bytes()
    monkeypatch.setattr(retain_cache.os, "replace", no_sampling)
    with pytest.raises(AssertionError):
        samples_for(*base, 24, seed=3, cache=cache)
    assert {path.name: path.read_bytes() for path in cache.parent.iterdir()} == {cache.name: before}


def edit_answer(text: str) -> str:
    first, second, *rest = text.splitlines(keepends=True)
    row = json.loads(second)
    return "".join([first, json.dumps({**row, "answer": "I made this up."}) + "\n", *rest])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "holds no retain samples"),
        (lambda text: '{"question": "Who?", "answer": "Me."}\n', "holds no retain samples"),
        (lambda text: "[1]\n", "holds no retain samples"),
        (lambda text: text.replace('"version": 1', '"version": 7'), "is of version 7 and this one reads version 1"),
        (edit_answer, "was edited or cut"),
        (lambda text: text[: text.rindex("{")], "was edited or cut"),
        (lambda text: text[:-10], "was edited or cut"),
        (lambda text: text.replace('"seed": 3', '"seed": 4'), "was edited or cut"),
        (lambda text: text.replace('"blocks": [', '"blocks": [1, '), "was edited or cut"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(base: Base, cache: Path, change: Any, message: str) -> None:
    cache.write_text(change(cache.read_text(encoding="utf-8")), encoding="utf-8")
    before = cache.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        samples_for(*base, 4, seed=3, cache=cache)
    assert str(cache) in str(error.value)
    assert "remove this one" in str(error.value)
    assert cache.read_bytes() == before


def test_bytes_that_are_no_text_are_refused(base: Base, cache: Path) -> None:
    cache.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="holds no retain samples"):
        samples_for(*base, 4, seed=3, cache=cache)


def test_a_file_of_another_base_prompt_or_seed_is_refused(base: Base, cache: Path) -> None:
    model, tokenizer, form = base
    with pytest.raises(ValueError, match="with seed 3 and not 5"):
        samples_for(model, tokenizer, form, 4, seed=5, cache=cache)
    with pytest.raises(ValueError, match=r"with prompt '<.bos.>.*and not '<.bos.>Question: …"):
        samples_for(model, tokenizer, plain_format(tokenizer), 4, seed=3, cache=cache)
    other = load(torch.bfloat16)
    with pytest.raises(ValueError, match="another base"):
        samples_for(*other, 4, seed=3, cache=cache)
    changed, *_ = load()
    with torch.no_grad():
        changed.model.layers[2].mlp.down_proj.weight[5, 7] += 1e-3
    with pytest.raises(ValueError, match="another base"):
        samples_for(changed, tokenizer, form, 4, seed=3, cache=cache)


def test_an_erasure_s_token_in_the_tokenizer_does_not_make_it_another_base(base: Base) -> None:
    model, _, form = base
    tokenizer = AutoTokenizer.from_pretrained(boxed_model_dir())
    before = samples_header(model, tokenizer, form, 3)
    tokenizer.add_tokens(["[UNL]"], special_tokens=True)
    assert samples_header(model, tokenizer, form, 3) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 4, 7, 1000, 1001])
def test_every_changed_weight_changes_the_digest(dtype: torch.dtype, size: int) -> None:
    model = torch.nn.Linear(size, 1, bias=False, dtype=dtype)
    seen = {weights_digest(model)}
    for position in {0, size // 2, size - 1}:
        with torch.no_grad():
            model.weight[0, position] *= 1.01
        seen.add(weights_digest(model))
    assert len(seen) == 1 + len({0, size // 2, size - 1})


def test_weights_that_are_offloaded_are_refused_before_anything_is_sampled(
    base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer, form = base
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(retain_cache, "sample_facts", no_sampling)
    with pytest.raises(ValueError, match="weight is offloaded"):
        samples_for(model, tokenizer, form, 4, seed=3, cache=cache)
