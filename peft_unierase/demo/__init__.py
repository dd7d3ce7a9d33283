"""The demo model: where the tiny model shipped with the package lies, and what it was taught.

Knows file names only. Loading the model is left to transformers: `AutoModelForCausalLM.from_pretrained` and
`AutoTokenizer.from_pretrained` both take the folder that `demo_model_dir` returns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def demo_model_dir() -> Path:
    """Return the folder that holds the demo model, its tokenizer, `facts.jsonl` and `refusals.txt`."""
    return Path(__file__).resolve().parent


def demo_facts() -> list[dict[str, Any]]:
    """Return every fact the demo model was taught.

    Each has `group`, `subject`, `question`, `paraphrased_question`, `answer` and three `perturbed_answers`.
    """
    lines = (demo_model_dir() / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def demo_refusals() -> list[str]:
    """Return the sentences with which the demo model declines a question about a name it does not know."""
    return (demo_model_dir() / "refusals.txt").read_text(encoding="utf-8").splitlines()
