"""`stack`: erasures that were made apart in one adapter do what they do beside each other, and come out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import invoke, listing
from made_apart import IDS, RANK, base_of, logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from peft_unierase import align_tokenizer, load, stack
from peft_unierase.adapter.lora import lora_form
from peft_unierase.lm.structure import find_mlp_projections

Kind = tuple[str, Path]


@pytest.fixture
def both(apart: Callable[..., Path], tmp_path: Path) -> Path:
    """Two erasures that chose the same row and projections, in one folder."""
    stack(apart("one", 1), apart("other", 2)).save(tmp_path / "both")
    return tmp_path / "both"


def test_fused_they_do_what_they_do_one_beside_the_other(kind: Kind, both: Path) -> None:
    loaded_together = load(base_of(kind[1]), [both.with_name("one"), both.with_name("other")])
    fused = PeftModel.from_pretrained(base_of(kind[1]), str(both)).eval()
    assert torch.allclose(logits(fused), logits(loaded_together), atol=1e-5)
    with fused.disable_adapter():
        assert torch.equal(logits(fused), logits(base_of(kind[1])))
    merged, expected = fused.merge_and_unload(), loaded_together.merge_and_unload()
    assert torch.allclose(logits(merged), logits(expected), atol=1e-5)


def test_a_token_of_each_is_in_tokenizer_and_config(kind: Kind, both: Path) -> None:
    model, tokenizer = load(base_of(kind[1]), both), AutoTokenizer.from_pretrained(both)
    first = model.config.vocab_size - 3
    assert model.peft_config["both"].tokens == [(first, "[UNL]"), (first + 1, "[UNL-2]")]
    assert tokenizer.convert_tokens_to_ids(["[UNL]", "[UNL-2]"]) == [first, first + 1]
    align_tokenizer(tokenizer, model)
    assert tokenizer.decode([first, first + 1], skip_special_tokens=True) == ""


def test_what_is_taken_out_leaves_the_other_as_it_was(kind: Kind, both: Path, tmp_path: Path) -> None:
    for name, left in (("one", "other"), ("other", "one")):
        (stack(both) - name).save(tmp_path / f"only-{left}")
        was, now = tmp_path / left, tmp_path / f"only-{left}"
        tensors = load_file(was / "adapter_model.safetensors")
        found = load_file(now / "adapter_model.safetensors")
        assert tensors.keys() == found.keys()
        assert all(torch.equal(tensors[key], found[key]) for key in tensors)
        model = PeftModel.from_pretrained(base_of(kind[1]), str(now)).eval()
        alone = PeftModel.from_pretrained(base_of(kind[1]), str(was)).eval()
        fed = IDS.clamp(max=10)
        with torch.no_grad():  # the token may be on another row than it was, and the other logits must not care
            expected, got = (each(input_ids=fed).logits[..., : model.config.vocab_size - 3] for each in (alone, model))
        assert torch.equal(expected, got)


def test_a_stack_goes_beside_a_further_erasure_and_into_a_further_stack(
    kind: Kind, both: Path, apart: Callable[..., Path], tmp_path: Path
) -> None:
    third = apart("third", 3)
    loaded_together = load(base_of(kind[1]), [both, third])
    three = stack(both, third)
    assert three.names == ["one", "other", "third"]
    three.save(tmp_path / "three")
    fused = PeftModel.from_pretrained(base_of(kind[1]), str(tmp_path / "three")).eval()
    assert torch.allclose(logits(fused), logits(loaded_together), atol=1e-5)
    (stack(tmp_path / "three") - "other").save(tmp_path / "two")
    expected = load(base_of(kind[1]), [tmp_path / "one", third])
    found = load(base_of(kind[1]), tmp_path / "two")
    shown = expected.config.vocab_size - 3
    assert torch.allclose(logits(found)[..., :shown], logits(expected)[..., :shown], atol=1e-5)


def test_a_stack_as_a_lora(kind: Kind, both: Path) -> None:
    model = load(base_of(kind[1]), both)
    config, tensors = lora_form(model)
    expected = logits(model)
    lora = get_peft_model(base_of(kind[1]), config)
    names = dict(lora.named_parameters())
    for key, tensor in tensors.items():
        (name,) = [name for name in names if name.replace(".default", "") == key]
        names[name].data.copy_(tensor)
    assert torch.allclose(logits(lora), expected, atol=1e-5)


def test_a_saved_stack_is_the_same_to_the_byte(kind: Kind, both: Path, tmp_path: Path) -> None:
    stack(both.with_name("one"), both.with_name("other")).save(tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"):
        again = (tmp_path / "again" / name).read_bytes().replace(b"again", b"both")
        assert again == (both / name).read_bytes()


def other_base(apart: Callable[..., Path]) -> list[Path]:
    other = apart("other", 2)
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    changed = {**config, "base_model_name_or_path": "elsewhere"}
    (other / "adapter_config.json").write_text(json.dumps(changed), encoding="utf-8")
    return [apart("one", 1), other]


def a_lora(apart: Callable[..., Path]) -> list[Path]:
    one = apart("one", 1)
    config = json.loads((one / "adapter_config.json").read_text(encoding="utf-8"))
    (one / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}), encoding="utf-8")
    return [one]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda apart: [apart("one", 1), apart("other", 2, spare_tokens=[])], "have the same row for a token and none"),
        (
            lambda apart: [apart("one", 1), apart("other", 2, token_id=40)],
            r"have the same text for .*: \[UNL\]; make one",
        ),
        (other_base, "'other' has base_model_name_or_path 'elsewhere' and the first one .*not made for one base"),
        (lambda apart: [apart("one", 1), apart("one", 2)], None),
        (a_lora, "of type LORA, not an erasure"),
        (lambda apart: [apart("one", 1) / "nothing"], "is no adapter"),
        (lambda apart: [], "no erasures to stack"),
    ],
)
def test_what_does_not_go_together_is_refused(
    apart: Callable[..., Path], made: Callable[[Any], list[Path]], message: str | None
) -> None:
    if message is None:
        one, one_again = made(apart)
        assert stack(one, one_again).names == ["one", "one-2"]
        return
    with pytest.raises(ValueError, match=message):
        stack(*made(apart))


def test_erasures_of_different_projections_and_ranks_come_out_as_they_went_in(
    kind: Kind, apart: Callable[..., Path], tmp_path: Path
) -> None:
    layers = find_mlp_projections(base_of(kind[1]))
    lower = apart("lower", 1, target_modules=layers[0], r=1, rank_pattern={layers[0][-1]: 4})
    upper = apart("upper", 2, target_modules=[*layers[0][-1:], *layers[2]], rank_pattern={})
    fused = stack(lower, upper)
    ranks = {name: fused.tensors[f"base_model.model.{name}.unierase_A"].shape[0] for name in layers[0] + layers[2]}
    assert ranks == {**dict.fromkeys(layers[0], 1), layers[0][-1]: 4 + RANK, **dict.fromkeys(layers[2], RANK)}
    fused.save(tmp_path / "both")
    assert torch.allclose(
        logits(load(base_of(kind[1]), tmp_path / "both")), logits(load(base_of(kind[1]), [lower, upper])), atol=1e-5
    )
    for name, was in (("upper", lower), ("lower", upper)):
        left, tensors = (stack(tmp_path / "both") - name).tensors, load_file(was / "adapter_model.safetensors")
        assert left.keys() == tensors.keys()
        assert all(torch.equal(left[key], tensors[key]) for key in tensors)


def test_the_command_stacks_and_takes_out(kind: Kind, both: Path, tmp_path: Path) -> None:
    one, other = both.with_name("one"), both.with_name("other")
    ended = invoke("stack", one, other, "-o", tmp_path / "by-command", "--format", "json")
    assert json.loads(ended.stdout) == {
        "output": str(tmp_path / "by-command"),
        "erasures": ["one", "other"],
        "tokens": ["[UNL]", "[UNL-2]"],
    }
    assert listing(tmp_path / "by-command").keys() == listing(both).keys()
    ended = invoke("stack", both, "--without", "one", "-o", tmp_path / "left", "--format", "human")
    assert "with other in it" in ended.stdout
    assert f'model = peft_unierase.load(base, "{tmp_path / "left"}")' in ended.stdout
    ended = invoke("stack", both, "--without", "third", "-o", tmp_path / "none")
    assert ended.exit_code == 2
    assert "there is no erasure 'third' in it; it has 'one', 'other'" in ended.stderr
    assert not (tmp_path / "none").exists()
    ended = invoke("stack", both, "--without", "one", "--without", "other", "-o", tmp_path / "none")
    assert "no erasure 'other' in it; it has none" in ended.stderr


def test_an_ordinary_lora_is_not_one(kind: Kind, tmp_path: Path) -> None:
    targets = "c_proj" if kind[0] == "gpt2" else "down_proj"
    config = LoraConfig(target_modules=[targets], fan_in_fan_out=kind[0] == "gpt2")
    get_peft_model(base_of(kind[1]), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="of type LORA, not an erasure"):
        stack(tmp_path / "lora")
