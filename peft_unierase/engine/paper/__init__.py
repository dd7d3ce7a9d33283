"""Recipe `paper`: UniErase as published (arXiv 2505.15674), both stages, batched and in closed form."""

from .recipe import PaperOutcome, run_paper
from .settings import PaperSettings

__all__ = ["PaperOutcome", "PaperSettings", "run_paper"]
