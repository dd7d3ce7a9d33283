"""Loading a base model for a command, with errors that say what was wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..plain import check_plain_folder
from .adapters import refuse_adapter
from .output import say

DTYPES = ("auto", "float32", "bfloat16", "float16")
HEADS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")


def prepare_libraries() -> None:
    """Register the tuner, and let the libraries speak as the command does: one line a warning, no bars of their own."""
    from transformers.utils import logging

    from .. import tuner

    tuner.register()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")


def load_base(name: str, dtype: str = "float32", device_map: str | None = None, revision: str | None = None) -> Any:
    """Model and tokenizer of a folder or Hub id.

    Raises:
        ValueError: Unknown dtype, no such model, an adapter in its place or beside it, not a causal language model, or
            files that cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = Path(name)
    if path.is_file() or (not path.exists() and _must_be_a_path(name)):
        found = f"{name} is a file" if path.is_file() else f"no such folder: {name}"
        raise ValueError(f"{found}; give a model's folder or Hub id")
    check_plain_folder(name)
    refuse_adapter(name, revision)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"{name} holds no config.json, so it is not a transformers model; give a model's folder or Hub id"
        )
    # Damaged files and devices that are not there raise whatever the library that meets them first raises.
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except Exception as error:
        raise ValueError(f"cannot load a model from {name!r}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model ({config.model_type}); supported are decoder-only causal language "
            "models"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{name} is not a causal language model (its model_type is {config.model_type!r}); give one that "
            "AutoModelForCausalLM loads"
        )
    saved = config.architectures or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if saved and known.isdisjoint(saved) and not any(head in architecture for architecture in saved for head in HEADS):
        # transformers would load it with an output head of random numbers.
        raise ValueError(
            f"{name} was saved without the output head of a causal language model (its architecture is "
            f"{', '.join(saved)}); give one that was saved with it"
        )
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:
        raise ValueError(f"cannot load the tokenizer of {name!r}: {_first_line(error)}") from error
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind, device_map=device_map, revision=revision)
    except Exception as error:
        raise ValueError(f"cannot load {name!r}: {_first_line(error)}") from error
    return model.eval(), tokenizer


def load_onto(
    model: Any, tokenizer: Any, folders: Sequence[Path], allow_resize: bool = False, trust: bool = False
) -> Any:
    """The base with erasures that were made before, all of them on; their tokens are added to the tokenizer.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        folders: Where they were saved.
        allow_resize: Let the vocabulary grow by the rows of erasures for which it had grown.
        trust: Load what the guard refuses.

    Raises:
        ValueError: The guard refuses one, one was made for another base or cannot be loaded, or two cannot be on
            together.
    """
    from peft import PeftModel

    from ..hub.read import local_folder, read_config
    from ..tuner import align_tokenizer, guarded, set_active

    places = [local_folder(folder) if trust else guarded(folder, model) for folder in folders]
    configs = [read_config(str(place)) for place in places]
    if allow_resize:
        resized_for(model, configs)
    carrying: Any = None
    for number, (folder, place) in enumerate(zip(folders, places, strict=True), start=1):
        try:
            if carrying is None:
                carrying = PeftModel.from_pretrained(model, str(place))
            else:
                carrying.load_adapter(str(place), f"erasure-{number}")
            align_tokenizer(tokenizer, carrying)
        except Exception as error:
            raise ValueError(f"cannot load the erasure in {folder}: {_first_line(error)}") from error
    set_active(carrying, list(carrying.peft_config))
    return carrying.eval()


def resized_for(model: Any, configs: Sequence[Any]) -> None:
    """Let the vocabulary grow by the rows of erasures for which it had grown."""
    from ..engine.spare_row import resize_vocabulary

    needed = max((token_id for config in configs for token_id, _ in config.tokens), default=-1) + 1
    if needed > model.get_input_embeddings().weight.shape[0]:
        resize_vocabulary(model, needed)


def _must_be_a_path(name: str) -> bool:
    """Whether it cannot be a Hub id: a name, or an owner and a name, without dots or other marks in front."""
    return name[:1] in "./~" or name.count("/") > 1 or "\\" in name


def _first_line(error: Exception) -> str:
    lines = str(error).split("\n")
    text = " ".join(" ".join(lines).split()) if lines[0].rstrip().endswith(":") else lines[0].strip()
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
