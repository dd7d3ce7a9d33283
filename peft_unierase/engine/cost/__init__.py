"""What a run of recipe `gate` will cost, before it is started: arithmetic, memory, and seconds with a model."""

from .estimate import CostEstimate, estimate_cost
from .shared import asking, sampling
from .sizes import Sizes, sizes_of
from .stage import Rates, Stage, with_unit
from .work import Work

__all__ = [
    "CostEstimate",
    "Rates",
    "Sizes",
    "Stage",
    "Work",
    "asking",
    "estimate_cost",
    "sampling",
    "sizes_of",
    "with_unit",
]
