"""Settings that make no sense are refused by name, before anything is done with them."""

from __future__ import annotations

from typing import Any

from ..errors import InputError


def check_at_least(least: float, settings: Any, *names: str) -> None:
    """Refuse a setting below `least`.

    Raises:
        ValueError: Names it, and the value it had.
    """
    for name in names:
        if not getattr(settings, name) >= least:
            raise InputError(f"{name} must be at least {least}, got {getattr(settings, name)!r}")


def check_positive(settings: Any, *names: str) -> None:
    """Refuse a setting that is not greater than 0.

    Raises:
        ValueError: Names it, and the value it had.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise InputError(f"{name} must be greater than 0, got {getattr(settings, name)!r}")
