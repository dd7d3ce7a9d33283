"""Reading what lies in an erasure's folder or repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .folder import CONFIG_NAME
from .record import RECORD_NAME, predicate_of


def read_config(source: str) -> Any:
    """The configuration of an erasure, a `UniEraseConfig`.

    Raises:
        ValueError: There is none.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"{source} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id") from error
    if config.peft_type != "UNIERASE":
        raise ValueError(f"{source} is an adapter of type {config.peft_type.value}, not an erasure")
    return config


def read_record(source: str) -> dict[str, Any] | None:
    """What the record of an erasure says of it, the predicate of `erasure.json`; `None` where it has none.

    Raises:
        ValueError: It is there and cannot be read.
    """
    statement = read_statement(source)
    return statement and predicate_of(statement)


def read_statement(source: str) -> dict[str, Any] | None:
    """`erasure.json` as it is; `None` where there is none.

    Raises:
        ValueError: It is there and cannot be read, or is no record of an erasure.
    """
    file = Path(source) / RECORD_NAME
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            file = Path(hf_hub_download(source, RECORD_NAME))
        except EntryNotFoundError:
            return None
    if not file.is_file():
        return None
    try:
        statement = json.loads(file.read_text(encoding="utf-8"))
        predicate_of(statement)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{RECORD_NAME} of {source} cannot be read: {error}") from error
    return statement


def local_folder(source: str, revision: str | None = None) -> Path:
    """The folder of an erasure, downloaded where it is a Hub id.

    Raises:
        ValueError: There is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source} is neither a folder nor a Hub id that can be read: {error}") from error
