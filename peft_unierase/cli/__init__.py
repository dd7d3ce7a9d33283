"""The `unierase` command. It imports everything and nothing imports it; heavy imports wait until a command runs."""

from .app import main

__all__ = ["main"]
