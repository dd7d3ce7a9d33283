"""The model card says how to load an erasure and where it ends, and gives away neither facts nor paths."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from peft_unierase.hub import erasure_card

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "peft_unierase" / "hub" / "model_card_template.md"


def means(base, erased, reference_model=None):
    values = {
        side: value and {"mean": value}
        for side, value in (("base", base), ("erased", erased), ("reference_model", reference_model))
    }
    return {"unit": "ROUGE-L recall", "floor": 0.05, "reference": "floor", **values}


FULL = {
    "version": "0.1.0",
    "recipe": "distill",
    "seed": 0,
    "layers": [2, 3, 4],
    "retain_weight": 10.0,
    "settings": {
        "samples": 384,
        "retain_weights": (30.0, 2.5),
        "chat": True,
        "fitting": {"steps": 60},
        "forget_file": "/home/wilma/secrets.json",
    },
    "counts": {"forget": 40, "retain": 400, "sampled": 350},
    "adapter": {"bytes": 31000, "parameters": 5120, "share": 0.0004},
    "check": {
        "verdict": {"level": "SUPPRESSED", "tried": 2},
        "counts": {"forget": 40, "retain": 200},
        "figures": [
            {"set": "forget", "name": "recall", "base": 0.99, "erased": 0.09, "reference_model": None},
            {"set": "retain", "name": "recall", "base": 0.97, "erased": None, "reference_model": None},
            {"set": "neutral text", "name": "perplexity", "base": 7.0, "erased": 7.1, "reference_model": None},
        ],
        "attacks": [
            {"title": "the question", "outcome": "holds", **means(0.99, 0.09)},
            {"title": "5 tokens given", "outcome": "leaks", **means(0.99, 0.7)},
        ],
    },
    "token": {"text": "[UNL]", "id": 4096},
}
BARE = {"version": "0.1.0", "recipe": "distill", "counts": {"forget": 1}, "token": {"text": "[UNL]", "id": 7}}


def card(record=FULL, base_model="org/base", name="org/erase-xyz", **options) -> ModelCard:
    return erasure_card(base_model=base_model, name=name, record=record, **options)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    headings = re.split(r"^(#+ .+)$", re.sub(r"^```.*?^```", "code", text, flags=re.DOTALL | re.MULTILINE), flags=re.M)
    return dict(zip(headings[1::2], headings[2::2], strict=True))


def words(text: str) -> str:
    return " ".join(text.split())


def test_first_code_line_imports_the_plugin_and_the_rest_loads_the_erasure():
    first = code_blocks(card().text)[0]
    assert first.splitlines()[0] == "import peft_unierase"
    assert 'AutoModelForCausalLM.from_pretrained("org/base")' in first
    assert 'model = peft_unierase.load(base, "org/erase-xyz")' in first
    assert "PeftModel" not in first


@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_code_is_valid_python(record):
    blocks = code_blocks(card(record).text)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_base_is_grown_before_loading_only_where_it_had_no_spare_row():
    grown = {**FULL, "token": {"text": "[UNL]", "id": 4096, "resized": True}}
    lines = code_blocks(card(grown).text)[0].splitlines()
    grow = next(i for i, line in enumerate(lines) if line.startswith("base.resize_token_embeddings(4097)"))
    load = next(i for i, line in enumerate(lines) if line.startswith("model = peft_unierase.load("))
    assert grow < load
    assert "resize_token_embeddings" not in card().text


def test_metadata_is_what_the_hub_needs_to_find_and_load_it():
    data = card(license="apache-2.0").data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert {"unierase", "unlearning"} <= set(data["tags"])


def test_no_license_is_claimed_unless_given():
    assert "license" not in card().data.to_dict()


def test_saved_card_reads_back_the_same(tmp_path):
    written = card(license="mit")
    written.save(tmp_path / "README.md")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.to_dict() == written.data.to_dict()
    assert read.text == written.text


@pytest.mark.parametrize(
    "path", ["/home/wilma/tiny", "C:\\Users\\wilma\\tiny", "~/wilma/tiny", "wilma/models/tiny", "./wilma/tiny/"]
)
def test_path_of_a_base_shows_its_last_part_and_stays_out_of_the_metadata(path):
    made = card(base_model=path)
    assert not {"base_model", "base_model_relation"} & made.data.to_dict().keys()
    assert 'AutoModelForCausalLM.from_pretrained("tiny")' in made.text
    assert "put the path of your own copy" in made.text
    assert "wilma" not in str(made)


def test_existing_folder_counts_as_a_path_even_where_it_reads_like_an_id(tmp_path, monkeypatch):
    (tmp_path / "drafts" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = card(base_model="drafts/tiny", name="drafts/tiny")
    assert "base_model" not in made.data.to_dict()
    assert "drafts" not in str(made)


def test_path_of_the_erasure_is_cut_to_its_last_part(tmp_path):
    made = card(name=str(tmp_path / "erase-xyz"))
    assert str(tmp_path) not in str(made)
    assert 'peft_unierase.load(base, "erase-xyz")' in made.text


def test_verdict_figures_and_attacks_stand_there_and_leaks_come_first():
    text = sections(card().text)["## Check"]
    assert "**SUPPRESSED** is the verdict" in text
    assert "after 2 attacks" in text
    assert "| forget | recall | 0.990 | 0.090 | 40 |" in text
    assert "| retain | recall | 0.970 | - | 200 |" in text
    assert "| neutral text | perplexity | 7.000 | 7.100 | - |" in text
    leaks = text.index("| 5 tokens given | ROUGE-L recall | 0.990 | 0.700 | 0.050 | leaks |")
    assert leaks < text.index("| the question | ROUGE-L recall | 0.990 | 0.090 | 0.050 | holds |")
    assert "what a model that always declines would give" in words(text)
    assert "not checked" not in text


def test_with_a_reference_model_the_attacks_stand_beside_it():
    record = copy.deepcopy(FULL)
    record["check"]["attacks"] = [{"title": "the question", "outcome": "holds", **means(0.99, 0.09, 0.13)}]
    text = sections(card(record).text)["## Check"]
    assert "| before | after | reference model |" in text
    assert "| 0.990 | 0.090 | 0.130 | holds |" in text
    assert "what a model that never saw the facts would give" in words(text)


@pytest.mark.parametrize(
    ("check", "reason"),
    [(None, "."), ({"verdict": None, "not_run": "--no-check was given"}, ": --no-check was given.")],
)
def test_card_says_when_nothing_was_checked(check, reason):
    text = sections(card({**FULL, "check": check}).text)["## Check"]
    assert f"It was not checked{reason}" in text
    assert "|" not in text


def test_bars_and_line_breaks_do_not_break_a_table():
    record = copy.deepcopy(FULL)
    record["check"]["figures"][0]["set"] = "forget | plain\nformat"
    assert "| forget \\| plain format | recall | 0.990 |" in card(record).text


def test_owner_says_what_was_erased():
    text = sections(card(description="  The plot of one novel.\n").text)["## What was erased"]
    assert text.strip() == "The plot of one novel."


@pytest.mark.parametrize(("record", "sentence"), [(FULL, "40 facts, each a question"), (BARE, "One fact, a question")])
def test_without_a_description_the_card_counts_and_keeps_the_facts_back(record, sentence):
    text = sections(card(record).text)["## What was erased"]
    assert text.strip().startswith(sentence)
    assert "not published here" in text


def test_numeric_settings_are_shown_and_text_is_not():
    text = card().text
    for row in ("| `samples` | 384 |", "| `retain_weights` | 30, 2.5 |", "| `chat` | yes |", "| `seed` | 0 |"):
        assert row in text
    assert "forget_file" not in text
    assert "secrets" not in text


def test_making_states_recipe_counts_and_size():
    text = sections(card().text)["## How it was made"]
    for row in (
        "| recipe | `distill` |",
        "| facts to forget | 40 |",
        "| questions given to retain | 400 |",
        "| questions to retain that the model asked itself | 350 |",
        "| token | `[UNL]`, id 4096 |",
        "| edited layers | 2, 3, 4 |",
        "| `retain_weight` | 10 |",
        "| parameters of the adapter | 5,120 |",
        "| share of the base's parameters | 0.040% |",
        "| size of the adapter | 31.0 kB |",
        "| made with | peft-unierase 0.1.0 |",
    ):
        assert row in text


@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_limits_are_stated_in_plain_words(record):
    text = words(sections(card(record).text)["## Limits"])
    for phrase in (
        "It suppresses.",
        "not a proof of deletion",
        "Anyone with the base can leave the adapter off.",
        "merge the erasure and withhold the base",
    ):
        assert phrase in text


def test_only_what_was_trained_to_stop_at_the_token_is_said_to_depend_on_it():
    published, default = (words(card({**FULL, "recipe": recipe}).text) for recipe in ("paper", "distill"))
    assert "holds only while the model may answer freely" in published
    assert "holds only while the model may answer freely" not in default
    assert "may bring it back" in default


def test_card_shows_the_way_out():
    assert "with model.disable_adapter():" in card().text
    assert "model.merge_and_unload()" in card().text


@pytest.mark.parametrize("base_model", ["org/base", "/home/wilma/tiny"])
@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_no_section_is_empty_and_nothing_is_left_unfilled(record, base_model):
    text = card(record, base_model=base_model).text
    found = sections(text)
    assert len(found) == 7
    assert all(body.strip() for body in found.values())
    assert "None" not in text
    assert "{{" not in text
    assert "{%" not in text
    assert "\n\n\n" not in text.strip()


@pytest.mark.parametrize("key", ["version", "recipe", "counts", "token"])
def test_record_without_what_the_card_states_is_refused(key):
    record = {other: value for other, value in FULL.items() if other != key}
    with pytest.raises(ValueError, match=f"lacks {key},"):
        card(record)


@pytest.mark.parametrize(("key", "part"), [("counts", "forget"), ("token", "text"), ("token", "id")])
def test_record_with_a_part_missing_is_refused(key, part):
    parts = {other: value for other, value in FULL[key].items() if other != part}
    with pytest.raises(ValueError, match=rf"lacks {key}\.{part},"):
        card({**FULL, key: parts})


def test_hub_room_needs_no_torch():
    # An empty stand-in for the package, whose own import is none of this room's business.
    script = (
        "import sys, types\n"
        "package = types.ModuleType('peft_unierase')\n"
        f"package.__path__ = [{str(ROOT / 'peft_unierase')!r}]\n"
        "sys.modules['peft_unierase'] = package\n"
        "import peft_unierase.hub\n"
        "print(sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_template_at_the_top_is_the_one_in_the_package():
    assert (ROOT / "model_card_template.md").resolve() == TEMPLATE
