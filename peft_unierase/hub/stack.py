"""`stack`: several saved erasures in one folder, which loads as one adapter; `-` takes one out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, StateError, in_one_line
from ..records.read import grown, read_record
from ..records.record import write_record
from ..storage.names import CARD_NAME, WEIGHTS_NAME
from ..storage.output import check_new, write_folder
from .card import stacked_card

if TYPE_CHECKING:
    from ..guard.config import UniEraseConfig


@dataclass(frozen=True)
class Stack:
    """Erasures of one base in one adapter.

    Attributes:
        names: What the erasures in it are called.
        config: Config of the adapter.
        tensors: Its weights, as PEFT names them in a file.
        records: `erasure.json` of each, where there was one.
        tokenizer: A tokenizer that knows the token of each.

    Example:

        ```py
        >>> both = stack("org/erase-a", "org/erase-b")
        >>> both.save("erase-both")
        >>> (both - "erase-a").save("erase-b-alone")
        ```
    """

    names: list[str]
    config: UniEraseConfig
    tensors: dict[str, Any]
    tokenizer: Any
    records: dict[str, Any] = field(default_factory=dict)

    def __sub__(self, name: str) -> Stack:
        from ..adapter.fused import take_out

        config, tensors = take_out(self.config, self.tensors, name)
        return replace(
            self,
            names=[each for each in self.names if each != name],
            config=config,
            tensors=tensors,
            records={each: record for each, record in self.records.items() if each != name},
        )

    def save(self, folder: str | Path, written: Callable[[Path], None] | None = None) -> None:
        """Write adapter, tokenizer, records and card to a new folder, whole or not at all.

        Args:
            folder: Where to.
            written: Called with the place where all of it is, just before that becomes the folder.

        Raises:
            ValueError: There is something in the folder, or it cannot be written to.
            OSError: Writing failed.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        check_new(folder)
        card = stacked_card(
            base_model=self.config.base_model_name_or_path or "",
            name=str(folder),
            erasures=self.names,
            tokens=[text for _, text in self.config.tokens],
            grown=any(map(grown, self.records.values())),
        )

        def write(place: Path) -> None:
            self.tokenizer.save_pretrained(place)
            self.config.save_pretrained(str(place))
            save_file(self.tensors, place / WEIGHTS_NAME, metadata={"format": "pt"})
            card.save(place / CARD_NAME)
            write_record(place, {"fused": self.records})
            if written is not None:
                written(place)

        write_folder(folder, write)


def stack(*erasures: str | Path, base: str | None = None, trust: bool = False) -> Stack:
    """Fuse saved erasures of one base into one adapter. The base itself is not needed.

    Their edits add up, and a token whose vocabulary row another one has moves: they do what they do if they are loaded
    one beside the other.

    Args:
        erasures: Folders or Hub ids; one may itself be a stack.
        base: What to call the base, where they call it by different names.
        trust: Stack what the guard refuses.

    Raises:
        GuardError: The guard refuses one.
        ValueError: One is no erasure, they are not of one base, or two cannot be on together.
    """
    from peft.utils import load_peft_weights
    from transformers import AutoTokenizer

    from ..adapter.fused import fuse
    from ..adapter.vocabulary import add_special_tokens
    from ..guard.load import adapter_name, candidate

    if not erasures:
        raise InputError("there are no erasures to stack; name at least one")
    read: dict[str, Any] = {}
    records: dict[str, Any] = {}
    found = [candidate(source, trust) for source in erasures]
    for erasure in found:
        config = erasure.config
        if base is not None:
            config.base_model_name_or_path = base
        name = adapter_name(erasure.source, read)
        try:
            read[name] = (config, load_peft_weights(str(erasure.folder), device="cpu"))
        except Exception as error:  # of whatever library meets what is wrong with the files first
            raise InputError(
                f"cannot load the weights of {erasure.source}: {in_one_line(error)}; save the erasure again"
            ) from error
        record = read_record(erasure.folder)
        if record:
            records.update((record.get("fused") or {}) if config.fused else {name: record})
    config, tensors = fuse(read)
    try:
        tokenizer = AutoTokenizer.from_pretrained(found[0].folder, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"cannot load the tokenizer of {erasures[0]}: {in_one_line(error)}; save it again") from error
    try:
        add_special_tokens(tokenizer, config.tokens)
    except StateError as error:
        why = f"the tokenizer of {erasures[0]} does not take the tokens of all of them: {error}"
        raise InputError(f"{why}. Name first the erasure that was made last, or save that one again") from error
    return Stack([part["name"] for part in config.fused], config, tensors, tokenizer, records)
