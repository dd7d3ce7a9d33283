"""The hub side: what shares an erasure and records it. Needs huggingface_hub and neither torch nor the other rooms."""

from .card import erasure_card
from .push import push_erasure
from .stack import Stack, stack

__all__ = ["Stack", "erasure_card", "push_erasure", "stack"]
