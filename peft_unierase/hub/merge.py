"""`merge`: erasures in their base's weights, as a plain transformers model that needs nothing of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..records.record import file_digests
from ..records.restore import undo_file
from ..storage.names import CARD_NAME
from ..storage.output import check_new, write_errors, write_folder
from ..storage.whole import check_name, whole_file
from .card import merged_card


@dataclass(frozen=True)
class Merged:
    """A model that erasures were merged into.

    Attributes:
        base: What the base is called.
        names: What the erasures are called.
        files: SHA-256 of its files.
        undo: The way back, which `restore` takes; `None` if none was kept.
    """

    base: str
    names: Sequence[str]
    files: Mapping[str, str]
    undo: Path | None


def merge(
    erasures: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    undo: bool | str | Path = True,
    trust: bool = False,
    written: Callable[[Path, Merged], None] | None = None,
) -> Merged:
    """Merge saved erasures into their base and save a plain transformers model.

    Args:
        erasures: Folders or Hub ids, one or several.
        output: A new folder for the model.
        base: Folder or Hub id of the base; the erasures name their own.
        dtype: Load and save the base as `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` (as it was saved).
        device_map: Passed on to transformers.
        undo: Keep the way back, which brings back what was erased: among this user's records, or in a file that is
            named here. `False` keeps none.
        trust: Merge what the guard refuses.
        written: Called with the place where all of it is, just before that becomes the folder.

    Raises:
        GuardError: The guard refuses one.
        ValueError: One is no erasure, they are not of one base, or something is in `output`.
        OSError: Writing failed; nothing is written.

    Example:

        ```py
        >>> merge("org/erase-xyz", "model-without-xyz")
        >>> restore("model-without-xyz", "base-again")
        ```
    """
    output, kept = Path(output), None if isinstance(undo, bool) else Path(undo)
    check_new(output)
    if kept is not None:
        check_name(kept)
        if kept.is_dir():
            raise InputError(f"`undo` (on the command line --undo) is {kept}, a folder; name a file in it")
        if kept.resolve().is_relative_to(output.resolve()):
            raise InputError(
                f"`undo` (on the command line --undo) is {kept}, in the folder of the merged model, and the way back "
                "must not go where that goes; name a file elsewhere"
            )
    from ..adapter.undo import Before

    model, tokenizer, base = on_their_base(erasures, base, dtype, device_map, trust)
    merged = Merged(base, list(model.peft_config), {}, None)
    before = Before(model.get_base_model()) if undo else None
    plain = model.merge_and_unload(safe_merge=True)

    def write(place: Path) -> None:
        nonlocal merged
        plain.save_pretrained(place)
        tokenizer.save_pretrained(place)
        merged_card(base_model=base, name=output.name, erasures=listed(erasures)).save(place / CARD_NAME)
        merged = replace(merged, files=file_digests(place))
        if before is not None:
            back = (kept or undo_file(merged.files)).absolute()
            back.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with write_errors(back), whole_file(back, 0o600) as partial:
                before.save(plain, partial, base=base)
            merged = replace(merged, undo=back)
        if written is not None:
            written(place, merged)

    write_folder(output, write)
    return merged


def listed(erasures: str | Path | Sequence[str | Path]) -> list[str]:
    """One erasure or several, as a list of texts."""
    return [str(each) for each in ([erasures] if isinstance(erasures, str | Path) else erasures)]


def on_their_base(
    erasures: str | Path | Sequence[str | Path], base: str | None, dtype: str, device_map: str | None, trust: bool
) -> tuple[Any, Any, str]:
    """The base with erasures on, the tokenizer with their tokens, and the base's name; see [`merge`].

    Raises:
        ValueError: One is no erasure, the guard refuses one, they name different bases, or something cannot be loaded.
    """
    from ..adapter.active import align_tokenizer
    from ..guard.load import Candidate, adapter_name, candidate, put_on
    from ..lm.load import load_base

    found: dict[str, Candidate] = {}
    for source in dict.fromkeys(listed(erasures)):
        found[adapter_name(source, found)] = candidate(source, trust)
    named = {erasure.config.base_model_name_or_path for erasure in found.values()}
    if base is None and (len(named) > 1 or None in named or "" in named):
        raise InputError(
            "the erasures do not name one base that they all belong to; name it: `base=` (on the command line --base)"
        )
    base = str(base or named.pop())
    model, tokenizer = load_base(base, dtype, device_map)
    stacked = put_on(model, found, allow_resize=True)
    align_tokenizer(tokenizer, stacked)
    return stacked, tokenizer, base
