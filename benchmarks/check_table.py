"""Attack what every recipe makes of a 13-million-parameter testbed, in every way the check knows.

    python benchmarks/check_table.py [--facts 40] [--models base,twin,paper,default] [--attacks all]

Prints one table, attacks by models: the base, the twin (trained without the forget set), recipe `paper` and the
default; `!` marks what gets more than it may. Above it stand verdict, FE, MU, balance and forget quality, and how long
each check took. Exits with 1 if the check does not find what it must: the base LEAKING, the twin ERASED, and the holes
of recipe `paper`, which acts at the question alone, by name: [UNL] banned, and answer tokens given.
The testbed is not part of the package; where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import RECIPES, timed_erase
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import read_facts
from peft_unierase.check import ATTACKS, CheckReport, check
from peft_unierase.cli.erase import read_refusals

HOLES = {"ban", "prefill-5"}  # of an erasure that acts at the question alone
SETS = {"retain": "answer", "real_authors": "original_answer", "world_facts": "original_answer"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--facts", type=int, default=40, help="forget the first N facts (20 an author)")
    parser.add_argument("--models", default="base,twin,paper,default", help="which of them to attack")
    parser.add_argument("--device-map", help="where to load models to, as transformers takes it")
    parser.add_argument("--attacks", default="all", help="all, fast, or names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=4, help="measure every Nth question of what is kept")
    parser.add_argument("--samples-cache", type=Path, help="file that keeps what the model asks itself")
    parser.add_argument("--json", type=Path, help="store the reports here, without questions and answers")
    parser.add_argument("--html", type=Path, help="folder for a page of each report")
    options = parser.parse_args()
    testbed, data = options.shared / "testbed", options.shared / "data" / "tofu"
    if not (testbed / "tofu-mini").is_dir():
        print(f"skipped: there is no testbed in {testbed}; --shared names its folder")
        return 0

    def load(name: str) -> tuple[Any, Any]:
        model = AutoModelForCausalLM.from_pretrained(testbed / name, dtype=torch.float32, device_map=options.device_map)
        return model.eval(), AutoTokenizer.from_pretrained(testbed / name)

    forget = read_facts(data / "forget.json")[: options.facts]
    kept = {name: read_facts(data / f"{name}.json", answer=a)[:: options.stride] for name, a in SETS.items()}
    refusals = read_refusals(data / "refusals.txt") or []
    (base, tokenizer), (twin, _) = load("tofu-mini"), load("tofu-mini-retain")
    reports: dict[str, CheckReport] = {}

    def judge(name: str, model: Any, **told: Any) -> None:
        report = check(
            model,
            tokenizer,
            forget,
            kept,
            twin=twin,
            attacks=options.attacks,
            refusals=refusals,
            seed=options.seed,
            **told,
        )
        reports[name] = report
        print(
            f"\n{name}: {report.verdict.level} after {report.seconds:.0f} s, leaks: {', '.join(report.verdict.leaks)}"
        )
        if options.html:
            report.save_html(options.html / f"{name}.html")
        if options.json:
            record = {each: report.record(examples=False) for each, report in reports.items()}
            options.json.write_text(json.dumps(record, indent=1) + "\n")

    retain = read_facts(data / "retain_more.json")
    for recipe in options.models.split(","):
        if recipe in ("base", "twin"):
            judge(recipe, base if recipe == "base" else twin, base=base)
            continue
        model, tokenizer = load("tofu-mini")
        told = {**RECIPES[recipe], "samples_cache": options.samples_cache}
        erased, seconds, warned = timed_erase(
            model, tokenizer, forget, retain, refusals=refusals, seed=options.seed, **told
        )
        print(f"\n{recipe}: erased in {seconds:.0f} s", *warned, sep="\n  ")
        judge(recipe, erased)
    show(reports)
    return 0 if as_they_must(reports) else 1


def show(reports: dict[str, CheckReport]) -> None:
    """The table."""
    names = list(reports)
    print(f"\n{'':20s}" + "".join(f"{name:>12s}" for name in names))
    print(f"{'verdict':20s}" + "".join(f"{report.verdict.level:>12s}" for report in reports.values()))
    for score in next(iter(reports.values())).scores:
        values = [report.scores[score]["erased"] for report in reports.values()]
        print(f"{score:20s}" + "".join(f"{'-' if value is None else f'{value:.3f}':>12s}" for value in values))
    print(f"{'seconds':20s}" + "".join(f"{report.seconds:12.0f}" for report in reports.values()))
    for attack in ATTACKS:
        cells = []
        for report in reports.values():
            found = next((each for each in report.attacks if each.name == attack.name), None)
            cells.append("-" if found is None else f"{found.erased.mean:.3f}{' ' if found.holds else '!'}")
        if any(cell != "-" for cell in cells):
            print(f"{attack.name:20s}" + "".join(f"{cell:>12s}" for cell in cells))


def as_they_must(reports: dict[str, CheckReport]) -> bool:
    """Whether the check found what it must; says what it did not."""
    wrong = [
        f"the {name} is {reports[name].verdict.level}"
        for name, level in (("base", "LEAKING"), ("twin", "ERASED"))
        if name in reports and reports[name].verdict.level != level
    ]
    if "base" in reports:
        known = {a.name for a in reports["base"].attacks if a.twin is not None and a.base.mean > a.twin.mean + 0.2}
        wrong += [f"{name} does not leak on the base" for name in sorted(known - set(reports["base"].verdict.leaks))]
    if "paper" in reports:
        missed = HOLES & {a.name for a in reports["paper"].attacks} - set(reports["paper"].verdict.leaks)
        wrong += [f"{name} was not found to leak from recipe paper" for name in sorted(missed)]
    for each in wrong:
        print(f"NOT AS IT MUST BE: {each}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
