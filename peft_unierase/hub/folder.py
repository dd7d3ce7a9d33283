"""The folder that holds an erasure: written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..errors import InputError
from ..storage.digests import sha256
from ..storage.plain import read_json, read_text
from ..storage.source import CARD_NAME, CONFIG_NAME, LORA_NAME, RECORD_NAME, REPORT_NAME, WEIGHTS_NAME
from ..storage.whole import check_name, hides, tidy, whole_folder
from .record import statement

OS_ERROR = re.compile(r"\(os error (\d+)\)")


def check_output(folder: Path, overwrite: bool = False) -> None:
    """Refuse a folder that an erasure must not be written to, before any work is done.

    Raises:
        ValueError: It is no folder, it holds something else, it holds an erasure and `overwrite` is false or its card
            cannot be read, its name is too long, another process is writing to it, or it cannot be written to.
    """
    check_name(folder)
    tidy(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not holds_erasure(folder):
            raise InputError(f"{folder} holds something else than an erasure; name a new folder, or empty this one")
        if not overwrite:
            raise InputError(f"{folder} already holds an erasure; name a new folder, or pass --overwrite to replace it")
        _read_card(folder)
        _check_writable(folder)
    else:
        check_new(folder)


def check_new(folder: Path) -> None:
    """Refuse a folder that something is in, before any work is done.

    Raises:
        ValueError: There is, it is no folder, its name is too long, another process is writing to it, or it cannot be
            written to.
    """
    check_name(folder)
    tidy(folder)
    _check_folder(folder, "name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there already; name a new folder")
    _check_writable(folder)


def check_place(folder: Path) -> None:
    """Refuse a folder that no files can be added to, before any work is done.

    Raises:
        InputError: It is no folder, its name is too long, or it cannot be written to.
    """
    check_name(folder)
    _check_folder(folder, "name a folder")
    _check_writable(folder)


def _check_folder(folder: Path, advice: str) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is {'a file' if folder.is_file() else 'something else than a folder'}; {advice}")


def _read_card(folder: Path) -> str | None:
    """The card that the owner may have edited."""
    card = folder / CARD_NAME
    try:
        text = read_text(card) if card.is_file() else None
        if text is not None:
            ModelCard(text, ignore_metadata_errors=True)
    except OSError:
        raise
    except Exception as error:  # of its bytes, and of whatever reads its metadata
        why = " ".join(str(error).split())
        raise InputError(f"{card} cannot be read ({why}); mend it, or take it out to have a new one") from error
    return text


def _check_writable(folder: Path) -> None:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} cannot be written to; name another folder")


def holds_erasure(folder: Path) -> bool:
    """Whether an erasure was saved in a folder."""
    try:
        config = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("peft_type") == "UNIERASE"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Every error of the system as an `OSError` that names `path`; safetensors and tokenizers raise others."""
    try:
        yield
    except Exception as error:
        told = OS_ERROR.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        elsewhere = isinstance(error, OSError) and error.filename and not hides(path, error.filename)
        if code is None or elsewhere or isinstance(error, InputError):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def write_folder(folder: Path, write: Callable[[Path], None], replace: bool = False) -> None:
    """Write a folder whole or not at all.

    Args:
        folder: Where to.
        write: Called with a place to write to.
        replace: Replace a folder that is there.

    Raises:
        InputError: Another process is writing there, or has written there meanwhile.
        OSError: Writing failed; the folder is as it was.
    """
    with write_errors(folder), whole_folder(folder, replace) as place:
        write(place)
        readable = place.stat().st_mode & 0o666  # by whom the umask says, of which a new folder tells
        for file in place.rglob("*"):
            if file.is_file():
                file.chmod(readable)  # safetensors writes files that only their owner can read


def save_erasure(
    model: Any,
    tokenizer: Any,
    folder: Path,
    record: dict[str, Any],
    card: str,
    overwrite: bool = False,
    adapter: str = "default",
    facts: Callable[[str], Mapping[str, Any]] | None = None,
) -> None:
    """Save an erasure: adapter, the same as a stock LoRA, tokenizer with [UNL] in it, record, report and card.

    Args:
        model: The `PeftModel` with the erasure.
        tokenizer: Its tokenizer.
        folder: Where to.
        record: What was done and measured, without any text of the facts.
        card: Text of `README.md`.
        overwrite: Replace an erasure that is there; what its owner edited in the card stays.
        adapter: Name of the erasure in the model. It alone is saved, and not those that it was made on top of.
        facts: What goes into the record about the facts, by the SHA-256 of the weights.

    Raises:
        ValueError: See `check_output`.
        OSError: Writing failed; the folder is as it was.
    """
    from ..adapter.lora import save_lora
    from .repo_card import repo_card

    check_output(folder, overwrite)
    there = _read_card(folder)

    def write(place: Path) -> None:
        # PEFT would save both full matrices if it thought that the vocabulary had changed; the two rows are enough.
        model.save_pretrained(place, save_embedding_layers=False, selected_adapters=[adapter])
        if adapter != "default":  # which PEFT puts into a folder of its own
            for file in (place / adapter).iterdir():
                file.rename(place / file.name)
            (place / adapter).rmdir()
        tokenizer.save_pretrained(place)
        (place / CARD_NAME).write_text(repo_card(card, there=there), encoding="utf-8")
        save_lora(model, place / LORA_NAME, [adapter])
        if (record.get("check") or {}).get("verdict"):
            _write_json(place / REPORT_NAME, record["check"])
        told = facts(sha256(place / WEIGHTS_NAME)) if facts else None
        write_record(place, {**record, "facts": told} if told else record)

    write_folder(folder, write, overwrite)


def write_record(folder: Path, predicate: Mapping[str, Any]) -> None:
    """Write the Statement about the files that are in the folder."""
    _write_json(folder / RECORD_NAME, statement(folder, predicate))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
