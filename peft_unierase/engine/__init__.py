"""The engine: what makes an erasure. It imports the tuner, and nothing of the check, the hub side or the command."""

from .erase import check_recipe, erase
from .erasure import Erasure, ErasureWarning, GateSettings

__all__ = ["Erasure", "ErasureWarning", "GateSettings", "check_recipe", "erase"]
