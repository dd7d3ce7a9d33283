"""What each field of a config may hold, so that a wrong value is refused by name, in code and from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..storage.schema import MAX_RANK, ConfigOfPeft, ErasureConfig, is_mark, wrong_fields

__all__ = ["MAX_RANK", "OF_A_PART", "OF_PEFT", "OWN", "is_mark", "wrong_values"]

# What each must be, in words.
OWN = {name: str(field.description) for name, field in ErasureConfig.model_fields.items()}
OF_PEFT = {name: str(field.description) for name, field in ConfigOfPeft.model_fields.items()}
# What an erasure that was fused into another has values of its own for.
OF_A_PART = (
    *("r", "rank_pattern", "target_modules", "token_id", "token", "spare_tokens"),
    *("base_fingerprint", "base_dtype"),
)


def wrong_values(values: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The fields among `values` that hold what they must not, each with what it must be and the value."""
    wanted = {**OWN, **OF_PEFT}
    wrong = {*wrong_fields(ErasureConfig, values), *wrong_fields(ConfigOfPeft, values)}
    return [(name, wanted[name], values[name]) for name in values if name in wrong]
