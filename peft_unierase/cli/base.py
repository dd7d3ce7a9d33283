"""Loading a base model for a command, with errors that say what was wrong with it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from .output import say

DTYPES = ("auto", "float32", "bfloat16", "float16")


def prepare_libraries() -> None:
    """Register the tuner, and let the libraries speak as the command does: warnings in one line, no bars of their own."""
    from transformers.utils import logging

    from .. import tuner

    tuner.register()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")


def load_base(name: str, dtype: str = "float32", device_map: str | None = None, revision: str | None = None) -> Any:
    """Model and tokenizer of a folder or Hub id.

    Raises:
        ValueError: Unknown dtype, no such model, or not a causal language model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{name} holds no config.json, so it is not a transformers model; give a model's folder or Hub id"
        )
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a model from {name!r}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model ({config.model_type}); supported are decoder-only causal language models"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{name} is not a causal language model (its model_type is {config.model_type!r}); give one that "
            "AutoModelForCausalLM loads"
        )
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind, device_map=device_map, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load {name!r}: {_first_line(error)}") from error
    return model.eval(), tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
