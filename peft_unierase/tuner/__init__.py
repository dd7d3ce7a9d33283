"""The tuner: what a consumer of an erasure loads. It knows nothing of how erasures are made, judged or shared."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .active import align_tokenizer, load, set_active, toggle
from .config import UniEraseConfig
from .edit import EditLayer
from .guard import Finding, GuardError, Inspection, guarded, inspect_folder
from .model import UniEraseModel
from .peft_type import METHOD, unierase_peft_type
from .token_row import InputRowLayer, OutputRowLayer

__all__ = [
    "EditLayer",
    "Finding",
    "GuardError",
    "InputRowLayer",
    "Inspection",
    "OutputRowLayer",
    "UniEraseConfig",
    "UniEraseModel",
    "align_tokenizer",
    "guarded",
    "inspect_folder",
    "load",
    "register",
    "set_active",
    "toggle",
]


def register() -> None:
    """Register config and tuner with PEFT. Idempotent, so that a reload of the package does no harm."""
    if unierase_peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=METHOD, config_cls=UniEraseConfig, model_cls=UniEraseModel)
