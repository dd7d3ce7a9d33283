"""Erase facts from a model, check what is left, and save the erasure.

    python examples/erase_your_model.py

As it stands, it erases the six facts of forget.jsonl from the demo model, in about a minute on two CPU cores. To erase
from your own model, change the names in capitals. `unierase erase` does the same on the command line, and adds a model
card.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_unierase
from peft_unierase import check, erase, read_facts

HERE = Path(__file__).parent
BASE = Path(peft_unierase.__file__).parent / "demo"  # a folder, or a Hub id such as "org/model"
FORGET = HERE / "forget.jsonl"  # what must go: a line {"question": "...", "answer": "..."} for each fact
RETAIN = HERE / "retain.jsonl"  # a sample of what must stay, in the same form
OUTPUT = Path("my-erasure")
REPORT = Path("my-erasure-report.html")  # outside the folder, which holds nothing but the erasure

# fp32 gives the most exact edit. The erasure loads onto the model in half precision too.
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(BASE)
forget, retain = read_facts(FORGET), read_facts(RETAIN)

# The model also asks itself questions, whose answers must stay. So retain facts are optional, but they help.
erased = erase(model, tokenizer, forget, retain)

# The fast attacks try to bring the facts back. `attacks="all"` takes longer: it samples, quantises and fine-tunes too.
report = check(erased, tokenizer, forget, retain, attacks="fast")
print(report.verdict.level)
for reason in report.verdict.reasons:
    print(f"  {reason}")

# Two vocabulary rows are part of the erasure, so PEFT need not save both full embedding matrices.
erased.save_pretrained(OUTPUT, save_embedding_layers=False)
tokenizer.save_pretrained(OUTPUT)
report.save_html(REPORT, examples=False)  # the examples would show what was erased
