"""Our default against itself: each row leaves one term or stage of it out, and shows what is lost without it.

    python benchmarks/compare/ablations.py                      # tofu-mini, ten facts of two authors, every variant
    python benchmarks/compare/ablations.py --base smollm2       # SmolLM2, ten authors
    python benchmarks/compare/ablations.py --variants whole,no-teacher
    python benchmarks/compare/ablations.py --tables-only        # the table of docs/comparison.md anew, from stored rows

Rows are stored as those of `run.py` are (benchmarks/compare/results/ablations-….jsonl), so the same command goes on
where it was stopped, and a variant that fails is a row that says so. All variants get the same facts, retain set and
seed, and are judged by the measures and attacks of the comparison.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
if not __package__:  # run as a script
    sys.path[0] = str(BENCHMARKS)  # in place of this folder, whose modules are those of the package `compare`

from common import bare, timed_erase  # noqa: E402

from compare import tables, tasks  # noqa: E402
from compare.budget import Erased  # noqa: E402
from compare.clock import Clock  # noqa: E402
from compare.measures import Measures, failure, figures, recall, size  # noqa: E402
from compare.ranking import worst_leak  # noqa: E402
from compare.results import DONE, FAILED, Results, Row, key_of, surroundings  # noqa: E402
from compare.run import RESULTS, line  # noqa: E402
from compare.runs import head_of  # noqa: E402
from compare.tasks import Task  # noqa: E402
from peft_unierase import DistillSettings  # noqa: E402
from peft_unierase.cli.finish import adapter_size  # noqa: E402
from peft_unierase.data.facts import DEFAULT_REFUSALS  # noqa: E402
from peft_unierase.engine import layers, run_facts  # noqa: E402
from peft_unierase.engine.distill import fit, placing, recipe, targets, triggers  # noqa: E402
from peft_unierase.retain.neighbours import Neighbours  # noqa: E402

PREFIX = "ablations-"
FACTS = 10
ATTACKS = ("greedy", "paraphrase", "plain", "ban", "ban-prefill", "few-shot", "choice", "direction", "scale-0.5")
WHOLE = "whole"
FORGET_DECLINED = "forget declined"


@dataclass(frozen=True)
class Variant:
    """Our default with something left out.

    Attributes:
        title: What is left out, as the table says it.
        settings: Settings that differ.
        constants: Private constants and functions that differ: module, name and value.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[tuple[Any, str, Any]] = ()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The package is as the variant has it in a `with` block."""
        with ExitStack() as stack:
            for module, name, value in self.constants:
                stack.enter_context(mock.patch.object(module, name, value))
            yield


def _without_neighbours(*_: Any) -> Neighbours:
    return Neighbours([], [], [])


def _without_rewordings(run: Any, near: Callable[[Any], Neighbours] = run_facts._near) -> Neighbours:
    found = near(run)
    return Neighbours(found.known, found.others, [])


def _without_unl(run: Any, *told: Any, cases: Callable[..., list[Any]] = placing.cases_of) -> list[Any]:
    return [case for case in cases(run, *told) if case[0][-1] != run.spare.token_id]


def _one_layer(count: int, chosen: Callable[[int], list[int]] = layers.trigger_layers) -> list[int]:
    return chosen(count)[-1:]


VARIANTS: dict[str, Variant] = {
    WHOLE: Variant("nothing"),
    "no-teacher": Variant("the teacher without names", {"forget_weight": 0.0}),
    "one-renaming": Variant("all renamings of the teacher but one", constants=[(targets, "DRAWS", 1)]),
    "no-counterfactuals": Variant("answers to renamed questions", constants=[(targets, "COUNTERFACTUALS", 0)]),
    "no-cap": Variant("the teacher's cap on telling words", constants=[(targets, "CAP", 0.0)]),
    "no-refusal-in-words": Variant("the refusal without [UNL]", constants=[(recipe, "WORDS_WEIGHT", 0.0)]),
    "no-rewordings": Variant("the base's own rewordings", constants=[(run_facts, "_near", _without_rewordings)]),
    "no-neighbours": Variant("near neighbours", constants=[(run_facts, "_near", _without_neighbours)]),
    "no-samples": Variant("questions about anything", {"samples": 0}),
    "no-retained": Variant("the divergence at what stays", {"retain_weight": 0.0}),
    "no-renamed": Variant("renamed facts that triggers stay silent at", constants=[(placing, "RENAMED", 1)]),
    "no-bound": Variant(
        "the bound at retained tokens",
        constants=[(triggers, "separated", lambda rows, *_: rows), (triggers, "LEAST", -9)],
    ),
    "no-sharing": Variant("triggers that names share", constants=[(triggers, "SHARED", 2.0)]),
    "no-trigger-at-unl": Variant("the trigger at [UNL]", constants=[(recipe, "cases_of", _without_unl)]),
    "one-layer": Variant("all edited layers but the last", constants=[(layers, "trigger_layers", _one_layer)]),
    "fixed-rows": Variant("training of what triggers read", constants=[(fit, "TRIGGER_RATE", 0.0)]),
    "solved-once": Variant("solving [UNL]'s output row during the fit", constants=[(recipe, "SOLVED", 10**9)]),
    "half-the-steps": Variant("half of the steps", {"steps": 30}),
}


def task_of(base: str, shared: Path) -> Task:
    """Ten facts of a task of the comparison, with fewer attacks.

    Raises:
        NotThere: The model is not on this machine.
    """
    if base == "smollm2":
        task = tasks.authors()
    else:
        task = next(iter(tasks.tofu(shared)))
        task = replace(task, parts=[task.parts[0][:: len(task.parts[0]) // FACTS]])
    return replace(task, name=f"{PREFIX}{base}", title=f"{task.base}, ten facts", attacks=ATTACKS)


def measured(task: Task, name: str, measures: Measures, seed: int, cache: Path | bool) -> Row:
    """The row of a variant."""
    variant, clock, started = VARIANTS[name], Clock(), time.perf_counter()
    row = head_of(task, name, seed)
    try:
        model, tokenizer = task.model(), task.tokenizer()
        with variant.applied(), clock.stage("erasing"):
            erased, _, warned = timed_erase(
                model,
                tokenizer,
                bare(task.parts[0]),
                bare(task.retain),
                refusals=task.refusals or DEFAULT_REFUSALS,
                settings=DistillSettings(**variant.settings),
                samples_cache=cache,
                seed=seed,
                progress=False,
            )
        with clock.stage("checking"):
            row.update(figures(measures.report(erased, tokenizer, task.asked, task.held_out)))
            for near, facts in (task.near[0] if task.near else {}).items():
                base = measures.base_recall(facts)
                row["kept"][near] = {"base": base, "erased": recall(erased, tokenizer, facts)}
        made = erased.erasure.outcome
        sizes = adapter_size(erased, erased.erasure.adapter)
        row.update(
            settings=dict(variant.settings),
            warned=warned,
            triggers=made.triggers,
            held={"retain loss": made.retain_loss, "declined": made.declined, FORGET_DECLINED: made.forget_declined},
            size=size(Erased(erased, tokenizer, sizes["bytes"], sizes["parameters"]), measures.base),
            stages=clock.stages,
        )
    except Exception as error:  # the next variant may come through
        row.update(status=FAILED, error=failure(error))
    return {**row, "seconds": time.perf_counter() - started, **surroundings()}


def _kept(row: Row) -> float:
    """The smallest share of the base's recall that is left of a set that must stay."""
    return min(each["erased"] / each["base"] for each in row["kept"].values() if each["base"])


def _leak(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["attacks"][name]["leak"] if name in row["attacks"] else None


COLUMNS: tuple[tables.Column, ...] = (
    *((f"{name} ↓", _leak(name), ".3f", -1) for name in ("greedy", "paraphrase", "ban-prefill", "few-shot", "choice")),
    *((f"{name} ↓", _leak(name), ".3f", -1) for name in ("direction", "scale-0.5")),
    ("worst, beyond the reference ↓", worst_leak, "+.3f", -1),
    ("declined of the erased ↑", lambda row: row["held"][FORGET_DECLINED], ".2f", 1),
    ("declined of what stays ↓", lambda row: row["scores"]["over-refusal"], ".1%", -1),
    ("least kept, of the base ↑", _kept, ".3f", 1),
    ("perplexity ↓", lambda row: row["scores"]["perplexity"], ".1f", -1),
    ("triggers", lambda row: row["triggers"], ".0f", 0),
    ("seconds ↓", lambda row: row["stages"]["erasing"]["seconds"], ".0f", -1),
)


def table(results: Results, task: str, seed: int) -> str:
    """The rows of a base, in the order of `VARIANTS`, and what failed."""
    latest = results.latest(task, seed)
    rows = [latest[name] for name in VARIANTS if name in latest and latest[name]["status"] == DONE]
    failed = [
        f"{VARIANTS[name].title}: {latest[name]['error']}"
        for name in VARIANTS
        if name in set(latest) - {row["method"] for row in rows}
    ]
    if not rows:
        return ""
    head = ["left out", *(column[0] for column in COLUMNS)]
    cells = [[VARIANTS[row["method"]].title, *(_cell(column, row) for column in COLUMNS)] for row in rows]
    parts = [f"#### {rows[0]['title']}", tables.made_with(rows), tables.markdown(head, cells)]
    return "\n\n".join([*parts, *(f"Failed without {each}." for each in failed)])


def _cell(column: tables.Column, row: Row) -> str:
    found = column[1](row)
    return tables.ABSENT if found is None else format(found, column[2])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("tofu-mini", "smollm2"), default="tofu-mini")
    parser.add_argument("--variants", help=f"some of {', '.join(VARIANTS)}; by default all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--samples-cache", type=Path, help="folder that keeps what the base asks itself")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the testbed")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    options = parser.parse_args(words)
    names = [name.strip() for name in (options.variants or ",".join(VARIANTS)).split(",")]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SystemExit(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    results = Results(options.results)
    if not options.tables_only:
        try:
            measure(task_of(options.base, options.shared), names, results, options.seed, options.samples_cache or False)
        except tasks.NotThere as reason:
            print(f"skipped: {reason}")
            return 0
        except KeyboardInterrupt:
            print("stopped; rows that are done are stored, and the same command goes on", file=sys.stderr)
            return 130
    text = "\n\n".join(
        filter(None, (table(results, name, options.seed) for name in results.tasks() if name.startswith(PREFIX)))
    )
    print(text or "there are no rows, so there is nothing to show")
    if options.results == RESULTS:
        tables.put(ROOT / "docs" / "comparison.md", "ablations", text)
    return 0


def measure(task: Task, names: Sequence[str], results: Results, seed: int, cache: Path | bool) -> None:
    """Measure the variants that are not done."""
    done, measures = results.done(task.name), Measures(task, seed)
    for name in names:
        if key_of(head_of(task, name, seed)) not in done:
            row = measured(task, name, measures, seed, cache)
            results.add(row)
            print(line(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
