"""The comparison: what is done is not measured again, what fails is a row, and methods see nothing that is measured."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from demo_erasure import FORGET, OTHERS, demo_base, demo_tokenizer
from peft import LoraConfig, get_peft_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
SHARED = BENCHMARKS.parents[1] / "shared"
OURS, OTHER, FAILING = "unierase", "fake", "failing"


@pytest.fixture(scope="module")
def calls(compare: Any, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two methods more: one returns an untrained LoRA and notes how it was called, one fails."""
    found: list[dict[str, Any]] = []

    def erase(model: Any, tokenizer: Any, forget: Any, retain: Any, budget: Any, *, seed: int = 0, scale: int) -> Any:
        found.append({"forget": forget, "retain": retain, "budget": budget, "seed": seed, "scale": scale})
        model = get_peft_model(model, LoraConfig(r=1, target_modules=["down_proj"], task_type="CAUSAL_LM")).eval()
        return compare.budget.Erased(model, tokenizer, 1000, 250)

    def fail(*told: Any, **more: Any) -> Any:
        raise ArithmeticError("it diverged\nafter 3 steps")

    for name, made in ((OTHER, erase), (FAILING, fail)):
        module = ModuleType(f"method_{name}")
        module.erase, module.GRID = made, ({"scale": 1}, {"scale": 2}, {"scale": 3})  # type: ignore[attr-defined]
        patch.setitem(sys.modules, module.__name__, module)
        method = compare.methods.Method(name, name.capitalize(), "-", module.__name__)
        patch.setitem(compare.methods.METHODS, name, method)
    patch.setattr(compare.runs, "decoding_cost", functools.partial(compare.measures.decoding_cost, rounds=1, tokens=2))
    return found


@pytest.fixture(scope="module")
def task(compare: Any) -> Any:
    """Two facts of the demo model, four that methods get, two that are measured."""
    return compare.tasks.Task(
        name="demo",
        title="demo model",
        base="demo",
        model=demo_base,
        tokenizer=demo_tokenizer,
        parts=[FORGET[:2]],
        retain=OTHERS[:4],
        held_out={"others": OTHERS[10:12]},
        budget=compare.budget.Budget(texts=30, trials=2),
        attacks=("greedy", "plain"),
    )


@dataclass
class Command:
    """The command on the demo task, which was called once."""

    call: Callable[[str], int]
    folder: Path
    calls: list[dict[str, Any]]
    status: int
    lines: list[str]

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "demo.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def command(compare: Any, task: Any, calls: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder, lines = tmp_path_factory.mktemp("rows"), []

    def call(methods: str) -> int:
        lines.clear()
        with pytest.MonkeyPatch.context() as own:
            own.setattr(compare.run, "tasks_of", lambda options: [task])
            own.setattr(compare.run, "print", lambda *told, **_: lines.extend(map(str, told)), raising=False)
            return compare.run.main(["--results", str(folder), "--methods", methods])

    status = call(f"{FAILING},{OTHER}")
    return Command(call, folder, calls[:], status, lines[:])


@pytest.mark.slow
def test_a_row_holds_what_the_check_finds_and_what_it_took(command: Command) -> None:
    assert command.status == 0  # nothing is demanded of a default that was left out
    base, row, _ = command.rows()
    assert row["status"] == "done"
    assert row["scores"]["FE"] == pytest.approx(base["scores"]["FE"])  # an untrained LoRA changes nothing
    assert row["attacks"]["greedy"]["leak"] == pytest.approx(base["attacks"]["greedy"]["leak"])
    assert row["attacks"][row["worst"]]["excess"] == max(found["excess"] for found in row["attacks"].values())
    assert row["kept"]["others"]["erased"] == pytest.approx(row["kept"]["others"]["base"])
    assert row["scores"]["perplexity"] > 1
    assert row["size"]["bytes"] == 1000
    assert row["decoding"].keys() == {"on", "off", "merged"}
    assert row["stages"].keys() == {"erasing", "searching", "checking", "decoding"}
    assert all(stage["seconds"] > 0 for stage in row["stages"].values())
    assert row["settings"] in ({"scale": 1}, {"scale": 2})
    assert [each["settings"]["scale"] for each in row["tried"]] == [1, 2]  # as many as there may be trials
    assert row["machine"].keys() == {"cpu", "cores"}
    assert {"python", "torch", "peft"} <= row["versions"].keys()


@pytest.mark.slow
def test_a_method_never_gets_what_is_measured_nor_what_judges_its_settings(compare: Any, command: Command) -> None:
    parts = compare.search.split(FORGET[:2], OTHERS[:4])
    assert parts.judged_retain
    assert not {fact.question for fact in parts.retain} & {fact.question for fact in parts.judged_retain}
    assert [(call["scale"], call["seed"], call["budget"].texts) for call in command.calls] == [(1, 0, 30), (2, 0, 30)]
    for call in command.calls:
        assert [fact.question for fact in call["retain"]] == [fact.question for fact in parts.retain]
        assert not any(fact.perturbed_answers or fact.paraphrases for fact in (*call["forget"], *call["retain"]))


@pytest.mark.slow
def test_a_second_call_tries_again_what_failed_and_nothing_else(command: Command, calls: list[dict[str, Any]]) -> None:
    rows = command.rows()
    assert [(row["method"], row["status"]) for row in rows[1:]] == [(OTHER, "done"), (FAILING, "failed")]
    assert rows[2]["error"].startswith("ArithmeticError: it diverged (")
    assert any("FAILED after" in line and "it diverged" in line for line in command.lines)
    before = (command.folder / "demo.jsonl").read_bytes()
    count = len(calls)
    assert command.call(f"{FAILING},{OTHER}") == 0
    assert len(calls) == count
    assert [row["method"] for row in command.rows()] == ["base", OTHER, FAILING, FAILING]
    assert (command.folder / "demo.jsonl").read_bytes().startswith(before)
    command.call(OTHER)
    assert len(command.rows()) == 4


def test_a_candidate_that_fails_leaves_the_others(compare: Any) -> None:
    def erase(model: Any, tokenizer: Any, forget: Any, retain: Any, budget: Any, *, seed: int, good: bool) -> Any:
        if not good:
            raise ValueError("no")
        return compare.budget.Erased(model, tokenizer, 0, 0)

    parts, budget = compare.search.split(FORGET[:2], OTHERS[:4]), compare.budget.Budget(texts=1)
    load, grid = lambda: (demo_base(), demo_tokenizer()), [{"good": False}, {"good": True}]
    chosen = compare.search.search(erase, grid, load, parts, budget, 0, compare.clock.Clock(False))
    assert chosen.settings == {"good": True}
    assert "ValueError: no" in chosen.tried[0]["error"]
    assert chosen.tried[1]["keeping"] > 0.9
    with pytest.raises(ValueError, match="no"):
        compare.search.search(erase, grid[:1], load, parts, budget, 0, compare.clock.Clock(False))


def test_the_better_candidate_is_kept(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.search, "judged", lambda erased, parts: {"merit": erased.changed / 10})

    def erase(*told: Any, seed: int, size: int) -> Any:
        return compare.budget.Erased(None, None, 0, size)

    parts, budget = compare.search.split(FORGET[:2], OTHERS[:4]), compare.budget.Budget(texts=1, trials=3)
    grid = [{"size": size} for size in (1, 5, 3, 9)]
    chosen = compare.search.search(erase, grid, lambda: (None, None), parts, budget, 0, compare.clock.Clock(False))
    assert chosen.settings == {"size": 5}  # the fourth is beyond the budget
    assert chosen.stage == "erasing, candidate 2 of 3"


def test_forgetting_and_keeping_must_both_be_there(compare: Any) -> None:
    assert compare.search.merit(1.0, 0.0) == 0.0
    assert compare.search.merit(0.8, 0.8) == pytest.approx(0.8)


def test_our_recipe_gets_the_whole_budget_for_its_defaults(compare: Any, task: Any) -> None:
    assert compare.runs.candidates(OURS, task.budget) == ({},)
    run = compare.runs.Run(task, OURS, None, 0, None)
    assert (run.budget.texts, run.budget.trials) == (60, 1)


@pytest.mark.slow
def test_steps_follow_each_other_and_single_facts_begin_anew(
    compare: Any, task: Any, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    loads: list[Any] = []

    def load() -> Any:
        loads.append(demo_base())
        return loads[-1]

    two = replace(task, parts=[FORGET[:1], FORGET[1:2]], model=load)
    results = compare.results.Results(tmp_path)
    rows = {}
    for kind, near in ((compare.tasks.STEPS, ()), (compare.tasks.SINGLE, [{"near": OTHERS[12:14]}] * 2)):
        kindred = replace(two, kind=kind, near=near)
        measures = compare.measures.Measures(kindred)
        loads.clear()
        calls.clear()
        rows[kind] = compare.runs.measured(kindred, OTHER, measures, 0, compare.clock.Clock(False), results)
        assert rows[kind]["status"] == "done", rows[kind]["error"]
        assert [call["scale"] for call in calls[:2]] == [1, 2]
        assert calls[2]["scale"] == rows[kind]["settings"]["scale"]  # the first part's choice holds for the others
        assert len(loads) == (2 if kind == compare.tasks.STEPS else 3)
    stepped, alone = rows[compare.tasks.STEPS], rows[compare.tasks.SINGLE]
    assert [step["facts"] for step in stepped["steps"]] == [1, 2]
    assert stepped["size"]["bytes"] == 2000
    assert stepped["steps"][-1]["kept"] == pytest.approx(1.0)
    assert alone["size"]["bytes"] == 1000
    assert alone["kept"].keys() == {"others", "near"}
    assert alone["facts"] == 1


@pytest.mark.slow
def test_base_and_reference_model_are_attacked_once(compare: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_unierase.checking import Attack, Found

    asked: list[str] = []

    def attack(target: Any, case: Any) -> Any:
        asked.append(target.name)
        return Found([0.5] * len(case.forget), [0.0] * len(case.forget))

    def broken(target: Any, case: Any) -> Any:
        if target.name == "erased":
            raise TypeError("no weights here")
        return [0.0] * len(case.forget)

    monkeypatch.setitem(compare.measures.BY_NAME, "own", Attack("own", "own", attack, against="chance"))
    monkeypatch.setitem(compare.measures.BY_NAME, "broken", Attack("broken", "broken", broken, against="chance"))
    own = replace(task, attacks=("own", "broken"), reference=demo_base)
    measures = compare.measures.Measures(own)
    model, tokenizer = demo_base(), demo_tokenizer()
    reports = [measures.report(model, tokenizer, own.asked, own.held_out) for _ in range(2)]
    assert sorted(asked) == ["base", "erased", "erased", "reference_model"]
    assert "failed: TypeError: no weights here" in reports[1].skipped["broken"]
    found = compare.measures.figures(reports[0])
    assert found["attacks"]["own"]["reference"] == 0.5
    assert found["attacks"]["own"]["excess"] == 0.0
    assert "failed" in found["not run"]["broken"]


def test_a_method_that_changes_the_prompt_formats_is_refused(compare: Any, task: Any) -> None:
    own = demo_tokenizer()
    own.chat_template = "Say nothing. " + own.chat_template
    measures = compare.measures.Measures(task)
    with pytest.raises(ValueError, match="changed the chat template; what it adds to prompts belongs into its model"):
        measures.report(measures.base, own, task.asked, task.held_out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "tofu-41"], "unknown task 'tofu-41'; there are tofu-40"),
        (["--methods", "gdd"], "unknown method 'gdd'; there are ga, gd"),
        (["--forget", "x.jsonl"], "need the model that they are erased from"),
        (["--model", "x"], "--model needs --forget and --retain, or --benchmark"),
        (["--model", "x", "--tasks", "tofu-40"], "leave it out with --model"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(compare: Any, words: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        compare.run.main(words)


def test_own_files_are_a_task_of_their_own_name(compare: Any, tmp_path: Path) -> None:
    for name, facts in (("forget", FORGET[:3]), ("keep", OTHERS[:6])):
        lines = [json.dumps({"question": fact.question, "answer": fact.answer}) for fact in facts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    told = [
        "--model",
        "org/model",
        "--forget",
        str(tmp_path / "forget.jsonl"),
        "--retain",
        str(tmp_path / "keep.jsonl"),
    ]
    task, fewer = (
        compare.run.tasks_of(compare.run.parser().parse_args([*told, *more])) for more in ([], ["--facts", "2"])
    )
    assert len(task[0].parts[0]) == 3
    assert {fact.question for fact in task[0].retain}.isdisjoint(f.question for f in task[0].held_out["retain"])
    assert task[0].budget.texts == 120
    assert task[0].name != fewer[0].name
    assert task[0].name.startswith("own-facts-")


def test_every_task_asks_by_attacks_that_there_are(compare: Any) -> None:
    tasks = compare.tasks
    assert {*tasks.MANY, *tasks.FEW, *tasks.ONE_FACT, *tasks.QUICK} <= compare.measures.BY_NAME.keys()


def test_a_task_that_is_not_there_is_skipped_with_the_reason(compare: Any, tmp_path: Path) -> None:
    said: list[str] = []
    assert compare.tasks.tasks(["tofu-40"], tmp_path, said.append) == []
    assert "skipped tofu-40: there is no testbed in" in said[0]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the testbed is not part of the package")
def test_tasks_of_the_testbed_hand_out_nothing_that_they_measure(compare: Any) -> None:
    found = {task.name: task for task in compare.tasks.tofu(SHARED)}
    assert {name: task.facts for name, task in found.items()} == {
        "tofu-40": 40,
        "tofu-400": 400,
        "tofu-steps": 400,
        "tofu-single": 1,
    }
    for task in [*found.values(), *(task.quick() for task in found.values())]:
        held_out = {fact.question for sets in (task.held_out, *task.near) for facts in sets.values() for fact in facts}
        gone = {fact.question for part in task.parts for fact in part}
        assert not held_out & {fact.question for fact in task.retain}
        assert not held_out & gone
        assert len(task.asked) <= 40


def test_attacks_on_weights_meet_the_model_without_what_stands_before_it(compare: Any, task: Any) -> None:
    def blank(output: Any) -> Any:
        output.logits = torch.zeros_like(output.logits)
        return output

    class Silent(compare.deployed.Deployed):
        """It says nothing that depends on the question."""

        @contextmanager
        def at_work(self) -> Iterator[None]:
            handle = self.model.register_forward_hook(lambda _, __, output: blank(output))
            yield
            handle.remove()

    measures = compare.measures.Measures(replace(task, attacks=("greedy", "direction")))
    report = measures.report(Silent(demo_base()), demo_tokenizer(), task.parts[0], task.held_out)
    leaks = {result.name: (result.erased.mean, result.base.mean) for result in report.attacks}
    assert leaks["greedy"][0] < 0.1 < leaks["greedy"][1]
    assert leaks["direction"][0] == leaks["direction"][1] > 0.9
