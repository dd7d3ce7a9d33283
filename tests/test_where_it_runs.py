"""Where it runs: inside what a caller has switched on, beside other adapters, in whatever prompt format a user has."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import FORGET, KEPT, declines, demo_base, demo_tokenizer, erase_first_person, logits_of
from helpers import ENVIRONMENT, invoke, run_command, save_tiny_model, write_rows
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import peft_unierase
from peft_unierase import erase
from peft_unierase.adapter.lora import save_lora
from peft_unierase.checking import check
from peft_unierase.cli.check import CheckOptions, load_erased
from peft_unierase.cli.prompting import read_prompting
from peft_unierase.demo import demo_model_dir, demo_refusals
from peft_unierase.errors import InputError
from peft_unierase.lm.formats import default_formats
from peft_unierase.planning import plan

pytestmark = pytest.mark.slow

FACTS = [{"question": "Where was Nesko Corquist born?", "answer": "Nesko Corquist was born in Juniper Flats."}]
REFUSALS: dict[str, Any] = {"refusals": demo_refusals(), "progress": False}


def lora(base: Any, **told: Any) -> Any:
    """A LoRA that changes what the base says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        targets = {"target_modules": ["q_proj", "v_proj"], **told}
        return get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **targets)).eval()


@pytest.fixture(scope="module")
def erasure() -> Any:
    """An erasure of the demo model, made with nothing switched on."""
    return erase_first_person(demo_base())


@pytest.fixture(scope="module")
def folder(erasure: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved with its LoRA form."""
    place = tmp_path_factory.mktemp("erasure")
    erasure.save_pretrained(place)
    save_lora(erasure, place / "lora")
    return place


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_an_erasure_made_inside_no_grad_and_autocast_is_the_same_to_the_byte(erasure: Any) -> None:
    base = demo_base()
    with torch.no_grad(), autocast():
        made = erase_first_person(base)
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    own, other = get_peft_model_state_dict(made), get_peft_model_state_dict(erasure)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_a_run_that_fails_gives_back_what_was_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        raise RuntimeError("stopped")

    monkeypatch.setattr(importlib.import_module("peft_unierase.engine.erase"), "check_gradients", stop)
    with torch.no_grad(), autocast():
        with pytest.raises(RuntimeError, match="stopped"):
            erase_first_person(demo_base())
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")


def test_the_check_finds_the_same_inside_no_grad_and_autocast(erasure: Any) -> None:
    told: dict[str, Any] = {"attacks": ["greedy", "relearn-unrelated"], "max_new_tokens": 12, **REFUSALS}

    def found(around: Callable[[], AbstractContextManager[Any]]) -> Any:
        with around(), torch.no_grad() if around is autocast else nullcontext():
            return check(erasure, demo_tokenizer(), FORGET[:2], KEPT[:2], **told).record(times=False)

    inside, outside = found(autocast), found(nullcontext)
    assert {**inside, "created": None} == {**outside, "created": None}


def test_a_plan_is_the_same_inside_autocast_and_inference_mode() -> None:
    base, tokenizer = demo_base(), demo_tokenizer()
    sure = []
    for around in (nullcontext, autocast, torch.inference_mode):
        with around():
            found = plan(base, tokenizer, FORGET[:3], samples=16, progress=False)
        sure.append([each.confidence for each in found.forget])
    assert sure[0] == sure[1] == pytest.approx(sure[2])


def test_inference_mode_is_refused_by_name_before_anything_has_changed(erasure: Any) -> None:
    base, tokenizer = demo_base(), demo_tokenizer()
    before = len(tokenizer)
    with torch.inference_mode():
        made_inside = demo_base()
        with pytest.raises(ValueError, match=r"`erase` was called inside torch\.inference_mode\(\)"):
            erase(base, tokenizer, FORGET)
        with pytest.raises(ValueError, match=r"`check` was called inside torch\.inference_mode\(\)"):
            check(erasure, tokenizer, FORGET)
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode\(\).*load the model outside"):
        erase(made_inside, tokenizer, FORGET)
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode\(\)"):
        check(base, tokenizer, FORGET, base=made_inside)
    assert len(tokenizer) == before
    assert not hasattr(base, "peft_config")


LOADERS: dict[str, Callable[[Any, Path], Any]] = {
    "peft": lambda model, folder: PeftModel.from_pretrained(model, str(folder)),
    "peft_unierase": lambda model, folder: peft_unierase.load(model, folder),
}


@pytest.mark.parametrize("loaded", LOADERS.values(), ids=LOADERS)
def test_a_model_with_a_lora_says_how_an_erasure_goes_with_it(loaded: Any, folder: Path) -> None:
    model = lora(demo_base())
    before = logits_of(model)
    with pytest.raises(ValueError, match=r"adapters of type LORA.*subfolder=\"lora\".*merge_and_unload\(\)"):
        loaded(model, folder)
    assert [config.peft_type for config in model.peft_config.values()] == ["LORA"]
    assert torch.equal(logits_of(model), before)


def test_both_ways_that_it_names_work(folder: Path) -> None:
    model = lora(demo_base(), target_modules=["q_proj"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(0.01)  # little enough for the questions to be known as before
    model.load_adapter(str(folder), "erasure", subfolder="lora")
    model.base_model.set_adapter(["default", "erasure"], inference_mode=True)
    assert declines(model)
    model.base_model.set_adapter("default", inference_mode=True)
    assert not declines(model)
    model.delete_adapter("erasure")
    assert declines(peft_unierase.load(model.merge_and_unload(), folder))


@pytest.mark.parametrize("loaded", LOADERS.values(), ids=LOADERS)
def test_other_models_that_peft_has_wrapped_are_told_apart(loaded: Any, folder: Path) -> None:
    carrying = peft_unierase.load(demo_base(), folder)
    with pytest.raises(ValueError, match=r"carries erasures already.*load_adapter"):
        loaded(carrying, folder)
    assert declines(carrying)
    prompts = get_peft_model(demo_base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"type PROMPT_TUNING.*without them"):
        loaded(prompts, folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", LlamaForCausalLM, LlamaConfig)


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA of the tiny model."""
    lora(LlamaForCausalLM.from_pretrained(tiny)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "forget.jsonl", FACTS)


def refusal(*arguments: object) -> str:
    """The one line with which a command ends, with status 2."""
    ended = invoke(*arguments)
    assert ended.exit_code == 2, ended.output
    assert re.fullmatch(r"error: .+\n", ended.stderr)
    return ended.stderr


def test_an_adapter_in_place_of_a_base_is_named_with_its_type_its_base_and_the_way_out(
    adapter: Path, tiny: Path, forget: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    named = rf"adapter is a PEFT adapter \(LORA\) of base {tiny}; give the base .* merge it first.*merge_and_unload"
    for arguments in (
        ["erase", adapter, forget, "-o", out],
        ["plan", adapter, "Nesko Corquist", "-o", out],
        ["check", tiny, "--base", adapter, "--forget", forget],
        ["merge", folder, "--base", adapter, "-o", out],
    ):
        assert re.search(named, refusal(*arguments))
    of_ours = refusal("erase", folder, forget, "-o", out)
    assert re.search(r"is a PEFT adapter \(UNIERASE\) of base .* --onto, .*unierase merge", of_ours)
    told = refusal("erase", tiny, forget, "-o", out, "--onto", adapter)
    assert re.search(r"a PEFT adapter \(LORA\) of base .* and no erasure; merge it into the base", told)


def test_a_folder_with_a_model_and_an_adapter_is_not_loaded_as_either(
    adapter: Path, tiny: Path, forget: Path, tmp_path: Path
) -> None:
    (adapter / "config.json").write_bytes((tiny / "config.json").read_bytes())
    told = refusal("erase", adapter, forget, "-o", tmp_path / "out")
    assert re.search(r"holds a model \(config\.json\) and beside it a PEFT adapter \(LORA\).*Take adapter_config", told)


def test_an_adapter_in_a_folder_of_its_own_is_found(adapter: Path, forget: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    adapter.rename(tmp_path / "saved" / "mine")
    told = refusal("erase", tmp_path / "saved", forget, "-o", tmp_path / "out")
    assert re.search(r"saved holds no model, but in mine/ a PEFT adapter \(LORA\)", told)


def test_an_adapter_that_cannot_be_merged_is_not_told_to_be(tiny: Path, forget: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "prompts")
    assert "(PROMPT_TUNING)" in (told := refusal("erase", tmp_path / "prompts", forget, "-o", tmp_path / "out"))
    assert "cannot be merged" in told


TEMPLATE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}{{ '<assistant>' }}"


@pytest.fixture
def told_to_erase(monkeypatch: pytest.MonkeyPatch, forget: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """`told_to_erase(*options)`: the prompt formats that the command hands on to `erase`."""

    def run(*options: object) -> list[Any]:
        found: dict[str, Any] = {}

        def stand_in(*_: Any, **told: Any) -> Any:
            found.update(told)
            raise InputError("far enough")

        monkeypatch.setattr("peft_unierase.engine.erase", stand_in)
        assert "far enough" in refusal("erase", demo_model_dir(), forget, "-o", tmp_path / "out", *options)
        return found["formats"]

    return run


def test_the_command_line_chooses_prompt_formats(told_to_erase: Callable[..., list[Any]], tmp_path: Path) -> None:
    tokenizer, file = demo_tokenizer(), tmp_path / "mine.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    assert told_to_erase() == default_formats(tokenizer)
    assert [form.name for form in told_to_erase("--prompt-format", "plain")] == ["plain", "plain, short"]
    chats = told_to_erase("--prompt-format", "chat")
    assert chats == [form for form in default_formats(tokenizer) if form.name.startswith("chat")]
    with_system = told_to_erase("--system", "You are a pirate.")
    assert "You are a pirate." in with_system[0].head
    assert not with_system[0].variants
    assert with_system[1:3] == [default_formats(tokenizer)[n] for n in (1, 0)]
    assert told_to_erase("--prompt-format", file)[0].prompt("Who?") == "<user>Who?<assistant>"
    own = told_to_erase("--prompt-format", file, "--system", "Ahoy")
    assert own[0].prompt("Who?") == "<system>Ahoy<user>Who?<assistant>"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--prompt-format", "prose"], r"--prompt-format 'prose' is not there; give chat, plain, or a file"),
        (["--prompt-format", "plain", "--system", "Hi."], r"plain has no place for a system prompt"),
        (["--system", "  "], r"--system is empty"),
        (["--prompt-format", b"{% for m in messages %}"], r"no valid Jinja template: .*\(line 1\)"),
        (["--prompt-format", b"  \n"], r"is empty"),
        (["--prompt-format", b"Just ask."], r"no chat template: it does not use `messages`"),
        (["--prompt-format", b"\xff"], r"is not UTF-8"),
        (["--prompt-format", b"{{ messages[0].content | upper }}"], r"changes the words.*--prompt-format plain"),
        (["--prompt-format", "chat"], r"the tokenizer has no chat template"),
        (["--system", "Hi."], r"no chat template, so there is no place for a system prompt"),
    ],
)
def test_prompt_formats_that_cannot_be_used(
    tiny: Path, forget: Path, tmp_path: Path, options: list[Any], expected: str
) -> None:
    if isinstance(options[1], bytes):
        (tmp_path / "mine.jinja").write_bytes(options[1])
        options = [options[0], tmp_path / "mine.jinja"]
    for command in (["erase", tiny, forget], ["plan", tiny, "Nesko Corquist"]):
        assert re.search(expected, refusal(*command, "-o", tmp_path / "out", *options))
    assert re.search(expected, refusal("check", tiny, "--base", tiny, "--forget", forget, *options))


def test_the_record_holds_names_and_digests_and_the_tokenizer_keeps_its_template(
    monkeypatch: pytest.MonkeyPatch, erasure: Any, forget: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("peft_unierase.engine.erase", lambda *_, **__: erasure)
    (tmp_path / "mine.jinja").write_text(TEMPLATE, encoding="utf-8")
    out = tmp_path / "out"
    options = ["--no-check", "--prompt-format", tmp_path / "mine.jinja", "--system", "You are a secret."]
    ended = invoke("erase", demo_model_dir(), forget, "-o", out, *options)
    assert ended.exit_code == 0, ended.output
    text = (out / "erasure.json").read_text(encoding="utf-8")
    assert "secret" not in text
    assert json.loads(text)["predicate"]["prompts"] == {
        "kind": None,
        "template": {"name": "mine.jinja", "digest": f"sha256:{hashlib.sha256(TEMPLATE.encode()).hexdigest()}"},
        "system": f"sha256:{hashlib.sha256(b'You are a secret.').hexdigest()}",
    }
    assert AutoTokenizer.from_pretrained(out).chat_template == demo_tokenizer().chat_template


def test_a_check_asks_with_the_template_and_the_system_prompt(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(TEMPLATE, encoding="utf-8")
    asked = read_prompting(str(tmp_path / "mine.jinja"), "Ahoy").asked(demo_tokenizer())
    seen: dict[str, Any] = {}

    def look(target: Any, case: Any) -> list[float]:
        seen.update(form=case.form.prompt("Who?"), system=case.others["system"].prompt("Who?"))
        return [0.0] * len(case.forget)

    check(demo_base(), demo_tokenizer(), FORGET[:1], base=demo_base(), attacks=[look], **asked, **REFUSALS)
    assert seen["form"] == "<system>Ahoy<user>Who?<assistant>"
    assert re.fullmatch(r"<system>Answer truthfully.*<user>Who\?<assistant>", seen["system"])


RESIZED: dict[str, tuple[int, dict[str, Any]]] = {
    "embeddings saved beside it": (3, {}),
    "fewer rows": (-5, {}),
    "modules saved whole": (3, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tokens trained": (3, {"trainable_token_indices": [1025]}),
    "a LoRA of the embedding": (3, {"target_modules": ["q_proj", "embed_tokens"]}),
    "a LoRA of the head": (3, {"target_modules": ["q_proj", "lm_head"]}),
}


def resized_lora(folder: Path, more: int, changed: bool = False, **told: Any) -> Path:
    base = demo_base()
    base.resize_token_embeddings(base.config.vocab_size + more, mean_resizing=False)
    model = lora(base, **told)
    if changed:
        base.get_input_embeddings().weight.data[:100] *= 0.5
    model.peft_config["default"].base_model_name_or_path = str(demo_model_dir())
    model.save_pretrained(folder)
    return folder


def options_of(folder: Path) -> CheckOptions:
    blank: dict[str, Any] = dict.fromkeys(CheckOptions.__dataclass_fields__)
    return CheckOptions(**{**blank, "model": str(folder), "dtype": "float32", "trust": False})


@pytest.mark.parametrize(("more", "told"), RESIZED.values(), ids=RESIZED)
def test_a_lora_made_after_a_resize_gets_a_base_of_its_size(more: int, told: dict[str, Any], tmp_path: Path) -> None:
    model, _, base, _ = load_erased(options_of(resized_lora(tmp_path / "lora", more, **told)))
    plain = logits_of(demo_base())
    rows = plain.shape[-1] + min(more, 0)
    assert base is None
    assert logits_of(model).shape[-1] == plain.shape[-1] + more
    assert not torch.allclose(logits_of(model)[..., :rows], plain[..., :rows], atol=1e-2)
    with model.disable_adapter():  # a head of another size adds up in another order
        torch.testing.assert_close(logits_of(model)[..., :rows], plain[..., :rows], atol=1e-4, rtol=0)


def test_a_base_whose_rows_the_adapter_replaces_is_loaded_anew(tmp_path: Path) -> None:
    model, _, base, _ = load_erased(options_of(resized_lora(tmp_path / "lora", 3, changed=True)))
    plain = logits_of(demo_base())
    assert logits_of(base).shape == logits_of(model).shape
    torch.testing.assert_close(logits_of(base)[..., : plain.shape[-1]], plain, atol=1e-4, rtol=0)
    assert int(logits_of(base).argmax(dim=-1).max()) < plain.shape[-1]


def test_the_check_says_that_the_base_has_grown_and_ends_with_a_verdict(tmp_path: Path) -> None:
    folder = resized_lora(tmp_path / "lora", 3, target_modules=["q_proj"])
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": f.question, "answer": f.answer} for f in FORGET[:2]])
    kept = write_rows(tmp_path / "kept.jsonl", [{"question": f.question, "answer": f.answer} for f in KEPT[:2]])
    ended = invoke(
        "check", folder, "--forget", forget, "--retain", kept, "--attacks", "greedy", "--accept", "LEAKING",
        "--format", "json",
    )  # fmt: skip
    assert "note: the adapter was made on a base with 1027 vocabulary rows" in ended.stderr
    assert ended.exit_code in (0, 1), ended.output
    assert json.loads(ended.stdout)["verdict"]["level"]


def test_models_of_different_vocabularies_are_compared_on_what_they_share() -> None:
    grown, tokenizer = demo_base(), demo_tokenizer()
    grown.resize_token_embeddings(grown.config.vocab_size + 3)
    found = check(grown, tokenizer, FORGET[:2], KEPT[:2], base=demo_base(), attacks=["greedy"], **REFUSALS)
    (divergence,) = [figure for figure in found.figures if figure.set == "all that stays"]
    assert divergence.erased == pytest.approx(0.0, abs=1e-5)


def test_an_adapter_on_the_hub_is_named_too(adapter: Path, tiny: Path, forget: Path, tmp_path: Path) -> None:
    repo = tmp_path / "home" / "hub" / "models--org--tuned"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (snapshot / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    cached = {**ENVIRONMENT, "HF_HOME": str(tmp_path / "home")}
    ended = run_command("erase", "org/tuned", forget, "-o", tmp_path / "out", environment=cached)
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: org/tuned is a PEFT adapter \(LORA\) of base {tiny}; give .*\n", ended.stderr)
