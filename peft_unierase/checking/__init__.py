"""The check: what judges an erasure. It imports neither the engine nor the hub side."""

from .answers import Answer, Figures, answer_questions, figures
from .attacks import ATTACKS
from .attacks.attack import Attack, Found, NotApplicable
from .case import Case
from .report import AttackResult, CheckReport
from .run import check
from .target import Target
from .verdict import LEVELS, Thresholds, Verdict

__all__ = [
    "ATTACKS",
    "LEVELS",
    "Answer",
    "Attack",
    "AttackResult",
    "Case",
    "CheckReport",
    "Figures",
    "Found",
    "NotApplicable",
    "Target",
    "Thresholds",
    "Verdict",
    "answer_questions",
    "check",
    "figures",
]
