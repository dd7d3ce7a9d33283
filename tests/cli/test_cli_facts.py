"""How the commands read sets of facts: columns and splits of each set, markup and repeats on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from helpers import invoke, write_rows

from peft_unierase.checking.attacks.wordings import paraphrase
from peft_unierase.checking.case import Case
from peft_unierase.cli.app import app
from peft_unierase.data.facts import Fact
from peft_unierase.lm.formats import plain_format

# Sets are read before the model is looked for, which is not there.
NO_MODEL = "no such folder"
FORGET = {"ask": {"words": "Who wrote It?"}, "tell": "Stephen King"}
RETAIN = {"frage": "Who wrote Emma?", "antwort": "Jane Austen"}
FORGET_COLUMNS = ("--question-column", "ask.words", "--answer-column", "tell")
RETAIN_COLUMNS = ("--retain-question-column", "frage", "--retain-answer-column", "antwort")
COMMANDS = {"erase": ["-o", "erasure"], "ramp": ["-o", "ramp", "--steps", "all"], "check": ["--base", "./nowhere"]}


def run(command: str, tmp_path: Path, forget: object, *options: object) -> str:
    """What a command says of sets; it ends for want of a model if it could read them."""
    sets = ["--forget", forget] if command == "check" else [forget]
    more = [tmp_path / text if text in ("erasure", "ramp") else text for text in COMMANDS[command]]
    ended = invoke(command, "./nowhere", *sets, *more, *options)
    assert ended.exit_code == 2, ended.output
    return ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_retain_set_has_columns_of_its_own(tmp_path: Path, command: str) -> None:
    forget, retain = write_rows(tmp_path / "forget.jsonl", [FORGET]), write_rows(tmp_path / "retain.jsonl", [RETAIN])
    told = run(command, tmp_path, forget, "--retain", retain, *FORGET_COLUMNS, *RETAIN_COLUMNS)
    assert NO_MODEL in told
    told = run(command, tmp_path, forget, "--retain", retain, *FORGET_COLUMNS)
    assert "retain set" in told
    assert "no column 'ask.words' for `question=`" in told
    assert "--retain-question-column" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_the_retain_set_has_a_split_and_a_configuration_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked: list[Any] = []

    def load(name: str, config: str, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [{"question": f"Who is {split}?", "answer": "Me."}]

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.chdir(tmp_path)
    options = ["--retain", "org/muse:knowmem", "--split", "forget_qa", "--retain-split", "retain_qa"]
    assert NO_MODEL in run(command, tmp_path, "org/muse:verbmem", *options)
    assert asked == [("org/muse", "verbmem", "forget_qa"), ("org/muse", "knowmem", "retain_qa")]


@pytest.mark.parametrize("command", COMMANDS)
def test_markup_and_repeats_are_said_on_stderr_and_markup_goes_if_asked(tmp_path: Path, command: str) -> None:
    rows = [{"question": "Who?", "answer": text} for text in ("He.", "<|im_start|>He.", "he.")]
    forget, retain = write_rows(tmp_path / "forget.jsonl", rows), write_rows(tmp_path / "retain.jsonl", [RETAIN])
    sets = (forget, "--retain", retain, *RETAIN_COLUMNS)
    told = run(command, tmp_path, *sets)
    assert "1 of 3 facts hold special tokens" in told
    assert "1 of 3 facts repeat an earlier one and are dropped" in told
    told = run(command, tmp_path, *sets, "--strip-markup")
    assert "special tokens" not in told
    assert "2 of 3 facts repeat an earlier one and are dropped" in told
    assert NO_MODEL in told


@pytest.mark.parametrize("command", ["erase", "check", "ramp", "plan", "verify"])
def test_every_command_that_reads_facts_takes_the_same_options(command: str) -> None:
    commands: Any = typer.main.get_command(app)
    options = {name for parameter in commands.commands[command].params for name in parameter.opts}
    assert {"--question-column", "--answer-column", "--split", "--strip-markup"} <= options
    own = {"--retain-question-column", "--retain-answer-column", "--retain-split"}
    assert own <= options if command in COMMANDS else not own & options


def test_of_several_paraphrases_the_one_that_brings_most_counts() -> None:
    class Answering:
        def says(self, prompts: list[str], max_new_tokens: int) -> list[str]:
            return ["It is Stephen King." if "novel" in prompt else "No idea." for prompt in prompts]

    facts = [
        Fact("Who wrote It?", "Stephen King", ("It is by whom?", "Whose novel is It?", "It, by?")),
        Fact("Who wrote Emma?", "Jane Austen"),
        Fact("Who wrote Dune?", "Frank Herbert", ("Dune is by whom?",)),
    ]
    form = plain_format(type("Tokenizer", (), {"bos_token": None, "eos_token": "</s>"})())
    told: Any = {"forget": facts, "retain": {}, "form": form, "others": {}, "unseen": [], "refusals": ["No."]}
    answering: Any = Answering()
    case = Case(base=answering, **told)
    found: Any = paraphrase(answering, case)
    assert list(found.leaks) == [1.0, 0.0]
    assert list(found.floor) == [0.0, 0.0]
