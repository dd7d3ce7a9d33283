"""The engine: what makes an erasure. It imports the tuner, and nothing of the check, the hub side or the command."""

from .distill import DistillSettings
from .erase import RECIPES, check_recipe, erase
from .erasure import Erasure, ErasureWarning
from .paper import PaperSettings
from .sample_files import Samples, read_samples
from .scope import SCOPES, check_scope, plan_scope

__all__ = [
    "RECIPES",
    "SCOPES",
    "DistillSettings",
    "Erasure",
    "ErasureWarning",
    "PaperSettings",
    "Samples",
    "check_recipe",
    "check_scope",
    "erase",
    "plan_scope",
    "read_samples",
]
