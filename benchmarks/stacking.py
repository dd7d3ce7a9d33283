"""Erase three groups of authors apart, each from the bare base, and load the erasures in every combination.

    python benchmarks/stacking.py [--facts 40] [--stride 4] [--json out.json]

Prints a table: for each combination what is left of each group's answers (ROUGE-L recall), and of other facts. Exits
with 1 if more than 0.10 is left of a group alone, or 0.03 more of it in a combination, or if less than 98 % of the base
is left of what is off or kept. The testbed is not part of the package; if it is missing the script says so and exits
with 0.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import combinations
from pathlib import Path

from common import Table, Testbed, bare, parser_of, recall_of, save, timed_erase

from peft_unierase import load, set_active

GONE = 0.10  # recall that may be left of a group alone
WORSE = 0.03  # that a group's figure may be beyond what it is alone
KEPT = 0.98  # share of the base that must be left of what nobody erased
GROUPS = ("A", "B", "C")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--facts", type=int, default=40, help="facts of each group (20 an author)")
    parser.add_argument("--stride", type=int, default=4, help="ask every Nth question of what is kept")
    parser.add_argument("--folder", type=Path, help="keep the erasures here, and use those that are there")
    options = parser.parse_args()
    testbed = Testbed(options.shared, options.device_map)
    if not testbed.there():
        return 0

    tokenizer, count = testbed.tokenizer(), options.facts
    forget, retain = bare(testbed.facts("forget")), bare(testbed.facts("retain_more"))
    refusals = testbed.refusals()
    if len(forget) < len(GROUPS) * count:
        parser.error(f"forget.json holds {len(forget)} facts, too few for {len(GROUPS)} groups of {count}")
    groups = {name: forget[n * count : (n + 1) * count] for n, name in enumerate(GROUPS)}
    sets = {
        **groups,
        "other authors": forget[len(GROUPS) * count :: options.stride],
        "retain": testbed.facts("retain")[:: options.stride],
        "world facts": testbed.facts("world_facts")[:: options.stride],
    }

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name, facts in groups.items():
            if (folder / name).is_dir():
                continue
            erased, seconds, warned = timed_erase(
                testbed.model(),
                testbed.tokenizer(),
                facts,
                retain,
                refusals=refusals,
                seed=options.seed,
                samples_cache=options.samples_cache or folder / "samples",
                settings=options.settings,
            )
            erased.save_pretrained(folder / name, save_embedding_layers=False)
            print(f"{name}: erased in {seconds:.0f} s", *warned, sep="\n  ", flush=True)
        model = load(testbed.model(), [folder / name for name in groups])

    table: dict[str, dict[str, float]] = {}
    for size in range(len(groups) + 1):
        for on in combinations(groups, size):
            set_active(model, on)
            table["+".join(on) or "none"] = {name: recall_of(model, tokenizer, facts) for name, facts in sets.items()}
    print(f"\n{'on':8s}" + "".join(f"{name:>15s}" for name in sets))
    for which, row in table.items():
        print(f"{which:8s}" + "".join(f"{value:15.3f}" for value in row.values()))
    save(options.json, table)
    wrong = missed(table)
    for each in wrong:
        print(f"MISSED: {each}")
    print("\nmissed" if wrong else "\nall met")
    return 1 if wrong else 0


def missed(table: Table) -> list[str]:
    """What is not as it should be."""
    base, wrong = table["none"], []
    for on, row in table.items():
        for name, value in row.items():
            if name in on.split("+"):
                if on == name and value > GONE:
                    wrong.append(f"{on}: {value:.3f} is left of {name}")
                if value > table[name][name] + WORSE:
                    wrong.append(f"{on}: {value:.3f} is left of {name}, alone {table[name][name]:.3f}")
            elif value < KEPT * base[name]:
                wrong.append(f"{on}: {name} has {value:.3f} of {base[name]:.3f}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
