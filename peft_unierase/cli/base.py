"""The libraries as a command needs them, and erasures on a base for the commands that take several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .output import say

if TYPE_CHECKING:
    from ..guard.load import Candidate


def prepare_libraries() -> None:
    """Register the tuner, and let the libraries speak as the command does: one line a warning, no bars of their own."""
    from transformers.utils import logging

    from ..guard import register

    register()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")


def load_onto(model: Any, tokenizer: Any, erasures: Sequence[Candidate], allow_resize: bool = False) -> Any:
    """The base with erasures that were made before, all of them on; their tokens are added to the tokenizer.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        erasures: What was found of them.
        allow_resize: Let the vocabulary grow by the rows of erasures for which it had grown.

    Raises:
        ValueError: The guard refuses one, one was made for another base or cannot be loaded, or two cannot be on
            together.
    """
    from ..adapter.active import align_tokenizer
    from ..guard.load import put_on

    names = ["default", *(f"erasure-{number}" for number in range(2, len(erasures) + 1))]
    carrying = put_on(model, dict(zip(names, erasures, strict=True)), allow_resize=allow_resize)
    align_tokenizer(tokenizer, carrying)
    return carrying
