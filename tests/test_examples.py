"""The examples do what they say, as they stand, on the demo model."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo_erasure import FORGET, demo_tokenizer
from helpers import invoke
from safetensors.torch import load_file, save_file

import peft_unierase
from peft_unierase import Fact, align_tokenizer, load
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BORN = FORGET[0]


def run_example(name: str, **told: Any) -> dict[str, Any]:
    """Run a script of examples/ in this process, with other values for its names in capitals; what it defined."""
    path = EXAMPLES / name
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and {ast.unparse(target) for target in statement.targets} & set(told):
            (target,) = statement.targets
            statement.value = ast.parse(f"told.pop({ast.unparse(target)!r})", mode="eval").body
    defined: dict[str, Any] = {"__file__": str(path), "__name__": "__main__", "told": told}
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), defined)
    assert not told, f"{name} has no {', '.join(told)}"
    return defined


@pytest.fixture
def erased_before(erasure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for an erasure of `FORGET`, `erase` gives the shared one."""

    def erase(model: Any, tokenizer: Any, forget: Sequence[Fact], retain: Sequence[Fact]) -> Any:
        assert {fact.question for fact in forget} == {fact.question for fact in FORGET}
        assert len(retain) == 37
        erased = load(model, erasure, names=["default"])
        align_tokenizer(tokenizer, erased)
        return erased

    monkeypatch.setattr(peft_unierase, "erase", erase, raising=False)


@pytest.fixture
def adapter(erasure: Path, tmp_path: Path) -> Path:
    """The shared erasure under a name of one's own."""
    place = shutil.copytree(erasure, tmp_path / "erase-a")
    demo_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def empty(adapter: Path, tmp_path: Path) -> Path:
    """An erasure of the same base that erases nothing."""
    place = shutil.copytree(adapter, tmp_path / "erase-b")
    weights = place / "adapter_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return place


def test_the_facts_are_those_of_one_person_and_of_others() -> None:
    keys = ("question", "answer", "paraphrased_question")
    known = [{key: row[key] for key in keys} for row in demo_facts()]
    forget, retain = (
        [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("forget", "retain")
    )
    assert {row["question"] for row in forget} == {fact.question for fact in FORGET}
    assert all(row in known for row in forget + retain)
    assert not any(row in forget for row in retain)


@pytest.mark.usefixtures("erased_before")
def test_what_it_erases_is_saved_declines_and_switches_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page = tmp_path / "my-erasure", tmp_path / "report.html"
    made = run_example("erase_your_model.py", OUTPUT=output, REPORT=page)
    assert made["report"].verdict.level == "SUPPRESSED"
    assert BORN.answer not in page.read_text(encoding="utf-8")
    capsys.readouterr()
    switched = run_example("load_and_switch.py", ERASURES=[output])
    answers = switched["answers"]
    assert answers["on"] == answers["on again"] != BORN.answer
    assert answers["off"] == answers["off again"] == BORN.answer
    assert f"off        {BORN.answer}" in capsys.readouterr().out


def test_stacked_erasures_do_what_they_do_apart(adapter: Path, empty: Path, tmp_path: Path) -> None:
    both, alone = tmp_path / "erase-both", tmp_path / "erase-b-alone"
    run_example("stack.py", FIRST=adapter, SECOND=empty, BOTH=both, SECOND_ALONE=alone)
    assert run_example("load_and_switch.py", ERASURES=[both])["answers"]["on"] in demo_refusals()
    assert run_example("load_and_switch.py", ERASURES=[alone])["answers"]["on"] == BORN.answer


def test_any_adapter_is_checked(adapter: Path, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, status, level in ((adapter, 0, "SUPPRESSED"), (empty, 1, "LEAKING")):
        with pytest.raises(SystemExit) as ended:
            run_example("check_any_adapter.py", ADAPTER=place, ATTACKS="greedy,prefill-5")
        assert ended.value.code == status
        assert capsys.readouterr().out.splitlines()[-1] == level


def test_an_attack_of_ones_own_is_measured(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = run_example("own_attack.py", ERASURE=adapter)["attack"]
    assert attack.name == "role-play"
    assert attack.who.startswith("Anyone who may write a prompt: ")
    assert attack.renamed is not None
    assert "playing somebody who knows: base " in capsys.readouterr().out


def test_the_ci_workflow_lets_an_erasure_pass_and_stops_a_leak(adapter: Path, empty: Path, tmp_path: Path) -> None:
    workflow = yaml.safe_load((EXAMPLES / "ci_gate.yml").read_text(encoding="utf-8"))
    told = {
        "BASE": demo_model_dir(), "FORGET": EXAMPLES / "forget.jsonl", "RETAIN": EXAMPLES / "retain.jsonl",
    }  # fmt: skip
    assert set(workflow["env"]) == {*told, "ERASURE"}
    for place, status in ((adapter, 0), (empty, 1)):
        inspecting, attacking = commands(workflow, {**told, "ERASURE": place})
        assert invoke(*inspecting).exit_code == 0
        attacking[attacking.index("fast")] = "greedy"
        attacking[attacking.index("report")] = str(tmp_path / f"report-{status}")
        assert invoke(*attacking).exit_code == status
        assert (tmp_path / f"report-{status}" / "report.html").is_file()


def commands(workflow: Mapping[str, Any], told: Mapping[str, object]) -> list[list[str]]:
    """The arguments of each `unierase` command of a workflow."""
    found = []
    for step in workflow["jobs"]["check"]["steps"]:
        if (line := step.get("run", "")).startswith("unierase "):
            for name, value in told.items():
                line = line.replace(f'"${name}"', shlex.quote(str(value)))
            assert "$" not in line
            found.append(shlex.split(line)[1:])
    return found


@pytest.mark.usefixtures("erased_before")
def test_the_notebook_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), defined)
    assert defined["before"] == [fact.answer for fact in FORGET]
    assert not set(defined["before"]) & set(defined["after"])
    assert (tmp_path / "my-erasure" / "adapter_model.safetensors").is_file()
