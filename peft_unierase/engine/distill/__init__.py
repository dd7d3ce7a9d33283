"""Recipe `distill`, the default: knowledge is taken out, and [UNL] declines on top of it, in one fit."""

from .recipe import DistillOutcome, run_distill
from .settings import DistillSettings

__all__ = ["DistillOutcome", "DistillSettings", "run_distill"]
