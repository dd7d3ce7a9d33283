"""Reading what lies in an erasure's folder or repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, UniEraseError, in_one_line
from ..storage.names import CONFIG_NAME, RECORD_NAME
from ..storage.plain import JsonError, read_json
from ..storage.source import hub_file
from .record import predicate_of


def adapter_type(source: str, revision: str | None = None) -> str | None:
    """The PEFT type that an adapter's config names, without more of it being read; `None` if there is no adapter.

    Raises:
        ValueError: There is a config, and it is none.
        OSError: It cannot be read.
    """
    from ..storage.schema import AnyAdapter
    from ..storage.values import checked

    file = Path(source) / CONFIG_NAME if Path(source).is_dir() else hub_file(source, CONFIG_NAME, revision)
    if file is None or not os.path.lexists(file):
        return None
    try:
        return checked(AnyAdapter, read_json(file), f"{file} is no config of an adapter").peft_type
    except JsonError as error:
        raise InputError(f"{file} is no JSON: {error}") from error


def read_config(source: str) -> Any:
    """The configuration of an erasure, a `UniEraseConfig`.

    Raises:
        ValueError: There is none.
    """
    from peft import PeftConfig

    from ..errors import shown

    kind = adapter_type(source)
    if kind is None:
        raise InputError(f"{source} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id")
    if kind != "UNIERASE":
        raise InputError(f"{source} is an adapter of type {shown(kind)}, not an erasure")
    try:
        return PeftConfig.from_pretrained(source)  # which does not ask the guard
    except UniEraseError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # keys that no config has are left out by PEFT
        why = in_one_line(error, 500)
        raise InputError(f"{Path(source) / CONFIG_NAME} is no config of an erasure: {why}; get it anew") from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the record of an erasure says of it, the predicate of `erasure.json`; `None` where it has none.

    Raises:
        ValueError: It is there and cannot be read.
    """
    statement = read_statement(folder)
    return statement and predicate_of(statement)


def read_statement(folder: Path) -> dict[str, Any] | None:
    """`erasure.json` as it is; `None` where there is none.

    Raises:
        ValueError: It is there and cannot be read, or is no record of an erasure.
    """
    file = folder / RECORD_NAME
    if not os.path.lexists(file):
        return None
    try:
        statement: dict[str, Any] = read_json(file)
        predicate_of(statement)
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return statement


def grown(record: Any) -> bool:
    """Whether a base's vocabulary had grown for an erasure, or for one of those in a stack, as its record says."""
    if not isinstance(record, Mapping):
        return False
    if isinstance(parts := record.get("fused"), Mapping):
        return any(map(grown, parts.values()))
    token = record.get("token")
    return isinstance(token, Mapping) and token.get("resized") is True
