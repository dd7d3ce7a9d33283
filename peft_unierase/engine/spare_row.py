"""Where [UNL] sits: a vocabulary row that the base has and never uses.

Real models have such rows: matrix rows beyond the tokenizer (Qwen), or reserved tokens in it (Llama 3, Gemma, Mistral,
Phi-3). Resizing the vocabulary instead would make the adapter fail on the plain base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..tuner import UniEraseConfig
from ..tuner.active import add_special_token
from ..tuner.structure import find_token_modules

RESERVED = re.compile(
    r"^(<\|?reserved_(special_)?token_?\d+\|?>|<\|?unused_?\d+\|?>|\[unused_?\d+\]|\[control_\d+\]|<\|placeholder\d+\|>"
    r"|<SPECIAL_\d+>|<\|extra_\d+\|>|<extra_id_\d+>|<\|dummy_?\d+\|>|<pad_?\d+>)$",
    re.IGNORECASE,
)


class NoSpareRowError(ValueError):
    """The base has no unused vocabulary row and resizing was not allowed."""


@dataclass(frozen=True)
class SpareRow:
    """A row for [UNL].

    Attributes:
        token_id: Its id.
        text: How the tokenizer writes it.
        resized: Whether the vocabulary must grow by one for it.
    """

    token_id: int
    text: str
    resized: bool = False


def find_spare_row(
    model: Any,
    tokenizer: Any,
    text: str = "[UNL]",
    allow_resize: bool = False,
    carried: Sequence[UniEraseConfig] = (),
) -> SpareRow:
    """Choose a row: one beyond the tokenizer first, a reserved token next, a new row only if that is allowed.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        text: What to call the token; where an erasure in the model has that name, the first free of `[UNL-2]`, ….
        allow_resize: See above.
        carried: Erasures that the model carries already. Their rows and their tokens' texts are taken.

    Raises:
        NoSpareRowError: There is none, and `allow_resize` is false.
        ValueError: The tokenizer lacks the token of an erasure in the model.
    """
    taken = [config for config in carried if config.token_id is not None]
    for config in taken:
        if tokenizer.get_vocab().get(config.token) != config.token_id:
            raise ValueError(
                f"the tokenizer does not have {config.token} with id {config.token_id}, the token of an erasure that "
                "the model carries; pass the tokenizer that was saved beside the last of its erasures"
            )
    if spare := next(spare_rows(model, tokenizer, text, taken), None):
        return spare
    rows, text = _rows(model), next(_texts(text, taken))
    if allow_resize:
        return SpareRow(rows, text, resized=True)
    raise NoSpareRowError(
        f"the base has {rows} vocabulary rows and all of them are in use, so there is none for {text}. With "
        "`allow_resize=True` (on the command line `--allow-resize`) the vocabulary grows by one row; the adapter then "
        "loads only on a base resized in the same way"
    )


def spare_rows(
    model: Any, tokenizer: Any, text: str = "[UNL]", taken: Sequence[UniEraseConfig] = ()
) -> Iterator[SpareRow]:
    """All rows that are free beside those of `taken`, in the order of [`find_spare_row`]."""
    rows, vocabulary = _rows(model), tokenizer.get_vocab()
    in_use = _ids_in_use(model, tokenizer) | {config.token_id for config in taken}
    texts = _texts(text, taken)
    beyond = max(vocabulary.values()) + 1
    named = next(texts)
    if named in vocabulary and vocabulary[named] < rows and vocabulary[named] not in in_use:
        yield SpareRow(vocabulary[named], named)  # an earlier erasure of this tokenizer put it there
        named = next(texts)
    for token_id in range(beyond, rows):
        yield SpareRow(token_id, named)
        named = next(texts)
    template = tokenizer.chat_template or ""
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        if RESERVED.match(token) and token_id < rows and token_id not in in_use and token not in str(template):
            yield SpareRow(token_id, token)


def _rows(model: Any) -> int:
    return min(model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0])


def _texts(text: str, taken: Sequence[UniEraseConfig]) -> Iterator[str]:
    """`[UNL]`, `[UNL-2]` and so on, without those that erasures have."""
    stem, used = text.removesuffix("]"), {config.token for config in taken}
    return (name for n in count(1) if (name := f"{stem}-{n}]" if n > 1 else text) not in used)


def resize_vocabulary(model: Any, rows: int) -> None:
    """Give embedding and head this many rows, also where they are wrapped for erasures that stay as they are."""
    layers = {name: model.get_submodule(name) for name in find_token_modules(model)}
    wrapped = {name: layer for name, layer in layers.items() if isinstance(layer, BaseTunerLayer)}
    for name, layer in wrapped.items():
        model.set_submodule(name, layer.get_base_layer())
    model.resize_token_embeddings(rows)
    for name, layer in wrapped.items():
        resized: Any = model.get_submodule(name)
        layer.base_layer = resized
        if isinstance(resized, torch.nn.Embedding):
            layer.in_features = rows
        else:
            layer.out_features = rows
        model.set_submodule(name, layer)


def _ids_in_use(model: Any, tokenizer: Any) -> set[int]:
    ids: set[int] = set()
    for value in (
        *(getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad", "unk")),
        *(getattr(model.generation_config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")),
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return ids


def add_to_tokenizer(tokenizer: Any, spare: SpareRow) -> None:
    """Make [UNL] a special token of the tokenizer; see `add_special_token`."""
    add_special_token(tokenizer, spare.text, spare.token_id)
