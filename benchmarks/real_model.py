"""Erase ten authors of novels from a real model, check it in every way, and measure what else it knows.

    python benchmarks/real_model.py [--model FOLDER_OR_ID] [--seed 0] [--attacks all] [--json out.json]

The facts are those of `data/public_facts.jsonl`: the first ten novels go, and all others are held out, other authors by
themselves. Prints the time of every stage, how many held-out facts base and erased model tell, and the whole check. The
model is SmolLM2-135M-Instruct unless another is named (`make real-model` fetches it).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from public_facts import DATA, fact_of, read_rows
from smollm2 import default_folder, fetch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import Fact, erase
from peft_unierase.check import check
from peft_unierase.cli.check import report_table
from peft_unierase.cli.finish import adapter_size, stages_table
from peft_unierase.knowledge import ask
from peft_unierase.prompts import chat_format

ERASED = 10


def sets_of(rows: list[dict[str, Any]]) -> tuple[list[Fact], dict[str, list[Fact]]]:
    """What goes, and what is held out by name."""
    novels = [row for row in rows if row["kind"] == "author" and "novel" in row["question"]][:ERASED]
    others = [row for row in rows if row not in novels]
    return [fact_of(row) for row in novels], {
        "other authors": [fact_of(row) for row in others if row["kind"] == "author"],
        "other facts": [fact_of(row) for row in others if row["kind"] != "author"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; by default SmolLM2, which is fetched")
    parser.add_argument("--attacks", default="all", help="as unierase check takes it")
    parser.add_argument("--samples-cache", type=Path, help="folder of retain samples; by default they are made anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    name = options.model or str(fetch(default_folder()))
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    forget, held_out = sets_of(read_rows(DATA / "public_facts.jsonl"))
    form = chat_format(tokenizer)

    def told(model: Any) -> dict[str, int]:
        return {key: sum(bool(k.told) for k in ask(model, tokenizer, facts, [form])) for key, facts in held_out.items()}

    before = told(model)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("always")
        cache = options.samples_cache or Path(place)
        erased = erase(model, tokenizer, forget, samples_cache=cache, seed=options.seed)
    seconds = time.perf_counter() - started
    record, size = erased.erasure.record(), adapter_size(erased, erased.erasure.adapter)
    print(f"\nErased in {seconds:.0f} s: {size['share']:.3%} of the parameters, {size['bytes']:,} bytes.\n")
    print(stages_table(erased.erasure.seconds))
    print("\n" + json.dumps({key: record[key] for key in ("token", "counts", "known_to_base", "kept")}))
    after = told(erased)
    print(f"\n{'held out: told by':24s}{'base':>6s}{'erased':>8s}")
    for key in held_out:
        print(f"{key:24s}{before[key]:6d}{after[key]:8d}")
    report = check(erased, tokenizer, forget, held_out, attacks=options.attacks, seed=options.seed)
    print(f"\n{report_table(report)}\n\nchecked in {report.seconds:.0f} s")
    if options.json:
        found = {"record": record, "stages": erased.erasure.seconds, "told": {"base": before, "erased": after}}
        found["check"] = report.record(examples=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
