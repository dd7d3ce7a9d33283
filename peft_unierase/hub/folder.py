"""The folder that holds an erasure: written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..errors import InputError, in_one_line
from ..records.record import write_record
from ..storage.digests import sha256
from ..storage.names import CARD_NAME, LORA_NAME, REPORT_NAME, WEIGHTS_NAME
from ..storage.output import check_new, check_writable, holds_erasure, write_folder, write_json
from ..storage.plain import read_text
from ..storage.whole import check_name, tidy


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
            raise InputError(
                f"{folder} already holds an erasure; name a new folder, or replace it: `overwrite=True` (on the "
                "command line --overwrite)"
            )
        _read_card(folder)
        check_writable(folder)
    else:
        check_new(folder)


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
        raise InputError(
            f"{card} cannot be read ({in_one_line(error)}); mend it, or take it out to have a new one"
        ) from error
    return text


def save_erasure(
    model: Any,
    tokenizer: Any,
    folder: Path,
    record: dict[str, Any],
    card: str,
    overwrite: bool = False,
    adapter: str = "default",
    facts: Callable[[str], Mapping[str, Any]] | None = None,
    written: Callable[[Path], None] | None = None,
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
        written: Called with the place where all of it is, just before that becomes the folder.

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
            write_json(place / REPORT_NAME, record["check"])
        told = facts(sha256(place / WEIGHTS_NAME)) if facts else None
        write_record(place, {**record, "facts": told} if told else record)
        if written is not None:
            written(place)

    write_folder(folder, write, overwrite)
