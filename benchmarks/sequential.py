"""Erase authors of TOFU from a 13-million-parameter testbed one erasure after another, and ask all of them at the end.

    python benchmarks/sequential.py [--steps 10] [--facts 40] [--recipe default] [--stride 4] [--json out.json]

The facts of forget.json go in file order, `--facts` a step (20 an author), each step on top of those before it. Prints,
for every step, ROUGE-L recall of greedy answers on its facts before any erasure, right after its own step, and after
the last one, and what is kept as a share of the base's. The testbed is not part of the package; where it is missing the
script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tofu_mini import RECIPES, facts_of, read, timed_erase
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase.check import answer_questions, figures
from peft_unierase.cli.erase import read_refusals
from peft_unierase.facts import Fact
from peft_unierase.prompts import chat_format


def show(steps: list[dict[str, Any]], kept: dict[str, dict[str, float]]) -> None:
    print(f"\n{'forget, facts of step':24s}{'base':>8s}{'made':>8s}{'at the end':>12s}{'seconds':>9s}")
    for number, step in enumerate(steps, start=1):
        print(f"{number:<24d}{step['base']:8.3f}{step['made']:8.3f}{step['end']:12.3f}{step['seconds']:9.0f}")
    print(f"\n{'kept':24s}{'base':>8s}{'at the end':>12s}{'share':>8s}")
    for name, row in kept.items():
        print(f"{name:24s}{row['base']:8.3f}{row['end']:12.3f}{row['share']:8.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--steps", type=int, default=10, help="how many erasures")
    parser.add_argument("--facts", type=int, default=40, help="facts of each (20 an author)")
    parser.add_argument("--recipe", choices=[*RECIPES], default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1, help="ask every Nth question of what is kept")
    parser.add_argument("--samples-cache", type=Path, help="file for what the base asks itself; by default made anew")
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    testbed, data = options.shared / "testbed" / "tofu-mini", options.shared / "data" / "tofu"
    if not testbed.is_dir():
        print(f"skipped: there is no testbed in {testbed.parent}; --shared names its folder")
        return 0

    forget = facts_of(read(data / "forget.json"))
    parts = [forget[start : start + options.facts] for start in range(0, options.steps * options.facts, options.facts)]
    if not all(len(part) == options.facts for part in parts):
        parser.error(f"forget.json holds {len(forget)} facts, too few for {options.steps} steps of {options.facts}")
    kept = {
        "retain": facts_of(read(data / "retain.json"))[:: options.stride],
        "real authors": facts_of(read(data / "real_authors.json", "original_answer"))[:: options.stride],
        "world facts": facts_of(read(data / "world_facts.json", "original_answer"))[:: options.stride],
    }
    if left := forget[options.steps * options.facts :: options.stride]:
        kept["other forget authors"] = left
    refusals = read_refusals(data / "refusals.txt")
    retain = facts_of(read(data / "retain_more.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(testbed, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(testbed)

    def recall(facts: list[Fact], name: str) -> float:
        with tqdm(total=len(facts), desc=f"asking: {name}", disable=None, leave=False) as bar:
            answers = answer_questions(model, tokenizer, facts, chat_format(tokenizer), None, 56, bar.update)
        return figures(answers).recall

    before = {name: recall(facts, name) for name, facts in kept.items()}
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, tqdm(total=len(parts), desc="erasures", disable=None) as bar:
        cache = options.samples_cache or Path(place) / "samples.jsonl"
        for number, part in enumerate(parts, start=1):
            step: dict[str, Any] = {"base": recall(part, f"step {number}")}
            model, step["seconds"], step["warnings"] = timed_erase(
                model,
                tokenizer,
                part,
                retain,
                refusals=refusals,
                seed=options.seed,
                samples_cache=cache,
                **RECIPES[options.recipe],
            )
            step["made"] = recall(part, f"step {number}")
            step["record"] = model.erasure.record()
            steps.append(step)
            print(f"\nstep {number}: {json.dumps({**step, 'record': None})}", flush=True)
            bar.update(1)
    for number, (step, part) in enumerate(zip(steps, parts, strict=True), start=1):
        step["end"] = recall(part, f"step {number}")
    rows = {}
    for name, facts in kept.items():
        end = recall(facts, name)
        rows[name] = {"base": before[name], "end": end, "share": end / before[name], "count": len(facts)}
    show(steps, rows)
    if options.json:
        options.json.write_text(json.dumps({"facts": options.facts, "steps": steps, "kept": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
