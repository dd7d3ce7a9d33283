"""The plan: what to erase and what to keep, asked of the model first, and erasing in growing steps."""

from .ramp import Step, ramp
from .run import Plan, PlannedFact, plan

__all__ = ["Plan", "PlannedFact", "Step", "plan", "ramp"]
