"""Check any PEFT adapter that is said to have unlearned something: what is left, and what attacks bring back.

    python examples/check_any_adapter.py

It takes LoRA and every other kind of adapter, whoever made it and however. The exit status is 1 if the plain question
still brings the facts, or if what should have stayed is lost.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_unierase
from peft_unierase import check, read_facts

HERE = Path(__file__).parent
BASE = Path(peft_unierase.__file__).parent / "demo"
ADAPTER = Path("my-erasure")  # a folder or a Hub id
FORGET = HERE / "forget.jsonl"  # what should be gone, with the answers that the base model gives
RETAIN = HERE / "retain.jsonl"  # what should have stayed
ATTACKS = "fast"  # or "all", or names: "greedy,paraphrase,prefill-5,4-bit"

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), ADAPTER)
tokenizer = AutoTokenizer.from_pretrained(BASE)

# Base model and erased model are one model, with the adapter off and on.
report = check(model, tokenizer, read_facts(FORGET), {"retain": read_facts(RETAIN)}, attacks=ATTACKS)

for attack in report.attacks:
    print(f"{attack.name:<15} base {attack.base.mean:.3f}   erased {attack.erased.mean:.3f}   {attack.outcome}")
for name, reason in report.skipped.items():
    print(f"{name:<15} skipped: {reason}")
print(report.verdict.level)

sys.exit(0 if report.verdict.accepted("SUPPRESSED") else 1)
