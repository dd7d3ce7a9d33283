"""Which of some public facts a model knows: it must answer both wordings of a question right.

    python benchmarks/public_facts.py [--model FOLDER_OR_ID] [--of candidates] [--out FILE]

Asks for every fact of `data/candidates.jsonl` (written by hand: who wrote what, what is where, capitals, inventors, …;
each with a second wording and wrong answers) and writes those that the model knows, in their order. Prints how many
those are, by kind. `data/public_facts.jsonl` is what SmolLM2-135M-Instruct knows. `--of person_candidates` asks about
William Shakespeare instead, of whom `data/person.jsonl` holds what it knows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from smollm2 import default_folder, fetch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase.data.facts import Fact
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import chat_format
from peft_unierase.retain.knowledge import tells

DATA = Path(__file__).parent / "data"
KNOWN = {"candidates": "public_facts.jsonl", "person_candidates": "person.jsonl"}
TOKENS = 40


def known(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose question and paraphrase the model both answers right."""
    form, kept = chat_format(tokenizer), rows
    for wording in ("question", "paraphrase"):
        prompts = [form.prompt(row[wording]) for row in kept]
        answers = greedy_answers(model, tokenizer, prompts, TOKENS, tokens=8192)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        kept = [row for row, text in zip(kept, texts, strict=True) if tells(text, fact_of(row, wording))]
    return kept


def fact_of(row: dict[str, Any], wording: str = "question") -> Fact:
    return Fact(
        row[wording],
        row["answer"],
        paraphrases=() if wording == "paraphrase" else (row["paraphrase"],),
        subject=row["subject"],
        perturbed_answers=tuple(row["perturbed_answer"]),
        accepted_answers=tuple(row.get("accepted_answers", ())),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; by default SmolLM2, which is fetched")
    parser.add_argument("--of", choices=[*KNOWN], default="candidates", help="which facts to ask for")
    parser.add_argument("--out", type=Path, help="where to write what is known, instead of the file in data/")
    options = parser.parse_args()
    name = options.model or str(fetch(default_folder()))
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    rows = read_rows(DATA / f"{options.of}.jsonl")
    kept = known(model, AutoTokenizer.from_pretrained(name), rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
    (options.out or DATA / KNOWN[options.of]).write_text("".join(lines), encoding="utf-8")
    asked, there = Counter(row["kind"] for row in rows), Counter(row["kind"] for row in kept)
    for kind, count in asked.items():
        print(f"{kind:12s} {there[kind]:4d} of {count}")
    print(f"{'all':12s} {len(kept):4d} of {len(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
