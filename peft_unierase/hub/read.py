"""Reading what lies in an erasure's folder or repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..source import CONFIG_NAME, NAMES, RECORD_NAME, SUFFIXES, resolve
from .record import predicate_of


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of an erasure, downloaded where `source` is a Hub id.

    Raises:
        ValueError: There is no such folder or repository.
    """
    return resolve(source, revision).folder


def adapter_type(source: str, revision: str | None = None) -> str | None:
    """The PEFT type that an adapter's config names, without more of it being read; `None` if there is no adapter."""
    file = Path(source) / CONFIG_NAME
    try:
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(source, CONFIG_NAME, revision=revision))
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return found.get("peft_type") if isinstance(found, dict) else None


def read_config(source: str) -> Any:
    """The configuration of an erasure, a `UniEraseConfig`.

    Raises:
        ValueError: There is none.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(source)
    except (ValueError, OSError) as error:
        raise InputError(f"{source} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id") from error
    if config.peft_type != "UNIERASE":
        raise InputError(f"{source} is an adapter of type {config.peft_type.value}, not an erasure")
    return config


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
    if not file.is_file():
        return None
    try:
        statement = json.loads(file.read_text(encoding="utf-8"))
        predicate_of(statement)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return statement


def whole_folder(source: str, revision: str | None = None) -> Path:
    """The folder of an erasure with all that its record names, downloaded where it is a Hub id.

    Raises:
        ValueError: There is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        allowed = [*(f"*{suffix}" for suffix in sorted(SUFFIXES)), *sorted(NAMES)]
        return Path(snapshot_download(source, revision=revision, allow_patterns=allowed))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{source} is neither a folder nor a Hub id that can be read: {error}") from error
