"""Erase authors of TOFU from a 13-million-parameter testbed one erasure after another, and ask all of them at the end.

    python benchmarks/sequential.py [--steps 10] [--facts 40] [--recipe default] [--stride 4] [--json out.json]

The facts of forget.json go in file order, `--facts` a step (20 an author), each step on top of those before it. Prints,
for every step, ROUGE-L recall of greedy answers on its facts before any erasure, right after its own step, and after
the last one, and what is kept as a share of the base's. Exits with 1 if more than 0.10 is left right after a step, if a
step has lost more than 0.03 of that at the end, or if less than 97 % of the base is left of what is kept. The testbed
is not part of the package; if it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RECIPES, Demand, Testbed, bare, parser_of, recall_of, save, show, timed_erase
from tqdm import tqdm

GONE = 0.10  # recall that may be left right after a step
LOST = 0.03  # recall that may have come back at the end
KEPT = 0.97  # share of the base


def print_all(steps: list[dict[str, Any]], kept: dict[str, dict[str, float]]) -> None:
    print(f"\n{'forget, facts of step':24s}{'base':>8s}{'made':>8s}{'at the end':>12s}{'seconds':>9s}")
    for number, step in enumerate(steps, start=1):
        print(f"{number:<24d}{step['base']:8.3f}{step['made']:8.3f}{step['end']:12.3f}{step['seconds']:9.0f}")
    print(f"\n{'kept':24s}{'base':>8s}{'at the end':>12s}{'share':>8s}")
    for name, row in kept.items():
        print(f"{name:24s}{row['base']:8.3f}{row['end']:12.3f}{row['share']:8.3f}")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="how many erasures")
    parser.add_argument("--facts", type=int, default=40, help="facts of each (20 an author)")
    parser.add_argument("--recipe", choices=[*RECIPES], default="default")
    parser.add_argument("--stride", type=int, default=1, help="ask every Nth question of what is kept")
    options = parser.parse_args()
    if options.settings and options.recipe == "paper":
        parser.error("--settings are those of the default recipe; leave them out with --recipe paper")
    testbed = Testbed(options.shared, options.device_map)
    if not testbed.there():
        return 0

    forget = bare(testbed.facts("forget"))
    parts = [forget[start : start + options.facts] for start in range(0, options.steps * options.facts, options.facts)]
    if not all(len(part) == options.facts for part in parts):
        parser.error(f"forget.json holds {len(forget)} facts, too few for {options.steps} steps of {options.facts}")
    kept = {
        "retain": testbed.facts("retain")[:: options.stride],
        "real authors": testbed.facts("real_authors")[:: options.stride],
        "world facts": testbed.facts("world_facts")[:: options.stride],
    }
    if left := forget[options.steps * options.facts :: options.stride]:
        kept["other forget authors"] = left
    refusals, retain = testbed.refusals(), bare(testbed.facts("retain_more"))
    model, tokenizer = testbed.model(), testbed.tokenizer()

    before = {name: recall_of(model, tokenizer, facts) for name, facts in kept.items()}
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, tqdm(total=len(parts), desc="erasures", disable=None) as bar:
        cache = options.samples_cache or Path(place)
        for number, part in enumerate(parts, start=1):
            step: dict[str, Any] = {"base": recall_of(model, tokenizer, part)}
            model, step["seconds"], step["warnings"] = timed_erase(
                model,
                tokenizer,
                part,
                retain,
                refusals=refusals,
                seed=options.seed,
                samples_cache=cache,
                settings=options.settings,
                **RECIPES[options.recipe],
            )
            step["made"] = recall_of(model, tokenizer, part)
            step["record"] = model.erasure.record()
            steps.append(step)
            print(f"\nstep {number}: {json.dumps({**step, 'record': None})}", flush=True)
            bar.update(1)
    for step, part in zip(steps, parts, strict=True):
        step["end"] = recall_of(model, tokenizer, part)
    rows = {}
    for name, facts in kept.items():
        end = recall_of(model, tokenizer, facts)
        rows[name] = {"base": before[name], "end": end, "share": end / before[name], "count": len(facts)}
    print_all(steps, rows)
    save(options.json, {"facts": options.facts, "steps": steps, "kept": rows})
    made = {f"step {number}, right after it": step["made"] for number, step in enumerate(steps, start=1)}
    lost = {f"step {number}, lost at the end": step["end"] - step["made"] for number, step in enumerate(steps, start=1)}
    shares = {f"{name}, share of the base": row["share"] for name, row in rows.items()}
    demands = [
        *(Demand(name, GONE) for name in made),
        *(Demand(name, LOST) for name in lost),
        *(Demand(name, KEPT, least=True) for name in shares),
    ]
    return 1 if show({"erased": {**made, **lost, **shares}}, demands, "erased") else 0


if __name__ == "__main__":
    sys.exit(main())
