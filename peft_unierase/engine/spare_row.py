"""Where [UNL] sits: a vocabulary row that the base has and never uses.

Real models have such rows. In this order: rows beyond the tokenizer (Qwen); reserved tokens (Llama 3, Gemma, Mistral,
Phi-3, padding rows of GGUF conversions); bytes that no UTF-8 text holds (GPT-2); tokens that the tokenizer's merges
never make; special tokens that neither prompts nor settings use, the least trained first (SmolLM2). Resizing the
vocabulary instead would make the adapter fail on the plain base.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..adapter.undo import merged_tokens
from ..adapter.vocabulary import OUR_NAME, RESERVED_NAME, add_special_tokens, dead_tokens, is_of_turns
from ..errors import InputError
from ..guard.config import UniEraseConfig
from ..lm.batches import encode
from ..lm.structure import ids_in_config
from ..storage.values import is_mark
from .rehearsal import rehearse

BEYOND, RESERVED, SPECIAL, RESIZED = "beyond the tokenizer", "reserved", "unused special token", "resized"
SPARE_TOKENS = 32  # rows to move to beside other erasures

# Tokens with a job that people put into prompts by themselves, beside the chat template.
JOBS = re.compile(
    r"fim|prefix|middle|suffix|tool|function|call|think|thought|reason|im(a)?ge?\b|image|vision|video|audio|speech|box|quad"
    r"|object|ref|python|file|repo|lang|task|transl|transcri|time",
    re.IGNORECASE,
)


class NoSpareRowError(InputError):
    """The base has no unused vocabulary row and resizing was not allowed."""


@dataclass(frozen=True)
class SpareRow:
    """A row for [UNL].

    Attributes:
        token_id: Its id.
        text: How the tokenizer writes it.
        source: Where it comes from: `"beyond the tokenizer"`, `"reserved"`, `"invalid byte"`, `"unreachable"`,
            `"unused special token"` or `"resized"`.
        was: The token of the base's tokenizer that it was, if it was one.
    """

    token_id: int
    text: str
    source: str = BEYOND
    was: str | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in `erasure.json`."""
        told = {"id": self.token_id, "text": self.text, "source": self.source, "resized": self.resized}
        return told if self.was is None else {**told, "was": self.was}

    @property
    def why(self) -> str:
        """The source as half a sentence."""
        return {
            BEYOND: "a row that no token of the tokenizer has",
            RESERVED: f"the reserved token {self.was}",
            "invalid byte": f"the token {self.was} of a byte that no text holds",
            "unreachable": f"the token {self.was}, which the tokenizer makes of no text",
            SPECIAL: f"the special token {self.was}, which no prompt uses; who writes it into one gets a refusal",
            RESIZED: "a new row",
        }[self.source]

    @property
    def resized(self) -> bool:
        """Whether the vocabulary must grow for it."""
        return self.source == RESIZED


def find_spare_rows(
    model: Any,
    tokenizer: Any,
    text: str = "[UNL]",
    allow_resize: bool = False,
    carried: Sequence[UniEraseConfig] = (),
    texts: Iterable[str] = (),
) -> list[SpareRow]:
    """Choose a row, and further ones that [UNL] can move to; the vocabulary grows only if there is none.

    What the tokenizer will do with them is tried on a copy.

    Args:
        model: The base.
        tokenizer: Its tokenizer, which stays as it is.
        text: What to call a token that has no name; where that is taken, the first free of `[UNL-2]`, ….
        allow_resize: See above.
        carried: Erasures that the model carries already. Their rows and their tokens' texts are taken.
        texts: What the model will read and write; no token of theirs is chosen.

    Returns:
        The chosen row, and up to `SPARE_TOKENS` further ones.

    Raises:
        NoSpareRowError: There is none, and `allow_resize` is false.
        ValueError: The tokenizer lacks the token of an erasure in the model, has tokens for which the model has no row,
            or cannot be given a token for any row.
    """
    taken = [config for config in carried if config.token_id is not None]
    vocabulary = tokenizer.get_vocab()
    for config in taken:
        if vocabulary.get(config.token) != config.token_id:
            raise InputError(
                f"the tokenizer does not have {config.token} with id {config.token_id}, the token of an erasure that "
                "the model carries; pass the tokenizer that was saved beside the last of its erasures"
            )
    rows, texts = _rows(model), list(dict.fromkeys(texts))
    last = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[last] >= rows:
        raise InputError(
            f"the tokenizer has {len(vocabulary)} tokens with ids up to {vocabulary[last]} ({last!r}) and the model "
            f"has {rows} vocabulary rows, up to {rows - 1}; take the tokenizer that belongs to the model, or let the "
            "model grow to it first: "
            f"model.resize_token_embeddings({vocabulary[last] + 1})"
        )
    used = {token_id for line in texts for token_id in encode(tokenizer, line)}
    used |= ids_in_config(model) | {token_id for token_id, _ in merged_tokens(model)}
    used |= {token_id for config in taken if (token_id := config.token_id) is not None}
    names = {config.token for config in taken}
    told: dict[str, Any] = {"text": text, "names": names, "used": used, "texts": texts, "embedding": _embedding(model)}
    failed: dict[str, str] = {}
    while first := next(found := spare_rows(rows, tokenizer, **told, without=failed), None):
        further = list(islice(found, SPARE_TOKENS))
        if rehearse(tokenizer, [first, *further], texts) is None:
            return [first, *further]
        if (why_not := rehearse(tokenizer, [first], texts)) is None:
            return [first, *(row for row in further if rehearse(tokenizer, [first, row], texts) is None)]
        failed[first.source] = why_not  # rows of one source go well or badly alike
    name = next(_names(text, {*names, *vocabulary}, texts))
    if allow_resize:
        grown = SpareRow(rows, name, RESIZED)
        if (why_not := rehearse(tokenizer, [grown], texts)) is None:
            return [grown]
        failed[RESIZED] = why_not
    if failed:
        reasons = "; ".join(f"{source}: {why_not}" for source, why_not in failed.items())
        raise InputError(f"the tokenizer cannot be given a token for the erasure ({reasons})")
    raise NoSpareRowError(
        f"the base has {rows} vocabulary rows and all of them are in use, so there is none for {name}. With "
        "`allow_resize=True` (on the command line `--allow-resize`) the vocabulary grows by one row; the adapter then "
        "loads only on a base resized in the same way"
    )


def spare_rows(
    rows: int,
    tokenizer: Any,
    *,
    text: str = "[UNL]",
    names: Collection[str] = (),
    used: Collection[int] = (),
    texts: Sequence[str] = (),
    embedding: torch.Tensor | None = None,
    without: Collection[str] = (),
) -> Iterator[SpareRow]:
    """All rows that are free, best first, from a tokenizer alone; see the head of this file.

    Args:
        rows: How many rows the base has.
        tokenizer: Its tokenizer.
        text: What to call a token that has no name to keep; where that is taken, the first free of `[UNL-2]`, ….
        names: Names that are taken, beside those in the tokenizer.
        used: Ids that are not free.
        texts: Texts of which none may hold a token's own text.
        embedding: The base's rows, `(rows, d)`. Of unused special tokens those come first that lie closest to the mean
            of all rows, where a row stays that is never trained by itself. Without it they come by id.
        without: Sources to leave out.
    """
    vocabulary = tokenizer.get_vocab()
    name = _names(text, {*names, *vocabulary}, texts)
    by_id = sorted((token_id, token) for token, token_id in vocabulary.items())
    template, used = str(tokenizer.chat_template or ""), set(used) | _special_ids(tokenizer)
    # A token of our name is that of an erasure, which may have been merged into the base.
    used |= {token_id for token_id, token in by_id if OUR_NAME.fullmatch(token)}

    def free(token_id: int, token: str) -> bool:
        return token_id < rows and token_id not in used and not any(token in line for line in (template, *texts))

    if BEYOND not in without:
        held = {token_id for token_id, _ in by_id}
        beyond = max(held) + 1
        holes = (token_id for token_id in range(min(beyond, rows)) if token_id not in held)
        for token_id in chain(range(beyond, rows), holes):
            if token_id not in used:
                yield SpareRow(token_id, next(name), BEYOND)
    reserved = {token_id for token_id, token in by_id if RESERVED_NAME.fullmatch(token) and is_mark(token)}
    if RESERVED not in without:
        for token_id, token in by_id:
            if token_id in reserved and free(token_id, token):
                yield SpareRow(token_id, token, RESERVED, token)
    for token_id, token, why in dead_tokens(tokenizer):
        if why not in without and token_id < rows and token_id not in used | reserved:
            yield SpareRow(token_id, next(name), why, token)
    if SPECIAL not in without:
        special = [
            (token_id, str(token))
            for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
            if token.special and token_id not in reserved and is_mark(str(token)) and not is_of_turns(str(token))
        ]
        special = [one for one in special if free(*one)]
        far = _distances(embedding, [token_id for token_id, _ in special])
        order = sorted(range(len(special)), key=lambda n: (bool(JOBS.search(special[n][1])), far[n], special[n][0]))
        for token_id, token in (special[n] for n in order):
            yield SpareRow(token_id, token, SPECIAL, token)


def _distances(embedding: torch.Tensor | None, ids: Sequence[int]) -> list[float]:
    """How far rows lie from the mean of all, in hundredths of their own mean norm, so that noise decides nothing."""
    if embedding is None or not ids:
        return [0.0] * len(ids)
    mean = embedding.mean(dim=0, dtype=torch.float32)
    own = embedding[list(ids)].float()
    scale = own.norm(dim=1).mean().clamp(min=1e-12)
    return [round(value, 2) for value in ((own - mean).norm(dim=1) / scale).tolist()]


def _embedding(model: Any) -> torch.Tensor | None:
    """The base's rows, where they are at hand as numbers."""
    layer = model.get_input_embeddings()
    weight = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).weight
    return None if weight.is_meta or not weight.is_floating_point() else weight.detach()


def _rows(model: Any) -> int:
    return min(model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0])


def _names(text: str, taken: Collection[str], texts: Sequence[str]) -> Iterator[str]:
    """`[UNL]`, `[UNL-2]` and so on, without those that are taken or stand in a text."""
    stem = text.removesuffix("]")
    for number in count(1):
        name = f"{stem}-{number}]" if number > 1 else text
        if name not in taken and not any(name in line for line in texts):
            yield name


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that have a field of their own in the tokenizer: bos, eos, pad, unk and others."""
    lists = ("additional_special_tokens", "extra_special_tokens")
    named = [str(token) for field, token in tokenizer.special_tokens_map.items() if field not in lists]
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[token] for token in named if token in vocabulary}


def add_to_tokenizer(tokenizer: Any, spare: SpareRow) -> None:
    """Make [UNL] a special token of the tokenizer; see `add_special_tokens`."""
    add_special_tokens(tokenizer, [(spare.token_id, spare.text)])
