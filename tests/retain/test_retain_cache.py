"""Retain samples in a file: the same facts with it and without, and no file is taken for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer

from peft_unierase.data.facts import Fact
from peft_unierase.lm.formats import PromptFormat, chat_format, plain_format
from peft_unierase.retain import cache as retain_cache
from peft_unierase.retain.cache import samples_for, samples_header, weights_digest
from peft_unierase.retain.samples import SAMPLE_STEPS, sample_facts
from peft_unierase.storage import whole

Base = tuple[Any, Any, PromptFormat]


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retain_cache, "BLOCK", 10)
        yield


def load(dtype: torch.dtype = torch.float32) -> Base:
    tokenizer = demo_tokenizer()
    model = demo_base(dtype=dtype)
    return model, tokenizer, chat_format(tokenizer)


@pytest.fixture(scope="module")
def base() -> Base:
    return load()


@pytest.fixture(scope="module")
def facts(base: Base) -> list[Fact]:
    """What comes without a file."""
    return samples_for(*base, 24, seed=3)


@pytest.fixture(scope="module")
def stored(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """Name and bytes of a file of one block."""
    folder = tmp_path_factory.mktemp("cache")
    samples_for(*base, 4, seed=3, folder=folder)
    (path,) = folder.iterdir()
    return path.name, path.read_bytes()


@pytest.fixture
def cache(stored: tuple[str, bytes], tmp_path: Path) -> Path:
    (tmp_path / stored[0]).write_bytes(stored[1])
    return tmp_path / stored[0]


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
    assert samples_for(*base, 24, seed=3, folder=cache.parent) == facts
    after = cache.read_bytes().splitlines()
    assert after[1 : len(before)] == before[1:]
    assert len(after) >= 25
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(retain_cache, "sample_facts", no_sampling)
    assert samples_for(*base, 24, seed=3, folder=cache.parent) == facts
    assert samples_for(*base, 2, seed=3, folder=cache.parent) == facts[:2]
    assert cache.read_bytes().splitlines() == after


def test_what_is_enough_is_not_added_to(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    nine = [Fact(f"Question {number}?", "Answer.") for number in range(9)]
    monkeypatch.setattr(retain_cache, "sample_facts", lambda *_, **__: list(nine))
    assert samples_for(*base, 10, seed=3) == nine


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
    samples_for(*base, 12, seed=3, folder=cache.parent, advance=steps.append)
    assert sum(steps) == SAMPLE_STEPS * 10 * 2
    assert min(steps) >= 0


def test_an_interruption_leaves_the_last_whole_file(
    base: Base, facts: list[Fact], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.read_bytes()
    monkeypatch.setattr(whole.os, "replace", no_sampling)
    with pytest.raises(AssertionError):
        samples_for(*base, 24, seed=3, folder=cache.parent)
    assert {path.name: path.read_bytes() for path in cache.parent.iterdir()} == {cache.name: before}


def test_a_folder_that_cannot_be_written_to_costs_the_file_alone(base: Base, facts: list[Fact], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder", encoding="utf-8")
    told: list[str] = []
    assert samples_for(*base, 24, seed=3, folder=tmp_path / "taken", warn=told.append) == facts
    (line,) = told
    assert "not kept" in line


def edit_answer(text: str) -> str:
    first, second, *rest = text.splitlines(keepends=True)
    row = json.loads(second)
    return "".join([first, json.dumps({**row, "answer": "I made this up."}) + "\n", *rest])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: '{"question": "Who?", "answer": "Me."}\n',
        lambda text: "[1]\n",
        lambda text: text.replace('"version": 2', '"version": 7'),
        edit_answer,
        lambda text: text[: text.rindex("{")],
        lambda text: text[:-10],
        lambda text: text.replace('"seed": 3', '"seed": 4'),
        lambda text: text.replace('"blocks": [', '"blocks": [1, '),
        lambda text: "\udcff\udcfe" + text,
    ],
)
def test_a_damaged_file_is_named_and_made_anew(base: Base, stored: Any, cache: Path, change: Any) -> None:
    cache.write_text(change(cache.read_text(encoding="utf-8")), encoding="utf-8", errors="surrogateescape")
    told: list[str] = []
    samples_for(*base, 4, seed=3, folder=cache.parent, warn=told.append)
    (line,) = told
    assert str(cache) in line
    assert "edited or cut" in line
    assert cache.read_bytes() == stored[1]


def test_bases_prompts_and_seeds_have_files_of_their_own(base: Base, cache: Path) -> None:
    model, tokenizer, form = base
    changed, *_ = load()
    with torch.no_grad():
        changed.model.layers[2].mlp.down_proj.weight[5, 7] += 1e-3
    before = cache.read_bytes()
    told: list[str] = []
    for number, (own, prompt, seed) in enumerate(
        [
            (model, form, 5),
            (model, plain_format(tokenizer), 3),
            (load(torch.bfloat16)[0], form, 3),
            (changed, form, 3),
        ],
        start=2,
    ):
        samples_for(own, tokenizer, prompt, 4, seed=seed, folder=cache.parent, warn=told.append)
        assert len(list(cache.parent.iterdir())) == number
    assert cache.read_bytes() == before
    assert told == []


def test_an_erasure_s_token_in_the_tokenizer_does_not_make_it_another_base(base: Base) -> None:
    model, _, form = base
    tokenizer = demo_tokenizer()
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
        samples_for(model, tokenizer, form, 4, seed=3, folder=cache.parent)
