"""Loading a base model by its name, with errors that say what was wrong with it. Code that it brings is not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.names import MODEL_NAME
from ..storage.plain import check_plain_folder
from ..storage.source import commit_of
from .adapters import refuse_adapter

DTYPES = ("auto", "float32", "bfloat16", "float16")
OWN_CODE = (
    "it needs Python code of its own, and no command runs such code. Give a model that transformers has a class for; "
    "or read the code, load model and tokenizer in Python with trust_remote_code=True, and hand them to "
    "`peft_unierase.erase`, `peft_unierase.load` or `peft_unierase.check`"
)
HEADS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")


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
    if path.is_dir() and not (path / MODEL_NAME).is_file():
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
