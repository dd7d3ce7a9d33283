"""The base model in the box: where the tiny model shipped with the package lies, and what it was taught.

Knows file names only. Loading the model is left to transformers: `AutoModelForCausalLM.from_pretrained` and
`AutoTokenizer.from_pretrained` both take the folder that `boxed_model_dir` returns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def boxed_model_dir() -> Path:
    """Return the folder that holds the boxed model, its tokenizer, `facts.jsonl` and `refusals.txt`."""
    return Path(__file__).resolve().parent


def boxed_facts() -> list[dict[str, Any]]:
    """Return every fact the boxed model was taught.

    Each has `group`, `subject`, `question`, `paraphrased_question`, `answer` and three `perturbed_answers`.
    """
    lines = (boxed_model_dir() / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def boxed_refusals() -> list[str]:
    """Return the sentences with which the boxed model declines a question about a name it does not know."""
    return (boxed_model_dir() / "refusals.txt").read_text(encoding="utf-8").splitlines()
