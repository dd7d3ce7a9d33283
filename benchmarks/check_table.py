"""Attack what every recipe makes of a 13-million-parameter testbed, in every way the check knows.

    python benchmarks/check_table.py [--facts 40] [--models base,reference,paper,default] [--attacks all]

Prints one table, attacks by models: the base, the reference model (trained without the forget set), recipe `paper`
and the default; `!` marks what gets more than it may. Above it stand verdict, FE, MU, balance and forget quality, and
how long each check took. Exits with 1 if the check does not find what it must: the base LEAKING, the reference model
ERASED, and the holes of recipe `paper`, which acts at the question alone, by name: [UNL] banned, and answer tokens
given.
The testbed is not part of the package; if it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import RECIPES, Testbed, parser_of, save, timed_erase

from peft_unierase.checking import ATTACKS, CheckReport, check

HOLES = {"ban", "prefill-5"}  # of an erasure that acts at the question alone
SETS = ("retain", "real_authors", "world_facts")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--facts", type=int, default=40, help="forget the first N facts (20 an author)")
    parser.add_argument("--models", default="base,reference,paper,default", help="which of them to attack")
    parser.add_argument("--attacks", default="all", help="all, fast, or names")
    parser.add_argument("--stride", type=int, default=4, help="measure every Nth question of what is kept")
    parser.add_argument("--html", type=Path, help="folder for a page of each report")
    options = parser.parse_args()
    testbed = Testbed(options.shared, options.device_map)
    if not testbed.there():
        return 0

    forget, retain = testbed.facts("forget")[: options.facts], testbed.facts("retain_more")
    refusals = testbed.refusals()
    kept = {name: testbed.facts(name)[:: options.stride] for name in SETS}
    base, reference_model, tokenizer = testbed.model(), testbed.model("tofu-mini-retain"), testbed.tokenizer()
    reports: dict[str, CheckReport] = {}

    def judge(name: str, model: Any, tokenizer: Any, **told: Any) -> None:
        report = check(
            model,
            tokenizer,
            forget,
            kept,
            reference_model=reference_model,
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
        save(options.json, {each: report.record(examples=False) for each, report in reports.items()})

    for recipe in options.models.split(","):
        if recipe in ("base", "reference"):
            judge(recipe, base if recipe == "base" else reference_model, tokenizer, base=base)
            continue
        tokenizer = testbed.tokenizer()
        erased, seconds, warned = timed_erase(
            testbed.model(),
            tokenizer,
            forget,
            retain,
            refusals=refusals,
            seed=options.seed,
            samples_cache=options.samples_cache or False,
            settings=options.settings if recipe == "default" else None,
            **RECIPES[recipe],
        )
        print(f"\n{recipe}: erased in {seconds:.0f} s", *warned, sep="\n  ")
        judge(recipe, erased, tokenizer)
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
        for name, level in (("base", "LEAKING"), ("reference", "ERASED"))
        if name in reports and reports[name].verdict.level != level
    ]
    if "base" in reports:
        known = {
            a.name
            for a in reports["base"].attacks
            if a.reference_model is not None and a.base.mean > a.reference_model.mean + 0.2
        }
        wrong += [f"{name} does not leak on the base" for name in sorted(known - set(reports["base"].verdict.leaks))]
    if "paper" in reports:
        missed = HOLES & {a.name for a in reports["paper"].attacks} - set(reports["paper"].verdict.leaks)
        wrong += [f"{name} was not found to leak from recipe paper" for name in sorted(missed)]
    for each in wrong:
        print(f"NOT AS IT MUST BE: {each}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
