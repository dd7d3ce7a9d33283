"""The guard: what a stranger's erasure holds, whether it may be loaded, and loading it."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ..adapter.model import UniEraseModel
from ..adapter.peft_type import METHOD, unierase_peft_type
from .config import UniEraseConfig
from .findings import Finding, GuardError
from .inspect import Inspection, inspect_folder
from .load import load

__all__ = ["Finding", "GuardError", "Inspection", "UniEraseConfig", "inspect_folder", "load", "register"]


def register() -> None:
    """Register config and tuner with PEFT. Idempotent, so that a reload of the package does no harm."""
    if unierase_peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=METHOD, config_cls=UniEraseConfig, model_cls=UniEraseModel)
