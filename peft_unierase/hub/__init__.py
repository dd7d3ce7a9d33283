"""Handing an erasure on: its folder and card, push, stack, merge, export."""

from .card import erasure_card
from .merge import merge
from .push import push_erasure
from .stack import Stack, stack

__all__ = ["Stack", "erasure_card", "merge", "push_erasure", "stack"]
