"""What a run of recipe `gate` will cost, before it is started: arithmetic, memory, and seconds with a model."""

from .estimate import CostEstimate, cost_of, estimate_cost
from .expected import expected_work
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
    "cost_of",
    "estimate_cost",
    "expected_work",
    "sampling",
    "sizes_of",
    "with_unit",
]
