"""Kinds of values from outside (a name, a count, a digest), and holding a value against what it must be.

pydantic is imported when the first of these is needed, so this module is imported inside functions if a command must
answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from .plain import JsonError, parse_json

LONGEST_TEXT = 4096
# What 32 bits hold; whether a number makes sense is said later, with a reason of its own.
LARGEST = 2**31 - 1
# The residual width of the widest open models. A rank beyond the width adds nothing to an edit.
MAX_RANK = 16_384
# Four times the widest vocabulary of an open causal language model, 262,144 rows.
MAX_TOKEN_ID = (1 << 20) - 1
MAX_LAYER = 99_999
MAX_TEXT = 512
MAX_TOKEN = 64
# How tokenizers write tokens that stand for no text: <|unused_1|>, [UNL], >>TITLE<<, |||EMAIL|||, ▁<MID>.
MARK = re.compile(r"▁?[<\[{|>]\S*\w\S*[>\]}|<]")
SHOWN = 5
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
Found = TypeVar("Found", bound="Foreign")


def _one_line(text: str) -> str:
    if found := UNPRINTABLE.search(text):
        raise InputError(f"it holds the control character {found[0]!r}")
    return text


def is_line(text: str) -> bool:
    """Whether a text is one line without control characters, and can be written at all."""
    return not UNPRINTABLE.search(text) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _clean(text: str) -> str:
    if found := FORBIDDEN.search(text):
        raise InputError(f"it holds the control character {found[0]!r}")
    return text


def is_mark(text: Any) -> bool:
    """Whether a text can be that of a token which stands for no text, as [UNL] does.

    An ordinary word must not be one: a special token is left out of all decoded text.
    """
    return isinstance(text, str) and len(text) <= MAX_TOKEN and text.isprintable() and bool(MARK.fullmatch(text))


def _mark(text: str) -> str:
    if not is_mark(text):
        raise InputError("it is no mark")
    return text


def _pair(pair: Any) -> Any:
    if len(pair) != 2 or not isinstance(pair[0], int) or not isinstance(pair[1], str):
        raise InputError("it is no pair of an id and a mark")
    return pair


# A name or another short text in one line; pydantic itself refuses half characters (surrogates).
Line = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_one_line)]
Name = Annotated[Line, Field(min_length=1, max_length=MAX_TEXT)]
Text = Annotated[str, AfterValidator(_clean)]
Mark = Annotated[str, AfterValidator(_mark)]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Field(ge=0)]
Rank = Annotated[int, Field(ge=1, le=LARGEST)]
Names = list[Name] | set[Name] | tuple[Name, ...]
Pair = Annotated[list[TokenId | Mark] | tuple[TokenId, Mark], AfterValidator(_pair)]
Layer = Annotated[int, Field(ge=-MAX_LAYER, le=MAX_LAYER)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
Labelled = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Foreign(BaseModel):
    """A value from outside: nothing is converted, and keys that are not named are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


def checked(kind: type[Found], value: Any, what: str) -> Found:
    """A value as what it should be.

    Args:
        kind: What it should be.
        value: The value, as JSON gives it.
        what: What an error is to say of it: `"it is no record of an erasure"`.

    Raises:
        InputError: Says where and why it is not that.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{what}: {problems(error)}") from None


def parsed(kind: type[Found], text: str, what: str) -> Found:
    """A JSON text as what it should be; see [`checked`].

    Raises:
        InputError: It is no JSON, or says something else.
    """
    try:
        return checked(kind, parse_json(text), what)
    except JsonError as error:
        raise InputError(f"{what}: {error}") from None


def problems(error: ValidationError) -> str:
    """What pydantic found, in one line, without the values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in found[:SHOWN]]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(lines)[:1000] + more


def wrong_fields(kind: type[Foreign], values: Mapping[str, Any]) -> list[str]:
    """The names of the fields among `values` that hold what they must not, in the order in which they stand there."""
    try:
        kind.model_validate({name: value for name, value in values.items() if isinstance(name, str)})
    except ValidationError as error:
        found = {each["loc"][0] for each in error.errors(include_url=False, include_context=False, include_input=False)}
        return [name for name in values if name in found]
    return []
