"""The engine: what makes an erasure. It imports nothing of the check, the plan, the records, the hub or the command."""

from .distill import DistillSettings
from .erase import RECIPES, check_recipe, erase
from .erasure import Erasure
from .paper import PaperSettings

__all__ = ["RECIPES", "DistillSettings", "Erasure", "PaperSettings", "check_recipe", "erase"]
