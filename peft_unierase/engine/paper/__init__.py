"""Recipe `paper`: UniErase as published (arXiv 2505.15674), both stages, batched and in closed form."""

from .early_layers import early_layers
from .run import PaperOutcome, run_paper
from .settings import PaperSettings

__all__ = ["PaperOutcome", "PaperSettings", "early_layers", "run_paper"]
