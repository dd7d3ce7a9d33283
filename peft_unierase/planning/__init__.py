"""The plan: what to erase and what to keep, asked of the model itself before anything is erased."""

from .run import Plan, PlannedFact, plan

__all__ = ["Plan", "PlannedFact", "plan"]
