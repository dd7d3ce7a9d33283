"""A model with something before it, such as a system prompt or a filter, that is not in its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Deployed(nn.Module):
    """A causal language model as its operator serves it; whatever is not said here, the model itself answers.

    A copy is the model alone: whoever has the weights need not keep what stands before them. Attacks on weights are run
    on that model (see `measures.py`).

    Args:
        model: The model, which stays as it is.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.model, memo)

    def forward(self, *args: Any, **told: Any) -> Any:
        with self.at_work():
            return self.model(*args, **told)

    def generate(self, *args: Any, **told: Any) -> Any:
        with self.at_work():
            return self.model.generate(*args, **told)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Stand before every call of the model, by hooks on it."""
        raise NotImplementedError
        yield
