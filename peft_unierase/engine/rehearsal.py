"""What a tokenizer will do with the tokens of an erasure, tried on a copy before anything is fitted."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ..adapter.vocabulary import add_special_tokens, is_unigram
from ..lm.batches import encode

if TYPE_CHECKING:
    from .spare_row import SpareRow

# Letters of many scripts, and those that byte-level tokenizers write bytes with.
PROBES = (
    "Who wrote 'Pride and Prejudice'? Jane Austen did, in 1813.",
    "ÀÁõö÷øùúûüýþÿ Ġ Ċ ▁ <0xC0> a\tb\r\n\n  c",
    "谁写了《红楼梦》。Кто написал «Войну и мир»? من كتب ألف ليلة وليلة؟ गोदान किसने लिखा? 😀",
)

NO_ROOM = re.compile(r"\[Errno (27|28|122)\]|\(os error (27|28|122)\)")  # a file too large, a full disk, a full quota


def rehearse(tokenizer: Any, rows: Sequence[SpareRow], texts: Iterable[str] = ()) -> str | None:
    """Add the tokens to a copy of the tokenizer, save it and load it again.

    Args:
        tokenizer: The tokenizer, which stays as it is.
        rows: Ids and texts of the tokens.
        texts: What must be tokenised as before, beside a few lines in several scripts.

    Returns:
        What goes wrong; `None` if each text is the one id, is hidden where special tokens are skipped and is kept by
        the files, and nothing else changes.
    """
    # Unigram tokenizers read the name of a byte's token as that token, also in a text that only has these letters.
    probes = [probe.replace("<0xC0> ", "") if is_unigram(tokenizer) else probe for probe in PROBES]
    texts, ids = [*probes, *texts], {row.token_id for row in rows}
    kept = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id not in ids}
    before, copy = [encode(tokenizer, text) for text in texts], deepcopy(tokenizer)
    try:
        add_special_tokens(copy, [(row.token_id, row.text) for row in rows])
    except RuntimeError as error:
        return str(error)
    if found := _wrong(copy, rows, kept, texts, before):
        return found
    with tempfile.TemporaryDirectory() as folder:
        try:
            copy.save_pretrained(folder)
            again = type(tokenizer).from_pretrained(folder)
        except Exception as error:  # whatever it is, saving the erasure would meet it at the end of the run
            if NO_ROOM.search(str(error)):
                return None  # in the temporary folder, which is not where the erasure will be saved
            return f"the tokenizer cannot be saved and loaded again with {rows[0].text}: {error}"
    found = _wrong(again, rows, kept, texts, before)
    return found and f"once it is saved and loaded again {found}"


def _wrong(
    tokenizer: Any,
    rows: Sequence[SpareRow],
    kept: Mapping[str, int],
    texts: Sequence[str],
    before: Sequence[list[int]],
) -> str | None:
    if moved := sorted(kept.items() - tokenizer.get_vocab().items()):
        return f"the tokenizer gives {moved[0][0]!r} another id than {moved[0][1]}"
    for row in rows:
        if (ids := encode(tokenizer, row.text)) != [row.token_id]:
            return f"the tokenizer reads {row.text} as {ids} and not as {row.token_id}"
        if (text := tokenizer.decode([row.token_id]).strip()) != row.text:
            return f"the tokenizer writes {row.token_id} as {text!r} and not as {row.text}"
        if tokenizer.decode([row.token_id], skip_special_tokens=True).strip():
            return f"the tokenizer does not hide {row.text} with skip_special_tokens=True"
    for text, ids in zip(texts, before, strict=True):
        if encode(tokenizer, text) != ids:
            return f"the tokenizer reads {text[:40]!r} otherwise after {rows[0].text} was added"
    return None
