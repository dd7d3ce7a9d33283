"""Recipe `gate`, the default: one steer vector, and in each edited layer one row that detects when to add it."""

from .run import GateOutcome, run_gate
from .settings import GateSettings

__all__ = ["GateOutcome", "GateSettings", "run_gate"]
