"""Loading a base model for a command, with errors that say what was wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..guard.config import UniEraseConfig
from ..storage.plain import check_plain_folder
from ..storage.source import commit_of
from .adapters import refuse_adapter
from .output import say

DTYPES = ("auto", "float32", "bfloat16", "float16")
OWN_CODE = (
    "it needs Python code of its own, and no command runs such code. Give a model that transformers has a class for; "
    "or read the code, load model and tokenizer in Python with trust_remote_code=True, and hand them to "
    "`peft_unierase.erase`, `peft_unierase.load` or `peft_unierase.check`"
)
HEADS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")


def prepare_libraries() -> None:
    """Register the tuner, and let the libraries speak as the command does: one line a warning, no bars of their own."""
    from transformers.utils import logging

    from ..guard import register

    register()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")


def load_base(name: str, dtype: str = "float32", device_map: str | None = None, revision: str | None = None) -> Any:
    """Model and tokenizer of a folder or Hub id, all of one commit. Code that it brings is not run.

    Raises:
        ValueError: Unknown dtype, no such model, an adapter in its place or beside it, not a causal language model, one
            that needs code of its own, or files that cannot be loaded.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = Path(name)
    if path.is_file() or (not path.exists() and _must_be_a_path(name)):
        found = f"{name} is a file" if path.is_file() else f"no such folder: {name}"
        raise InputError(f"{found}; give a model's folder or Hub id")
    check_plain_folder(name)
    revision = commit_of(name, revision)
    refuse_adapter(name, revision)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{name} holds no config.json, so it is not a transformers model; give a model's folder or Hub id"
        )
    told: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    # Damaged files and devices that are not there raise whatever the library that meets them first raises.
    try:
        config = AutoConfig.from_pretrained(name, **told)
    except Exception as error:
        raise InputError(f"cannot load a model from {name!r}: {_why(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder model ({config.model_type}); supported are decoder-only causal language "
            "models"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{name} is not a causal language model (its model_type is {config.model_type!r}); give one that "
            "AutoModelForCausalLM loads"
        )
    saved = config.architectures or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if saved and known.isdisjoint(saved) and not any(head in architecture for architecture in saved for head in HEADS):
        # transformers would load it with an output head of random numbers.
        raise InputError(
            f"{name} was saved without the output head of a causal language model (its architecture is "
            f"{', '.join(saved)}); give one that was saved with it"
        )
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **told)
    except Exception as error:
        raise InputError(f"cannot load the tokenizer of {name!r}: {_why(error)}") from error
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=kind, device_map=device_map, **told)
    except Exception as error:
        raise InputError(f"cannot load {name!r}: {_why(error)}") from error
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

    from ..adapter.active import align_tokenizer, set_active
    from ..guard.inspect import passed
    from ..records.read import read_config
    from ..storage.source import local_folder

    found = [] if trust else [passed(folder, model) for folder in folders]
    places = [each.folder for each in found] or [local_folder(folder) for folder in folders]
    configs = [UniEraseConfig.of(each) for each in found] or [read_config(str(place)) for place in places]
    for config in configs:
        config.trusted = trust
    if allow_resize:
        resized_for(model, configs)
    carrying: Any = None
    for number, (folder, place, config) in enumerate(zip(folders, places, configs, strict=True), start=1):
        try:
            if carrying is None:
                carrying = PeftModel.from_pretrained(model, str(place), config=config)
            else:
                carrying.add_adapter(f"erasure-{number}", config)
                carrying.load_adapter(str(place), f"erasure-{number}")
            align_tokenizer(tokenizer, carrying)
        except Exception as error:
            raise InputError(f"cannot load the erasure in {folder}: {_first_line(error)}") from error
    set_active(carrying, list(carrying.peft_config))
    return carrying.eval()


def resized_for(model: Any, configs: Sequence[Any]) -> None:
    """Let the vocabulary grow by the rows of erasures for which it had grown.

    Raises:
        ValueError: The base is not the one that they were made for, or would have to grow by many rows; it is as it
            was.
    """
    from ..adapter.fingerprint import check_base
    from ..engine.spare_row import resize_vocabulary
    from ..guard.base import MAX_GROWTH

    needed = max((token_id for config in configs for token_id, _ in config.tokens), default=-1) + 1
    rows = model.get_input_embeddings().weight.shape[0]
    if needed <= rows:
        return
    for config in configs:
        check_base(model, config)
    if needed > rows + MAX_GROWTH:
        raise InputError(
            f"an erasure has its token on row {needed - 1:,} and the base has {rows:,} rows, more than {MAX_GROWTH} "
            "fewer: it was made for another base"
        )
    resize_vocabulary(model, needed)


def _must_be_a_path(name: str) -> bool:
    """Whether it cannot be a Hub id: a name, or an owner and a name, without dots or other marks in front."""
    return name[:1] in "./~" or name.count("/") > 1 or "\\" in name


def _why(error: Exception) -> str:
    """What an error says, and of one about a model's own code what to do."""
    return OWN_CODE if "trust_remote_code" in str(error) else _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).split("\n")
    text = " ".join(" ".join(lines).split()) if lines[0].rstrip().endswith(":") else lines[0].strip()
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
