"""Plan from an author's name alone, erase what was planned, and ask what the testbed's forget set asks about them.

    python benchmarks/planning.py [--authors 0,5,11] [--count 192] [--json out.json]

Prints for each author how much of what the forget set knows the plan found (facts whose answer a planned one gives,
ROUGE-L recall of at least 0.5), and what the erased model still answers to the forget set's own questions, which it
never saw. Exits with 1 if less than 60 % is found or more than 0.25 is left. The testbed is not part of the package;
where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import erase, read_facts
from peft_unierase.check import answer_questions
from peft_unierase.engine.subjects import sure_subjects
from peft_unierase.plan import plan
from peft_unierase.prompts import chat_format
from peft_unierase.text import recall

AN_AUTHOR = 20  # facts of each in the forget set
SAME = 0.5  # recall from which on two answers say the same
FOUND, LEFT = 0.6, 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--authors", default="0,5,11", help="which, by their order in the forget set")
    parser.add_argument("--count", type=int, default=192, help="questions about each, in each of two rounds")
    parser.add_argument("--device-map", help="where to load models to, as transformers takes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    place, data = options.shared / "testbed" / "tofu-mini", options.shared / "data" / "tofu"
    if not place.is_dir():
        print(f"skipped: there is no testbed in {place.parent}; --shared names its folder")
        return 0

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, device_map=options.device_map).eval()

    tokenizer = AutoTokenizer.from_pretrained(place)
    forget, kept = read_facts(data / "forget.json"), read_facts(data / "retain.json")[::4]
    form = chat_format(tokenizer)

    def asked(model: Any, facts: list[Any]) -> float:
        return fmean(answer.recall for answer in answer_questions(model, tokenizer, facts, form))

    rows = []
    print("| author | planned | of the forget set found | left of it | retain, of the base's | plan s | erase s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for number in map(int, options.authors.split(",")):
        own = forget[number * AN_AUTHOR : (number + 1) * AN_AUTHOR]
        named = [subject for subject in sure_subjects(own) if subject]
        name = max(named, key=named.count)
        model = base()
        before = asked(model, kept)
        begun = time.perf_counter()
        found = plan(model, tokenizer, name, count=options.count, seed=options.seed, progress=False)
        planned = time.perf_counter() - begun
        given, near = ([each.fact for each in part] for part in (found.forget, found.retain))
        share = fmean(max(recall(fact.answer, each.answer) for each in given) >= SAME for fact in own)
        begun = time.perf_counter()
        erased = erase(model, tokenizer, given, near, seed=options.seed, progress=False)
        took = time.perf_counter() - begun
        left, spared = asked(erased, own), asked(erased, kept) / before
        rows.append({"author": name, "planned": len(given), "found": share, "left": left, "kept": spared})
        cells = [name, str(len(given)), f"{share:.0%}", f"{left:.3f}", f"{spared:.3f}", f"{planned:.0f}", f"{took:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return int(any(row["found"] < FOUND or row["left"] > LEFT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
