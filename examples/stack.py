"""Combine erasures that were made apart into one adapter, and take one out again.

    python examples/stack.py

The erasures must belong to the same base model. The base model itself is not needed to combine them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import peft_unierase
from peft_unierase import load, stack

BASE = Path(peft_unierase.__file__).parent / "demo"
FIRST = Path("erase-a")  # a folder or a Hub id
SECOND = Path("erase-b")
BOTH = Path("erase-both")  # a new folder
SECOND_ALONE = Path("erase-b-alone")

# Their updates add up. If both use the same vocabulary row, the token of the second one moves to another row.
both = stack(FIRST, SECOND)
both.save(BOTH)

# The stack loads as one adapter, and a model with it is as fast as with one erasure.
model = load(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), BOTH)
print(f"{BOTH} holds {', '.join(both.names)}")

# An erasure is taken out by its name, which is the last part of its folder or Hub id.
(both - FIRST.name).save(SECOND_ALONE)
