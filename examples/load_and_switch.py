"""Load an erasure onto its base model, ask it something, and switch the erasure off and on.

python examples/erase_your_model.py && python examples/load_and_switch.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_unierase
from peft_unierase import align_tokenizer, load, set_active

BASE = Path(peft_unierase.__file__).parent / "demo"
ERASURES = [Path("my-erasure")]  # folders or Hub ids; each is called by the last part of its name
QUESTION = "Where was Nesko Corquist born?"

base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(BASE)

# Files from strangers are inspected before they are loaded. What the inspection refuses raises GuardError.
model = load(base, ERASURES)
# The tokenizer learns the erasures' tokens, so that `skip_special_tokens=True` hides them.
align_tokenizer(tokenizer, model)


def answer(model: Any, question: str) -> str:
    """The greedy answer to a question in the model's chat template."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


answers = {"on": answer(model, QUESTION)}

# Inside this block the model is the base model.
with model.disable_adapter():
    answers["off"] = answer(model, QUESTION)

# The same until further notice. `toggle(model, name)` switches one erasure and leaves the others as they are.
names = list(model.peft_config)
set_active(model, [])
answers["off again"] = answer(model, QUESTION)
set_active(model, names)
answers["on again"] = answer(model, QUESTION)

for state, text in answers.items():
    print(f"{state:<10} {text}")
