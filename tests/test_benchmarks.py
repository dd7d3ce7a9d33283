"""The benchmarks hold figures against what they must be, and what was not measured is never passed."""

from __future__ import annotations

import argparse
import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from demo_erasure import demo_base, demo_tokenizer

from peft_unierase import Fact
from peft_unierase.checking.report import AttackResult, CheckReport, Curve, Figure
from peft_unierase.checking.scores import Interval
from peft_unierase.checking.target import Target
from peft_unierase.checking.verdict import Verdict
from peft_unierase.demo import demo_facts
from peft_unierase.retain.knowledge import tells

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmarks' modules by name, imported as the scripts import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    class Modules:
        def __getattr__(self, name: str) -> Any:
            return importlib.import_module(name)

    return Modules()


def test_a_demand_is_met_at_its_bound_and_missed_beyond(benchmarks: Any) -> None:
    table = {
        "base": {"kept": 0.9},
        "reference_model": {"attack": 0.1},
        "erased": {"kept": 0.882, "attack": 0.15, "greedy": 0.1},
    }
    demand = benchmarks.common.Demand
    assert demand("greedy", 0.10).met(table, "erased")
    assert not demand("greedy", 0.09).met(table, "erased")
    assert demand("attack", 0.05, beyond="reference_model").met(table, "erased")
    assert not demand("attack", 0.04, beyond="reference_model").met(table, "erased")
    assert demand("kept", 0.98, least=True, of="base").met(table, "erased")
    assert not demand("kept", 0.99, least=True, of="base").met(table, "erased")


def test_what_was_not_measured_is_missed(benchmarks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    common = benchmarks.common
    table = {"reference_model": {"ban": 0.1}, "erased": {"ban": 0.1, "cloze": 0.0, "further": 1.0}}
    demands = [
        common.Demand("ban", 0.05, beyond="reference_model"),
        common.Demand("cloze", 0.05, beyond="reference_model"),
        common.Demand("probe", 0.1),
    ]
    assert common.show(table, demands, "erased") == ["cloze", "probe"]
    printed = capsys.readouterr().out
    assert "NO: not measured" in printed
    assert "further" in printed


def test_settings_are_read_with_their_types(benchmarks: Any) -> None:
    settings = benchmarks.common.settings_of("steps=2,retain_weight=3")
    assert (settings.steps, settings.retain_weight) == (2, 3.0)
    with pytest.raises(Exception, match="unknown setting 'stepz'"):
        benchmarks.common.settings_of("stepz=2")


def test_an_erasure_never_sees_what_attacks_ask(benchmarks: Any) -> None:
    fact = benchmarks.common.Fact("Who?", "Ann.", ("Whom?",), "Ann", "It is Ann.", ("Bob.",), ("Anne.",))
    assert benchmarks.common.bare([fact]) == [
        benchmarks.common.Fact("Who?", "Ann.", subject="Ann", accepted_answers=("Anne.",))
    ]


def test_every_demanded_measure_is_one_that_the_testbed_script_makes(benchmarks: Any) -> None:
    script = benchmarks.tofu_mini
    table = script.of_report(_report([*script.DEMANDED], [*script.KEPT]))
    other = {"refusals that are whole sentences", "adapter, share of parameters", "seconds to erase"}
    for facts in (40, 400):
        named = {demand.measure for demand in script.demands_for(facts)}
        assert named - other <= set(table["erased"])
    assert table["erased"]["relearn-tenth, 20 steps"] == 0.2
    assert table["reference_model"]["relearn-tenth, 40 steps"] == 0.04
    assert table["erased"]["kept questions that decline"] == pytest.approx(0.1 * 300 / 500)
    assert [attack.name for attack in script.attacks_of("demanded")] == [*script.DEMANDED]


def test_more_facts_have_the_wider_bounds_of_their_own(benchmarks: Any) -> None:
    few, many = ({d.measure: d.limit for d in benchmarks.tofu_mini.demands_for(facts)} for facts in (40, 400))
    assert (few["ban"], many["ban"]) == (0.05, 0.10)
    assert (few["choice"], many["choice"]) == (0.65, 0.75)
    assert (few["retain"], many["retain"]) == (0.99, 0.98)
    assert (few["seconds to erase"], many["seconds to erase"]) == (300, 1800)


@pytest.mark.parametrize("name", ["authors", "person"])
def test_a_task_of_the_real_model_holds_nothing_out_that_goes(benchmarks: Any, name: str) -> None:
    task = benchmarks.real_model.task_of(name)
    gone = {fact.question for fact in task.forget}
    assert len(gone) >= 10
    assert not gone & {fact.question for facts in task.held_out.values() for fact in facts}
    for fact, (right, *wrong) in zip(task.forget, task.choices, strict=True):
        assert right == fact.answer
        assert right not in wrong
        assert len(wrong) >= 3
    if name == "person":
        held_out = [fact for facts in task.held_out.values() for fact in facts]
        assert not any(benchmarks.real_model.PERSON in (fact.answer, fact.subject) for fact in held_out)


def test_a_choice_is_right_only_if_the_first_answer_is_likeliest(benchmarks: Any) -> None:
    asked = []

    class Target:
        def reads(self, prompts: list[str], texts: list[str]) -> list[Any]:
            asked.extend(zip(prompts, texts, strict=True))
            return [SimpleNamespace(loss={"Ann": 1.0, "Bob": 2.0, "Cy": 0.5}[text.strip()]) for text in texts]

    begun = [("Who? ", "It is "), ("And? ", "")]
    assert benchmarks.real_model.chosen(Target(), begun, [["Ann", "Bob"], ["Ann", "Cy"]]) == 0.5
    assert asked[0] == ("Who? It is", " Ann")
    assert asked[2] == ("And? ", "Ann")


def test_stacked_erasures_must_hold_as_they_do_alone_and_spare_the_rest(benchmarks: Any) -> None:
    good = {"none": {"A": 1.0, "B": 1.0, "retain": 1.0}, "A": {"A": 0.1, "B": 0.99, "retain": 0.98}}
    assert benchmarks.stacking.missed(good) == []
    good["A+B"] = {"A": 0.14, "B": 0.1, "retain": 0.97}
    good["B"] = {"A": 0.99, "B": 0.1, "retain": 0.99}
    assert len(benchmarks.stacking.missed(good)) == 2
    untouched = {on: {"A": 1.0, "retain": 1.0} for on in ("none", "A")}
    assert len(benchmarks.stacking.missed(untouched)) == 1


def _report(attacks: list[str], kept: list[str]) -> CheckReport:
    def result(name: str) -> AttackResult:
        each = [Interval(value, value, value) for value in (1.0, 0.1, 0.05)]
        steps = [0, 20, 40]
        curve = Curve(steps, [1.0, 1.0, 1.0], [0.1, 0.2, 0.4], [0.01, 0.02, 0.04]) if name == "relearn-tenth" else None
        return AttackResult(name, name, "", "", *each, each[1], "reference model", 0.0, "holds", curve)

    figures = [Figure(name, "recall", 1.0, 0.9, 1.0) for name in kept]
    figures += [Figure(name, "declined", 0.0, 0.1 if name == kept[0] else 0.0, 0.0) for name in kept]
    figures.append(Figure("forget", "probability", 0.9, 0.1, 0.1))
    counts = {"forget": 40, **dict(zip(kept, (300, 100, 50, 50), strict=True))}
    return CheckReport(
        Verdict("ERASED", [], [], [], len(attacks)), figures, {}, [result(name) for name in attacks], counts=counts
    )


def test_the_real_model_s_case_holds_what_the_base_says(benchmarks: Any) -> None:
    real, facts = benchmarks.real_model, [Fact(row["question"], row["answer"]) for row in demo_facts()[:2]]
    base = Target("base", demo_base(), demo_tokenizer())
    case = real.case_of(base, real.Task(facts, [[fact.answer for fact in facts]] * 2, {"others": facts}), 0)
    assert case.base_answers.keys() == {fact.question for fact in facts}
    assert all(tells(case.base_answers[fact.question], fact) for fact in facts)


def test_a_server_is_asked_each_question_with_the_erasure_off_and_on(benchmarks: Any) -> None:
    serving = benchmarks.serving
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((request["messages"][0]["content"], request["lora"][0]["scale"]))
            assert request["max_tokens"] == serving.TOKENS
            content = {"choices": [{"message": {"content": f" {asked[-1]} "}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        found = serving.answers_of_server("llama_cpp", url, ["a", "b"])
        server.shutdown()
    assert asked == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert found == {"off": ["('a', 0)", "('b', 0)"], "on": ["('a', 1)", "('b', 1)"]}


def test_servers_are_asked_ten_erased_questions_and_ten_others(benchmarks: Any) -> None:
    sets = benchmarks.serving.questions()
    assert [len(set(asked)) for asked in sets.values()] == [10, 10]
    assert not set(sets["erased"]) & set(sets["other"])
    with pytest.raises(argparse.ArgumentTypeError, match="'ollama=x' is not NAME=URL with a name of transformers,"):
        benchmarks.serving.server_of("ollama=x")
