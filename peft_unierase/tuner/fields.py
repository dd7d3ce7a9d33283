"""What each field of a config may hold, so that a wrong value is refused by name, in code and from a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

# The residual width of the widest open models. A rank beyond the width adds nothing to an edit.
MAX_RANK = 16_384
# Four times the widest vocabulary of an open causal language model, 262,144 rows.
MAX_TOKEN_ID = (1 << 20) - 1
MAX_LAYER = 99_999
MAX_TEXT = 512
MAX_TOKEN = 64
# How tokenizers write tokens that stand for no text: <|unused_1|>, [UNL], >>TITLE<<, |||EMAIL|||, ▁<MID>.
MARK = re.compile(r"▁?[<\[{|>]\S*\w\S*[>\]}|<]")


def is_mark(text: Any) -> bool:
    """Whether a text can be that of a token which stands for no text, as [UNL] does.

    An ordinary word must not be one: a special token is left out of all decoded text.
    """
    return isinstance(text, str) and len(text) <= MAX_TOKEN and text.isprintable() and bool(MARK.fullmatch(text))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _whole(value) and value > 0


def _token_id(value: Any) -> bool:
    return _whole(value) and value <= MAX_TOKEN_ID


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _several(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping) and all(map(fits, value))


def _names(value: Any) -> bool:
    return _several(value, _text)


def _ranks(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_text(name) and _positive(value[name]) for name in value)


def _layer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_LAYER


def _spare(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _token_id(value[0]) and is_mark(value[1])


def _part(value: Any) -> bool:
    return isinstance(value, Mapping) and _text(value.get("name")) and all(map(_text, value))


# What each must be, and whether a value is that; `None` is taken care of by `wrong_values`.
_NAMES = ("None, a name, an expression or a list of names", lambda value: _text(value) or _names(value))
_LAYERS = ("None, a whole number or a list of them", lambda value: _layer(value) or _several(value, _layer))
_STRING = ("None or a text", lambda value: isinstance(value, str) and len(value) <= 8 * MAX_TEXT)
_BOOL = ("True or False", lambda value: isinstance(value, bool))
NEVER_NONE = ("r", "rank_pattern", "token", "spare_tokens", "parts", "init_weights", "inference_mode")
OWN: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a positive integer", _positive),
    "rank_pattern": ("a mapping of module names to positive integers", _ranks),
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_to_transform": _LAYERS,
    "layers_pattern": ("None, a name or a list of names", lambda value: isinstance(value, str) or _names(value)),
    "token_id": (f"None or a whole number from 0 to {MAX_TOKEN_ID:,}", _token_id),
    "token": (f"a mark such as [UNL] or <|unused_1|>, of at most {MAX_TOKEN} characters", is_mark),
    "spare_tokens": ("a list of [id, mark] pairs", lambda value: _several(value, _spare)),
    "parts": ("a list of mappings with a name each", lambda value: _several(value, _part)),
    "token_modules": ("None or a list of names", _names),
    "modules_to_save": ("None or a list of names", _names),
    "init_weights": _BOOL,
    "base_fingerprint": _STRING,
    "base_dtype": _STRING,
}
OF_PEFT: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "task_type": _STRING,
    "peft_type": _STRING,
    "auto_mapping": ("None or a mapping", lambda value: isinstance(value, Mapping)),
    "peft_version": _STRING,
    "base_model_name_or_path": _STRING,
    "revision": _STRING,
    "inference_mode": _BOOL,
}
# What an erasure that was fused into another has values of its own for.
OF_A_PART = (
    *("r", "rank_pattern", "target_modules", "token_id", "token", "spare_tokens"),
    *("base_fingerprint", "base_dtype"),
)


def wrong_values(values: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The fields among `values` that hold what they must not, each with what it must be and the value."""
    known = {**OWN, **OF_PEFT}
    return [
        (name, known[name][0], value)
        for name, value in values.items()
        if name in known and not (known[name][1](value) if value is not None else name not in NEVER_NONE)
    ]
