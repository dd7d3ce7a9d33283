"""The comparison: rows are stored once and only added to, what fails is a row, and pages are made from rows alone."""

from __future__ import annotations

import functools
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from demo_erasure import FORGET, OTHERS, demo_base, demo_tokenizer
from peft import LoraConfig, get_peft_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
SHARED = BENCHMARKS.parents[1] / "shared"
OURS, OTHER, FAILING = "unierase", "fake", "failing"
MODULES = (
    *("budget", "clock", "measures", "methods", "pictures", "ranking", "results", "run", "runs", "search"),
    *("tables", "tasks"),
)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def compare(patch: pytest.MonkeyPatch) -> Any:
    """The modules of the comparison by name."""
    patch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**{name: importlib.import_module(f"compare.{name}") for name in MODULES})


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


def row(method: str, worst: float = 0.1, balance: float = 0.9, **more: Any) -> dict[str, Any]:
    """A stored row."""
    excess = {"greedy": worst - 0.05, "relearn-tenth": worst}
    attacks = {
        name: {"leak": 0.1 + value, "reference": 0.1, "excess": value, "high": value + 0.05, "base": 1.0}
        for name, value in excess.items()
    }
    curve = {"steps": [0, 20], "base": [1.0, 1.0], "erased": [0.1, 0.1 + worst], "reference": [0.1, 0.12]}
    return {
        "schema": "unierase-compare/1",
        "task": "tofu-40",
        "title": "tofu-mini, 40 facts",
        "base": "tofu-mini",
        "kind": "batch",
        "facts": 40,
        "method": method,
        "seed": 0,
        "budget": {"texts": 1400, "trials": 3, "rank": 8},
        "status": "done",
        "settings": {"learning_rate": 0.0001},
        "tried": [{"settings": {"learning_rate": 0.0001}}],
        "scores": {
            "FE": 0.95,
            "MU": balance,
            "balance": balance,
            "forget quality": 0.7,
            "over-refusal": 0.01,
            "perplexity": 12.0,
        },
        "attacks": attacks,
        "worst": "relearn-tenth",
        "curves": {"relearn-tenth": curve},
        "kept": {"retain": {"base": 1.0, "erased": 0.97}},
        "not run": {"probe": "no | wrong answers"},
        "size": {"bytes": 400_000, "parameters": 100_000, "share": 0.01},
        "decoding": {"on": 1.2, "off": 1.01},
        "stages": {"erasing": {"seconds": 31.4, "peak_bytes": 700_000_000}, "checking": {"seconds": 50.0}},
        "seconds": 90.0,
        "machine": {"cpu": "A CPU", "cores": 2},
        "commit": "0123456789abcdef",
        "created": "2026-11-30T12:00:00+00:00",
        **more,
    }


def test_rows_are_only_added_and_the_last_of_a_key_counts(compare: Any, tmp_path: Path) -> None:
    results = compare.results.Results(tmp_path)
    for each in (row("gd", 0.3), row("gd", 0.2), row("gd", 0.1, seed=1), row("gd", status="failed", error="x")):
        results.add(each)
    path = tmp_path / "tofu-40.jsonl"
    assert len(path.read_text("utf-8").splitlines()) == 4
    assert compare.ranking.worst_leak(results.latest("tofu-40", 0)["gd"]) == 0.2  # failing later takes nothing away
    assert compare.ranking.worst_leak(results.latest("tofu-40", 1)["gd"]) == 0.1
    keys = {compare.results.key_of(each) for each in results.rows("tofu-40")}
    assert len(keys) == 2
    other = row("gd", budget={"texts": 10, "trials": 3, "rank": 8})
    assert compare.results.key_of(other) not in results.done("tofu-40")
    assert compare.results.key_of(row("gd")) in results.done("tofu-40")
    assert results.settings("tofu-40", "gd", 0) == {"learning_rate": 0.0001}
    assert results.settings("tofu-40", "rmu", 0) is None
    before = path.read_bytes()
    results.add(row("rmu"))
    assert path.read_bytes().startswith(before)


def test_a_line_that_was_cut_off_costs_no_other_row(compare: Any, tmp_path: Path) -> None:
    results = compare.results.Results(tmp_path)
    results.add(row("gd"))
    path = tmp_path / "tofu-40.jsonl"
    path.write_text(path.read_text("utf-8") + '{"schema": "unierase-comp', encoding="utf-8")
    results.add(row("rmu"))
    assert [each["method"] for each in results.rows("tofu-40")] == ["gd", "rmu"]


def test_numbers_that_are_none_are_stored_as_null(compare: Any, tmp_path: Path) -> None:
    results = compare.results.Results(tmp_path)
    results.add(row("ga", scores={"perplexity": math.inf, "MU": math.nan}))
    assert results.rows("tofu-40")[0]["scores"] == {"perplexity": None, "MU": None}


def test_our_default_must_leak_least_and_balance_best(compare: Any) -> None:
    missed = compare.ranking.missed
    reference = row("reference_model", 0.0, 1.0)
    good = {each["method"]: each for each in (reference, row(OURS, 0.05, 0.95), row("gd", 0.3, 0.9))}
    assert missed(good) == []
    leaky = missed({**good, "rmu": row("rmu", 0.01, 0.2)})
    assert leaky == ["worst leak beyond the reference: RMU has +0.010 (relearn-tenth), ours +0.050 (relearn-tenth)"]
    assert missed({**good, "npo_gd": row("npo_gd", 0.3, 0.97)}) == ["balance: NPO + GD has 0.970, ours 0.950"]
    assert missed({"gd": row("gd")}) == ["UniErase, default was not measured"]
    failed = {OURS: row(OURS, status="failed", error="ValueError: x"), "gd": row("gd")}
    assert missed(failed) == ["UniErase, default failed: ValueError: x"]


def test_the_reduced_list_has_the_best_and_the_most_used(compare: Any) -> None:
    rows = {name: row(name, worst) for name, worst in (("elm", 0.1), ("undial", 0.2), ("ga", 0.6))}
    names = compare.ranking.reduced(rows, 2)
    assert {"elm", "undial", OURS, *compare.ranking.MOST_USED} <= set(names)
    assert "ga" not in names
    assert names == [name for name in compare.methods.METHODS if name in names]


PAGE = "# Title\n\n<!-- compare: {0} -->\nold\n<!-- compare: end of {0} -->\n\nThe rest.\n"


@pytest.mark.slow
def test_pages_and_pictures_are_made_from_rows_alone(
    compare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "comparison.md").write_text(PAGE.format("results"), encoding="utf-8")
    (tmp_path / "README.md").write_text(PAGE.format("short table"), encoding="utf-8")
    results = compare.results.Results(tmp_path / "rows")
    made = [("base", 0.9, 0.3), ("reference_model", 0.0, 0.99), ("gd", 0.4, 0.8), ("rmu", 0.2, 0.5), (OURS, 0.05, 0.95)]
    for method, worst, balance in made:
        results.add(row(method, worst, balance))
    results.add({**row("ga", status="failed", error="ValueError: too | large"), "attacks": None})
    for facts in (400, 4000):
        results.add(row(OURS, task="tofu-400", facts=400, title="tofu-mini, 400 facts", seed=0 if facts == 400 else 1))
    steps = [
        {"facts": 40 * n, "this step": 0.1, "all steps": 0.1 * n, "kept": 1 - 0.1 * n, "seconds": 9.0} for n in (1, 2)
    ]
    results.add(row(OURS, task="tofu-steps", kind="steps", steps=steps, title="steps"))
    told = ["--results", str(tmp_path / "rows"), "--docs", str(tmp_path), "--tables-only"]
    assert compare.run.main(told) == 0
    assert "tofu-40: ours is the best" in capsys.readouterr().out
    page, readme = ((tmp_path / name).read_text("utf-8") for name in ("docs/comparison.md", "README.md"))
    for text in (page, readme):
        assert text.startswith("# Title\n")
        assert text.endswith("\n\nThe rest.\n")
        assert "old" not in text
        assert "| UniErase, default | **+0.050** | **0.950** |" in text
    assert "failed: ValueError: too \\| large" in page
    assert "![Relearning: tofu-mini, 40 facts](images/compare/relearning-tofu-40.svg)" in page
    assert "A CPU, 2 cores" in page
    assert len(readme.splitlines()) <= len(PAGE.splitlines()) + 12
    pictures = sorted((tmp_path / "docs" / "images" / "compare").glob("*.svg"))
    assert [file.stem for file in pictures] == [
        *("attacks-tofu-40", "attacks-tofu-400", "attacks-tofu-steps"),
        *("frontier-tofu-40", "frontier-tofu-400", "frontier-tofu-steps"),
        "growth-tofu-mini",
        *("relearning-tofu-40", "relearning-tofu-400", "relearning-tofu-steps"),
        "stability-tofu-steps",
    ]
    first = [file.read_bytes() for file in pictures]
    compare.run.main(told)
    assert [file.read_bytes() for file in pictures] == first


def test_a_page_without_a_place_is_refused(compare: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for a table; put the lines <!-- compare: results -->"):
        compare.tables.put(page, "results", "text")


def test_without_rows_nothing_is_written(compare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.run.main(["--results", str(tmp_path / "rows"), "--tables-only"]) == 0
    assert "there are no rows" in capsys.readouterr().out


def test_the_rest_is_forecast_from_rows_of_this_machine_alone(compare: Any, tmp_path: Path) -> None:
    results = compare.results.Results(tmp_path)
    todo = {"tofu-40": ["gd", "rmu", OURS]}
    assert "no row of theirs is done" in compare.run.forecast(todo, results)
    results.add(row("gd", seconds=100.0))
    assert "no row of theirs is done" in compare.run.forecast(todo, results)
    results.add(row("gd", seconds=60.0, machine=compare.results.surroundings()["machine"]))
    assert compare.run.forecast(todo, results) == (
        "2 rows to measure in about 2 min, and 1 rows of which nothing is known"
    )


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
