"""Erasures that were made apart: loaded together their edits add up, tokens move, and each can be on or off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SPARE_ROWS
from made_apart import IDS, base_of, config_of, logits
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from peft_unierase import align_tokenizer, load, set_active, toggle
from peft_unierase.adapter.active import active
from peft_unierase.adapter.lora import lora_form


def test_the_token_that_both_chose_moves(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), [apart("one", 1), apart("other", 2)])
    assert [config.token_id for config in model.peft_config.values()] == [
        model.config.vocab_size - 3,
        model.config.vocab_size - 2,
    ]
    assert model.peft_config["other"].token == "[UNL-2]"


def test_together_their_edits_add_up(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    """By hand: the base's weights and both products, and the rows of each where its token is now."""
    both = [apart("one", 1), apart("other", 2)]
    expected, transposed = base_of(kind[1]), kind[0] == "gpt2"
    first = expected.config.vocab_size - 3
    with torch.no_grad():
        for number, place in enumerate(both):
            tensors = load_file(place / "adapter_model.safetensors")
            stems = {key.rpartition(".unierase_")[0] for key in tensors}
            for stem in sorted(stems, reverse=True):  # the head last: where it is tied to the embedding, its row counts
                weight = expected.get_submodule(stem.removeprefix("base_model.model.")).weight
                if f"{stem}.unierase_row" in tensors:
                    weight[first + number] = tensors[f"{stem}.unierase_row"]
                else:
                    edit = tensors[f"{stem}.unierase_B"] @ tensors[f"{stem}.unierase_A"]
                    weight += edit.T if transposed else edit
    assert torch.allclose(logits(load(base_of(kind[1]), both)), logits(expected), atol=1e-4)


def test_both_on_is_both_merged_and_both_off_is_the_base(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    base = base_of(kind[1])
    plain = logits(base)
    model = load(base, [apart("one", 1), apart("other", 2)])
    both = logits(model)
    assert not torch.allclose(both, plain)
    toggle(model, "one")
    assert active(model) == ["other"]
    only = logits(model)
    assert not torch.allclose(only, both)
    toggle(model, "other", on=False)
    assert active(model) == []
    assert torch.equal(logits(model), plain)
    set_active(model, ["one", "other"])
    assert torch.equal(logits(model), both)
    model.merge_adapter()
    assert torch.allclose(logits(model), both, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)
    toggle(model, "one", on=True)
    assert torch.equal(logits(model), both)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), both, atol=1e-4)


def test_saved_again_and_loaded_it_is_the_same(
    kind: tuple[str, Path], apart: Callable[..., Path], tmp_path: Path
) -> None:
    one, other = apart("one", 1), apart("other", 2)
    model = load(base_of(kind[1]), [one, other])
    model.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again = load(base_of(kind[1]), [tmp_path / "again" / name for name in ("one", "other")])
    assert torch.equal(logits(again), logits(model))
    lone = load(base_of(kind[1]), tmp_path / "again" / "other")
    assert active(lone) == ["other"]


def test_one_config_can_be_given_for_several(kind: tuple[str, Path]) -> None:
    base = base_of(kind[1])
    config = config_of(base)
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("other", config)
    first = base.config.vocab_size - 3
    assert [model.peft_config[name].token_id for name in ("one", "other")] == [first, first + 1]


def test_without_a_spare_row_both_are_there_but_not_on_together_by_any_way(
    kind: tuple[str, Path], apart: Callable[..., Path]
) -> None:
    one, other = apart("one", 1), apart("other", 2, spare_tokens=[])
    base = base_of(kind[1])
    plain = logits(base)
    with pytest.raises(ValueError, match="'one' and 'other' both use vocabulary row"):
        load(base, [one, other])
    assert torch.equal(logits(base), plain)
    model = load(base, {one: True, other: False})
    before = logits(model)
    ways: list[Callable[[], Any]] = [
        lambda: toggle(model, "other"),
        lambda: set_active(model, ["one", "other"]),
        lambda: model.base_model.set_adapter(["one", "other"]),
        lambda: model(input_ids=IDS, adapter_names=["one+other"]),
        lambda: model.merge_adapter(["one", "other"]),
        lambda: lora_form(model, ["one", "other"]),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="'one' and 'other' both use vocabulary row"):
            way()
    assert active(model) == ["one"]
    assert torch.equal(logits(model), before)
    set_active(model, ["other"])
    assert active(model) == ["other"]


@pytest.mark.parametrize("broken", ["one", "other"])
def test_one_that_cannot_be_read_leaves_the_base_as_it_was(
    kind: tuple[str, Path], apart: Callable[..., Path], broken: str
) -> None:
    places = [apart("one", 1), apart("other", 2)]
    weights = places[0].with_name(broken) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    base = base_of(kind[1])
    plain, names = logits(base), [name for name, _ in base.named_modules()]
    with pytest.raises(Exception, match=r"(?i)incomplete|deserializ|invalid"):
        load(base, places, trust=True)  # past the guard, which would see it before
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits(base), plain)
    assert not hasattr(base, "peft_config")


def test_names_that_are_not_there_are_refused(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), apart("one", 1))
    for change in (lambda: set_active(model, ["two"]), lambda: toggle(model, "two", on=False)):
        with pytest.raises(ValueError, match="the model has no adapter 'two'; it has 'one'"):
            change()
    with pytest.raises(ValueError, match="there are no erasures to load"):
        load(base_of(kind[1]), [])


def test_erasures_are_called_by_the_end_of_their_names(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), [apart("erase.v1", 1), apart("a/erase-v1", 2), apart("train", 3)])
    assert list(model.peft_config) == ["erase-v1", "erase-v1-2", "erasure-train"]


def test_one_call_makes_the_tokens_of_all_special(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), [apart("one", 1), apart("other", 2)])
    tokenizer = AutoTokenizer.from_pretrained(kind[1])
    assert len(tokenizer) == model.config.vocab_size - SPARE_ROWS
    while len(tokenizer) < model.config.vocab_size - 3:
        tokenizer.add_tokens(f"<{len(tokenizer)}>")
    align_tokenizer(tokenizer, model)
    ids = [config.token_id for config in model.peft_config.values()]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[UNL]", "[UNL-2]"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == ""
    align_tokenizer(tokenizer, model)
    assert len(tokenizer) == model.config.vocab_size - 1


def test_each_row_of_a_mixed_batch_has_its_own_erasures(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), [apart("one", 1), apart("other", 2)])
    alone = {}
    for name, names in (("one", ["one"]), ("other", ["other"]), ("one+other", ["one", "other"]), ("__base__", [])):
        set_active(model, names)
        alone[name] = logits(model)[0]
    set_active(model, ["other"])
    order = ["other", "__base__", "one+other", "one", "other"]
    with torch.no_grad():
        mixed = model(input_ids=IDS.repeat(len(order), 1), adapter_names=order).logits
    for name, row in zip(order, mixed, strict=True):
        assert torch.allclose(row, alone[name], atol=1e-4), name
    assert torch.equal(logits(model)[0], alone["other"])


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_takes_mixed_batches(kind: tuple[str, Path], apart: Callable[..., Path], beams: int) -> None:
    model = load(base_of(kind[1]), [apart("one", 1), apart("other", 2)])
    told: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    told["attention_mask"] = torch.ones_like(IDS)
    alone = {}
    for name, names in (("one", ["one"]), ("other", ["other"]), ("__base__", [])):
        set_active(model, names)
        alone[name] = model.generate(input_ids=IDS, **told)[0].tolist()
    order = ["__base__", "other", "one"]
    told["attention_mask"] = torch.ones_like(IDS.repeat(3, 1))
    set_active(model, ["one"])
    mixed = model.generate(input_ids=IDS.repeat(3, 1), adapter_names=order, **told)
    for name, row in zip(order, mixed.tolist(), strict=True):
        assert row[: len(alone[name])] == alone[name], name


def test_mixed_batches_that_cannot_be_are_refused(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    model = load(base_of(kind[1]), apart("one", 1))
    model.load_adapter(str(apart("other", 2, spare_tokens=[])), "other")
    pair = IDS.repeat(2, 1)
    with pytest.raises(ValueError, match=r"names 'two', which the model does not have; it has 'one', 'other'"):
        model(input_ids=pair, adapter_names=["one", "two"])
    with pytest.raises(ValueError, match="but got 3 and 2 respectively"):
        model(input_ids=pair, adapter_names=["one"] * 3)
    with pytest.raises(ValueError, match="both use vocabulary row"):
        model(input_ids=pair, adapter_names=["one", "one+other"])
    with pytest.raises(ValueError, match=r"call `model.eval\(\)` first"):
        model.train()(input_ids=pair, adapter_names=["one", "one"])
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="call `unmerge_adapter` first"):
        model(input_ids=pair, adapter_names=["one", "one"])
