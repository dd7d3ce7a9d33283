"""Where [UNL] sits: a vocabulary row that the base has and never uses.

Real models have such rows: matrix rows beyond the tokenizer (Qwen), or reserved tokens in it (Llama 3, Gemma, Mistral,
Phi-3). Resizing the vocabulary instead would make the adapter fail on the plain base.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

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


def find_spare_row(model: Any, tokenizer: Any, text: str = "[UNL]", allow_resize: bool = False) -> SpareRow:
    """Choose a row: one beyond the tokenizer first, a reserved token next, a new row only if that is allowed.

    Raises:
        NoSpareRowError: There is none, and `allow_resize` is false.
    """
    rows = min(model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0])
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary and vocabulary[text] < rows:
        return SpareRow(vocabulary[text], text)  # an earlier erasure of this tokenizer put it there
    after_last = max(vocabulary.values()) + 1
    if after_last < rows:
        return SpareRow(after_last, text)
    in_use = _ids_in_use(model, tokenizer)
    template = tokenizer.chat_template or ""
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        if RESERVED.match(token) and token_id < rows and token_id not in in_use and token not in str(template):
            return SpareRow(token_id, token)
    if allow_resize:
        return SpareRow(rows, text, resized=True)
    raise NoSpareRowError(
        f"the base has {rows} vocabulary rows and all of them are in use, so there is none for {text}. With "
        "`allow_resize=True` (on the command line `--allow-resize`) the vocabulary grows by one row; the adapter then "
        "loads only on a base resized in the same way"
    )


def _ids_in_use(model: Any, tokenizer: Any) -> set[int]:
    ids: set[int] = set()
    for value in (
        *(getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad", "unk")),
        *(getattr(model.generation_config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")),
    ):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return ids


def add_to_tokenizer(tokenizer: Any, spare: SpareRow) -> None:
    """Make [UNL] a special token of the tokenizer, so that `skip_special_tokens=True` hides it in decoded text.

    Raises:
        RuntimeError: The tokenizer gave the token another id; nothing can be decoded rightly then.
    """
    tokenizer.add_tokens([AddedToken(spare.text, special=True, normalized=False)], special_tokens=True)
    given = tokenizer.convert_tokens_to_ids(spare.text)
    if given != spare.token_id:
        raise RuntimeError(f"the tokenizer gave {spare.text} the id {given}, the model uses {spare.token_id}")
