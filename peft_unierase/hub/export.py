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

UNTIED = "base"  # the folder of the untied base, in that of the LoRA


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
    untie: bool = False,
    device_map: str | None = None,
    trust: bool = False,
    written: Callable[[Path, Exported], None] | None = None,
) -> Exported:
    """Write saved erasures as one stock LoRA; see [`peft_unierase.merge`] for what is not named here.

    Args:
        erasures: Folders or Hub ids, one or several; several are fused into one.
        output: A new folder for the LoRA.
        layout: How the token's rows are written, `T` or `L`; by default the one that fits the base.
        base: Folder or Hub id of the base; the erasures name their own.
        untie: Also write the base to `base/` in the folder, with a head of its own. The LoRA fits it too. It is for
            programs that have one matrix for a tied embedding and head, such as llama.cpp.
        device_map: Passed on to transformers.
        trust: Export what the guard refuses.
        written: Called with the place where all of it is, just before that becomes the folder.

    Raises:
        GuardError: The guard refuses one.
        ValueError: One is no erasure or cannot be put that way, they are not of one base, something is in `output`,
            or the base to untie has no tied embeddings.
        OSError: Writing failed; nothing is written.
    """
    output = Path(output)
    check_new(output)
    from ..adapter.lora import default_layout, save_lora

    model, tokenizer, base = on_their_base(erasures, base, "float32", device_map, trust)
    tied = default_layout(model) == "L"
    if untie and not tied:
        raise InputError(
            f"`untie` (on the command line --untie) is set, and {base} has a head of its own already; leave it out"
        )
    layout = layout or default_layout(model)
    exported: Exported

    def write(place: Path) -> None:
        nonlocal exported
        exported = Exported(base, layout, save_lora(model, place, layout=layout).r)
        tokenizer.save_pretrained(place)
        if untie:
            untied = _untied(base, device_map)
            untied.save_pretrained(place / UNTIED)
            tokenizer.save_pretrained(place / UNTIED)
        if written is not None:
            written(place, exported)

    write_folder(output, write)
    return exported


def _untied(base: str, device_map: str | None) -> Any:
    """A base with tied embeddings as it was saved, with a copy of the embedding as its head."""
    from torch import nn

    model, _ = load_base(base, "auto", device_map)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return model
