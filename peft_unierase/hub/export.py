"""`export`: erasures as one stock LoRA, which peft loads without this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..lm.load import load_base
from ..storage.output import check_new, write_folder
from .merge import on_their_base

BASE_FOLDER = "base"


@dataclass(frozen=True)
class Exported:
    """A LoRA that erasures were written as.

    Attributes:
        base: What the base is called.
        layout: `T` or `L`; see `peft_unierase.adapter.lora`.
        rank: Of all its pairs.
    """

    base: str
    layout: str
    rank: int


def export(
    erasures: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    layout: str | None = None,
    base: str | None = None,
    with_base: bool = False,
    device_map: str | None = None,
    trust: bool = False,
    written: Callable[[Path, Exported], None] | None = None,
) -> Exported:
    """Write saved erasures as one stock LoRA; see [`peft_unierase.merge`] for what is not named here.

    Args:
        erasures: Folders or Hub ids, one or several; several are fused into one.
        output: A new folder for the LoRA.
        layout: How the token's rows are written, `T` or `L`; by default the one that fits the base, and `L` with
            `with_base`.
        base: Folder or Hub id of the base; the erasures name their own.
        with_base: Also write the base to `base/` in the folder, as it was saved, with a head of its own and with the
            tokens of the erasures. llama.cpp takes it together with the LoRA; it has one matrix for a tied embedding
            and head.
        device_map: Passed on to transformers.
        trust: Export what the guard refuses.
        written: Called with the place where all of it is, just before that becomes the folder.

    Raises:
        GuardError: The guard refuses one.
        ValueError: One is no erasure or cannot be put that way, they are not of one base, something is in `output`,
            or the base lacks a vocabulary row that one of them adds and `with_base` is set.
        OSError: Writing failed; nothing is written.
    """
    output = Path(output)
    check_new(output)
    from ..adapter.lora import default_layout, save_lora

    model, tokenizer, base = on_their_base(erasures, base, "float32", device_map, trust)
    layout = layout or ("L" if with_base else default_layout(model))
    plain = _with_own_head(base, device_map) if with_base else None
    if plain is not None and plain.config.vocab_size != model.config.vocab_size:
        raise InputError(
            f"`with_base` (on the command line --with-base) is set, and {base} lacks the vocabulary row of an erasure; "
            "merge it instead"
        )
    exported: Exported

    def write(place: Path) -> None:
        nonlocal exported
        exported = Exported(base, layout, save_lora(model, place, layout=layout).r)
        tokenizer.save_pretrained(place)
        if plain is not None:
            plain.save_pretrained(place / BASE_FOLDER)
            tokenizer.save_pretrained(place / BASE_FOLDER)
        if written is not None:
            written(place, exported)

    write_folder(output, write)
    return exported


def _with_own_head(base: str, device_map: str | None) -> Any:
    """A base as it was saved. A tied one gets a copy of the embedding as its head."""
    from torch import nn

    model, _ = load_base(base, "auto", device_map)
    if getattr(model.config, "tie_word_embeddings", False):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model
