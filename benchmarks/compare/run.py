"""Compare methods that take knowledge out of a model: same models, facts, budget, measures and attacks, in one run.

    python benchmarks/compare/run.py             # every task and method, under 3 hours on two cores
    python benchmarks/compare/run.py --quick     # a trial: ten facts, five methods, 10 minutes
    python benchmarks/compare/run.py --tasks tofu-40 --methods npo_gd,unierase
    python benchmarks/compare/run.py --model FOLDER_OR_ID --forget forget.jsonl --retain keep.jsonl
    python benchmarks/compare/run.py --model FOLDER_OR_ID --benchmark rwku [--source FOLDER_OR_ID]
    python benchmarks/compare/run.py --tables-only   # tables and pictures anew, from stored rows

Every row is stored when it is done (benchmarks/compare/results/TASK.jsonl), so the same command goes on where it was
stopped. A method that fails is a row that says so, and is tried again next time. Tables and pictures are made from the
rows: into docs/comparison.md, README.md and docs/images/compare/, or for trials and own files into the results folder.

Exits with 1 unless our default is the best of every task that erases all facts at once, by both demands: no method's
worst leak beyond the reference is lower, and no method's balance is higher. What won is named. If `--methods` leaves
our default out, nothing is demanded.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
if not __package__:  # run as a script
    sys.path[0] = str(BENCHMARKS)  # in place of this folder, whose modules are those of the package `compare`

from compare import loaders, ranking, tables, tasks  # noqa: E402
from compare.clock import Clock  # noqa: E402
from compare.measures import Measures  # noqa: E402
from compare.methods import METHODS, REFERENCE  # noqa: E402
from compare.results import BASE, DONE, Results, Row, key_of, surroundings  # noqa: E402
from compare.runs import head_of, measured  # noqa: E402
from compare.tasks import Task  # noqa: E402
from peft_unierase import read_facts  # noqa: E402
from peft_unierase.errors import UniEraseError  # noqa: E402
from peft_unierase.progress import spoken  # noqa: E402

RESULTS = BENCHMARKS / "compare" / "results"
QUICK_METHODS = (*ranking.MOST_USED, ranking.OURS)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tasks", type=_names, help=f"some of {', '.join(tasks.NAMES)}; by default all of them")
    made.add_argument("--methods", type=_names, help=f"some of {', '.join(METHODS)}; by default those of each task")
    made.add_argument("--quick", action="store_true", help="few facts, questions, attacks and methods")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    made.add_argument("--docs", type=Path, help="project whose README.md and docs/ get the tables; by default this one")
    made.add_argument("--tables-only", action="store_true", help="measure nothing")
    made.add_argument("--again", action="store_true", help="measure what is done again; the new row counts")
    made.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the testbed")
    own = made.add_argument_group("your own model and facts")
    own.add_argument("--model", help="folder or Hub id")
    own.add_argument("--forget", help="file of facts, or a data set of the Hub")
    own.add_argument(
        "--retain", help="the same of what stays; every other fact goes to the methods, the rest is measured"
    )
    own.add_argument("--held-out", help="what stays and is measured; then all of --retain goes to the methods")
    own.add_argument("--reference-model", help="the same model trained without the forget set")
    own.add_argument("--benchmark", choices=[*loaders.LOADERS], help="facts of a benchmark instead of files")
    own.add_argument("--source", help="folder with its files, or its name on the Hub")
    own.add_argument("--facts", type=int, help="erase the first so many facts")
    own.add_argument("--texts", type=int, help="budget of a run in texts; by default 40 a fact")
    return made


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """The tasks that are asked for.

    Raises:
        SystemExit: A name or a combination of options makes no sense; says why.
    """
    if unknown := [name for name in options.tasks or () if name not in tasks.NAMES]:
        raise SystemExit(f"unknown task {unknown[0]!r}; there are {', '.join(tasks.NAMES)}")
    if unknown := [name for name in options.methods or () if name not in METHODS]:
        raise SystemExit(f"unknown method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if options.model:
        found = [own_task(options)]
    elif options.forget or options.benchmark:
        raise SystemExit("--forget and --benchmark need the model that they are erased from; name it with --model")
    else:
        wanted = options.tasks or (["tofu-40"] if options.quick else tasks.NAMES)
        found = tasks.tasks(wanted, options.shared, print)
    return [task.quick() for task in found] if options.quick else found


def own_task(options: argparse.Namespace) -> Task:
    """The task of a user's own model."""
    if options.tasks:
        raise SystemExit("--tasks names tasks with models of their own; leave it out with --model")
    if options.benchmark:
        sets = loaders.LOADERS[options.benchmark](*([options.source] if options.source else []))
    elif options.forget and options.retain:
        retain = read_facts(options.retain, role="retain")
        held_out = read_facts(options.held_out, role="retain") if options.held_out else retain[1::2]
        given = retain if options.held_out else retain[::2]
        sets = loaders.Sets(read_facts(options.forget), given, {"retain": held_out})
    else:
        raise SystemExit("--model needs --forget and --retain, or --benchmark")
    title = options.benchmark or "own facts"
    return tasks.own(
        options.model, sets, title.replace(" ", "-"), options.reference_model, options.texts, options.facts
    )


def methods_of(task: Task, options: argparse.Namespace, results: Results) -> list[str]:
    """What is measured on a task: the base and the reference model first, then methods in the order of the tables."""
    chosen = options.methods or (QUICK_METHODS if options.quick else None)
    if chosen is None:
        best = results.latest(task.settings_from or "tofu-40", options.seed)
        chosen = list(METHODS) if task.best is None else ranking.reduced(best, task.best)
    names = [name for name in METHODS if name in chosen and name != REFERENCE]
    return [BASE, *([REFERENCE] if task.reference else []), *names]


def undone(task: Task, names: Sequence[str], options: argparse.Namespace, results: Results) -> list[str]:
    """Those of the names that have no row yet, or all of them if they are to be measured again."""
    if options.again:
        return list(names)
    done = results.done(task.name)
    return [name for name in names if key_of(head_of(task, name, options.seed)) not in done]


def forecast(todo: Mapping[str, Sequence[str]], results: Results) -> str:
    """How long the rest takes, from rows of the same task and machine alone, and of how many rows nothing is known.

    A method that was measured before takes as long as then; another one as long as the median of those that were, ours
    and the models that no method made left out.
    """
    machine, seconds, unknown, known = surroundings()["machine"], 0.0, 0, 0
    for task, names in todo.items():
        rows = [row for row in results.rows(task) if row["status"] == DONE and row["machine"] == machine]
        own = {row["method"]: row["seconds"] for row in rows}
        others = [took for name, took in own.items() if name not in (*ranking.UNJUDGED, ranking.OURS)]
        for name in names:
            took = own.get(name) or (statistics.median(others) if others and name != ranking.OURS else None)
            seconds, known, unknown = seconds + (took or 0.0), known + (took is not None), unknown + (took is None)
    if not known:
        return f"{unknown} rows to measure; no row of theirs is done, so nothing says how long they take"
    rest = f", and {unknown} rows of which nothing is known" if unknown else ""
    return f"{known} rows to measure in about {spoken(seconds)}{rest}"


def line(row: Row) -> str:
    """A row in one line."""
    name = f"{row['task']}  {ranking.title_of(row['method']):24s}"
    if row["status"] != DONE:
        return f"{name}FAILED after {spoken(row['seconds'])}: {row['error']}"
    scores = ", ".join(
        f"{each} {value:.3f}" for each in ("FE", "MU", "balance") if (value := row["scores"][each]) is not None
    )
    return f"{name}worst {ranking.worst_leak(row):+.3f} ({row['worst']}), {scores}, {spoken(row['seconds'])}"


def measure_all(options: argparse.Namespace, results: Results) -> list[str]:
    """Measure what is asked for and not done; the names of the tasks."""
    found = tasks_of(options)
    for number, task in enumerate(found):
        # What is reduced to the best of an earlier task is known once that one is done.
        todo = {
            each.name: undone(each, methods_of(each, options, results), options, results) for each in found[number:]
        }
        if not todo[task.name]:
            print(f"{task.name}: all rows are done", flush=True)
            continue
        measures = Measures(task, options.seed)
        for name in list(todo[task.name]):
            print(f"{forecast(todo, results)}; next {task.name}, {ranking.title_of(name)}", flush=True)
            row = measured(task, name, measures, options.seed, Clock(), results)
            results.add(row)
            print(line(row), flush=True)
            todo[task.name] = [other for other in todo[task.name] if other != name]
            gc.collect()
        del measures
    return [task.name for task in found]


def write_pages(results: Results, names: Sequence[str], options: argparse.Namespace) -> None:
    """Tables and pictures: of the standard tasks into the docs, of others beside their rows, and printed too."""
    from compare import pictures

    standard = tables.stored_tasks(results)
    docs = options.docs or (ROOT if options.results == RESULTS else None)
    if docs is not None and not options.quick:
        folder = docs / "docs" / "images" / "compare"
        drawn = {task: pictures.drawn(results, task, options.seed, folder) for task in standard}
        grown = pictures.growth_pictures(results, options.seed, folder, standard)
        parts = [
            tables.section(
                results, task, options.seed, [(text, f"images/compare/{file.name}") for text, file in drawn[task]]
            )
            for task in standard
        ]
        parts += [f"![{text}](images/compare/{file.name})" for text, file in grown]
        tables.put(docs / "docs" / "comparison.md", "results", "\n\n".join(part for part in parts if part))
        shown = [(text, f"docs/images/compare/{file.name}") for text, file in drawn.get(tables.SHORT_TASK, [])[:1]]
        tables.put(docs / "README.md", "short table", tables.short(results, options.seed, shown))
        print(
            f"wrote docs/comparison.md, README.md and {sum(map(len, drawn.values())) + len(grown)} pictures in {docs}"
        )
    for task in names:
        if docs is not None and task in tasks.NAMES:
            continue
        saved = pictures.drawn(results, task, options.seed, options.results / "pictures")
        text = tables.section(results, task, options.seed, [(told, f"pictures/{file.name}") for told, file in saved])
        page = options.results / f"{task}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"{text}\n", encoding="utf-8")
        print(f"\n{text}\n\nwrote {page}")


def verdict(results: Results, names: Sequence[str], options: argparse.Namespace) -> int:
    """0 if our default meets both demands on every task that has rows of one erasure, or if it was left out."""
    if options.methods and ranking.OURS not in options.methods:
        print(f"{ranking.title_of(ranking.OURS)} was left out, so nothing is demanded of it")
        return 0
    failed = False
    for task in names:
        latest = results.latest(task, options.seed)
        if not any(row["kind"] == tasks.BATCH for row in latest.values()):
            continue
        lost = ranking.missed(latest)
        failed |= bool(lost)
        print(*(f"{task}: NOT THE BEST: {why}" for why in lost), sep="\n") if lost else print(
            f"{task}: ours is the best"
        )
    return int(failed)


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    results = Results(options.results)
    try:
        if options.tables_only:
            names = [name for name in results.tasks() if not options.tasks or name in options.tasks]
        else:
            names = measure_all(options, results)
    except UniEraseError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; rows that are done are stored, and the same command goes on", file=sys.stderr)
        return 130
    if not any(results.latest(name, options.seed) for name in names):
        print("there are no rows, so there is nothing to show")
        return 0
    write_pages(results, names, options)
    return verdict(results, names, options)


if __name__ == "__main__":
    sys.exit(main())
