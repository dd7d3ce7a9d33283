"""`unierase demo` and the Space: what they load, and what the page then knows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo_erasure import FORGET
from helpers import invoke, write_rows
from page_of import FACTS

from peft_unierase.adapter.active import active
from peft_unierase.cli import demo as command
from peft_unierase.cli.demo import DemoOptions, prepare, read_sets
from peft_unierase.cli.sets import Reading
from peft_unierase.demo import demo_model_dir

pytestmark = pytest.mark.slow

SPACE = Path(__file__).resolve().parents[2] / "examples" / "space"


def options(erasure: Path, **told: Any) -> DemoOptions:
    return DemoOptions(adapters=[str(erasure)], model=str(demo_model_dir()), reading=Reading(), **told)


def test_the_demo_model_knows_which_of_its_facts_are_gone(erasure: Path, tmp_path: Path) -> None:
    page = prepare(options(erasure), [], [], tmp_path)
    gone = [fact.question for fact in page.models.forget]
    assert gone[: len(FORGET)] == [fact.question for fact in FORGET]
    assert len(page.models.forget) + len(page.models.kept) == len(FACTS)
    assert page.name == "the demo model"
    assert page.folders == {"erasure": str(erasure)}
    assert active(page.models.model) == ["erasure"]
    assert page.live is not None
    mine = page.live.load()
    assert mine.model is not page.models.model
    assert mine.names == page.models.names


def test_facts_that_are_given_are_those_of_the_page(erasure: Path, tmp_path: Path) -> None:
    forget = write_rows(tmp_path / "f.jsonl", [{"question": FORGET[0].question, "answer": FORGET[0].answer}])
    given = options(erasure, forget=str(forget), retain=str(write_rows(tmp_path / "k.jsonl", [vars(FACTS[-1])])))
    page = prepare(given, *read_sets(given), tmp_path)
    assert [fact.question for fact in page.models.forget] == [FORGET[0].question]
    assert [fact.question for fact in page.models.kept] == [FACTS[-1].question]


def test_a_missing_set_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "prepare", lambda *_: pytest.fail("it was loaded"))
    ended = invoke("demo", "erase-xyz", "--forget", tmp_path / "no.jsonl")
    assert ended.exit_code == 2
    assert "no.jsonl" in ended.stderr


def test_without_an_erasure_two_people_are_erased_and_saved_first(
    erasure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_unierase import align_tokenizer, load

    seen: list[Any] = []

    def erase(model: Any, tokenizer: Any, forget: Any, retain: Any, **told: Any) -> Any:
        seen.append({fact.subject for fact in forget})
        erased = load(model, erasure, names=["default"])
        align_tokenizer(tokenizer, erased)
        return erased

    monkeypatch.setattr("peft_unierase.engine.erase", erase)
    monkeypatch.setattr(
        command, "_save", lambda model, tokenizer, folder: model.save_pretrained(folder, save_embedding_layers=False)
    )
    page = prepare(DemoOptions(reading=Reading()), [], [], tmp_path)
    assert [len(people) for people in seen] == [2]
    assert page.folders == {"two-people": str(tmp_path / "two-people")}


def test_the_space_starts_the_page_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("unierase_command.main", lambda: started.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    exec(compile((SPACE / "app.py").read_text(encoding="utf-8"), "app.py", "exec"), {"__name__": "__main__"})
    assert started == [["unierase", "demo", "--host", "0.0.0.0", "--port", "7860"]]


def test_the_space_has_the_settings_that_the_hub_wants() -> None:
    front = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60
    pinned = (SPACE.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={settings['sdk_version']}" in pinned
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8").split() == ["peft-unierase[demo]"]
    assert json.dumps(settings)
