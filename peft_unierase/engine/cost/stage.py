"""The cost of a stage, and how fast the machine at hand is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .sizes import Sizes

LONG, MOMENT = 1.0, 0.3  # seconds: of a trial that is not made again, and of all goes of one that is


@dataclass(frozen=True)
class Stage:
    """Cost of one stage.

    Attributes:
        name: As the run calls it.
        batched: Operations in forward and backward passes of whole batches, and in moments of keys, in fp32.
        stepwise: Operations in passes of one token a row.
        solving: Operations in factorising moments, in fp64.
        drawn: Random numbers drawn, one after the other on the CPU.
        memory: Bytes needed beside the model, about.
    """

    name: str
    batched: float = 0.0
    stepwise: float = 0.0
    solving: float = 0.0
    drawn: float = 0.0
    memory: float = 0.0

    @property
    def flops(self) -> float:
        return self.batched + self.stepwise + self.solving


@dataclass(frozen=True)
class Rates:
    """Operations a second that the machine at hand reached, and numbers drawn, by kind; see `Stage`."""

    batched: float
    stepwise: float
    solving: float
    drawn: float

    def seconds(self, stage: Stage) -> float:
        passes = stage.batched / self.batched + stage.stepwise / self.stepwise
        return passes + stage.solving / self.solving + stage.drawn / self.drawn


def measured_rates(model: Any, sizes: Sizes) -> Rates:
    """What the model's machine reaches, tried for a moment.

    It has 512 tokens at once, 128 rows of one token, a factor to find, and a million random numbers to draw.
    """
    import torch

    device = model.get_input_embeddings().weight.device

    def passing(rows: int, length: int) -> float:
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        took = _timed(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.sum().item())
        return sizes.forward(rows * length, length, sizes.layers, rows) / took

    count = 768
    matrix = torch.eye(count, dtype=torch.float64, device=device)
    factorised = _timed(lambda: torch.linalg.cholesky(matrix).sum().item())
    generator = torch.Generator().manual_seed(0)
    drew = _timed(lambda: torch.randn(10**6, generator=generator))
    with torch.no_grad():
        return Rates(passing(16, 32), passing(128, 1), count**3 / 3 / factorised, 10**6 / drew)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the fastest go of as many as fit into a moment, three at the least; of one alone where that is long.

    The first warms up, and on a busy machine most of them are disturbed.
    """
    times: list[float] = []
    while not times or (times[0] < LONG and (len(times) < 3 or sum(times) < MOMENT)):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def with_unit(value: float, unit: str) -> str:
    """`1.5 GB`, `320 TFLOP`, in powers of a thousand."""
    power = min(int(math.log10(max(value, 1)) / 3), 6)
    return f"{value / 1000**power:.3g} {'kMGTPE'[power - 1] if power else ''}{unit}"
