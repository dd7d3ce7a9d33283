"""Erase three groups of authors apart, each from the bare base, and load the erasures in every combination.

    python benchmarks/stacking.py [--facts 40] [--stride 4] [--json out.json]

Prints a table: for each combination what is left of each group's answers (ROUGE-L recall), and
of other facts. Exits with 1 if of a group that is on 0.05 more is left than alone, or what is off or kept suffers. The
testbed is not part of the package; where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from tofu_mini import timed_erase
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import Fact, load, read_facts, set_active
from peft_unierase.check import answer_questions, figures
from peft_unierase.cli.erase import read_refusals
from peft_unierase.prompts import chat_format

WORSE = 0.05  # that a group's figure may be beyond what it is alone
KEPT = 0.97  # share of the base that must be left of what nobody erased
GROUPS = ("A", "B", "C")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--facts", type=int, default=40, help="facts of each group (20 an author)")
    parser.add_argument("--stride", type=int, default=4, help="ask every Nth question of what is kept")
    parser.add_argument("--device-map", help="where to load models to, as transformers takes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the erasures here, and use those that are there")
    parser.add_argument("--samples-cache", type=Path, help="file that keeps what the model asks itself")
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    place, data = options.shared / "testbed" / "tofu-mini", options.shared / "data" / "tofu"
    if not place.is_dir():
        print(f"skipped: there is no testbed in {place.parent}; --shared names its folder")
        return 0

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, device_map=options.device_map).eval()

    tokenizer = AutoTokenizer.from_pretrained(place)
    forget, count = read_facts(data / "forget.json"), options.facts
    if len(forget) < len(GROUPS) * count:
        parser.error(f"forget.json holds {len(forget)} facts, too few for {len(GROUPS)} groups of {count}")
    groups = {name: forget[n * count : (n + 1) * count] for n, name in enumerate(GROUPS)}
    sets = {
        **groups,
        "other authors": forget[len(GROUPS) * count :: options.stride],
        "retain": read_facts(data / "retain.json")[:: options.stride],
        "world facts": read_facts(data / "world_facts.json", answer="original_answer")[:: options.stride],
    }
    retain, refusals = read_facts(data / "retain_more.json"), read_refusals(data / "refusals.txt")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name, facts in groups.items():
            if (folder / name).is_dir():
                continue
            own = AutoTokenizer.from_pretrained(place)
            told = {"refusals": refusals, "seed": options.seed, "samples_cache": options.samples_cache}
            erased, seconds, warned = timed_erase(base(), own, facts, retain, **told)
            erased.save_pretrained(folder / name, save_embedding_layers=False)
            print(f"{name}: erased in {seconds:.0f} s", *warned, sep="\n  ", flush=True)
        model = load(base(), [folder / name for name in groups])

    table: dict[str, dict[str, float]] = {}
    for size in range(len(groups) + 1):
        for on in combinations(groups, size):
            set_active(model, on)
            table["+".join(on) or "none"] = {name: recall(model, tokenizer, facts) for name, facts in sets.items()}
    print(f"\n{'on':8s}" + "".join(f"{name:>15s}" for name in sets))
    for on, row in table.items():
        print(f"{on:8s}" + "".join(f"{value:15.3f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    wrong = missed(table)
    for each in wrong:
        print(f"MISSED: {each}")
    return 1 if wrong else 0


def recall(model: Any, tokenizer: Any, facts: list[Fact]) -> float:
    """ROUGE-L recall of greedy answers."""
    return figures(answer_questions(model, tokenizer, facts, chat_format(tokenizer))).recall


def missed(table: dict[str, dict[str, float]]) -> list[str]:
    """What is not as it should be."""
    base, wrong = table["none"], []
    for on, row in table.items():
        for name, value in row.items():
            if name in on.split("+"):
                if value > table[name][name] + WORSE:
                    wrong.append(f"{on}: {value:.3f} is left of {name}, alone {table[name][name]:.3f}")
            elif value < KEPT * base[name]:
                wrong.append(f"{on}: {name} has {value:.3f} of {base[name]:.3f}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
