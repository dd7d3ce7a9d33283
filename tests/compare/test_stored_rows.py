"""Rows are only added to, and what is best, pages and pictures are made from rows alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

if not (Path(__file__).parents[2] / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
OURS = "unierase"


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
