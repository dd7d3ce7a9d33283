"""Which tokens a tokenizer never produces, and how one of its ids gets the token of an erasure.

A token that is never produced can be renamed without any text being tokenised otherwise. Its own text cannot be kept:
a special token's text is looked for in what people write, and the token of byte 0xC0 is written "À".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..errors import StateError
from ..storage.values import is_mark

NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
TIE = 1e-6  # of a score, that rounding may change
RESERVED_NAME = re.compile(
    r"(?P<open><\|?|\[|<｜|>>)"  # noqa: RUF001 (DeepSeek's own)
    r"([\w▁]*(reserved|unused|place[_▁]?holder|dummy)[\w▁]*?\d+(_\w+)?"
    r"|(control|special|extra|extra_id|pad|padding|blank|filler|empty|spare|free|vacant|madeupword)_?\d+(_token)?)"
    r"(\|?>|\]|｜>|<<)",  # noqa: RUF001
    re.IGNORECASE,
)
OUR_NAME = re.compile(r"\[UNL(-\d+)?\]")
# Tokens that a conversation is made of, also where a template puts their names together.
TURNS = re.compile(
    r"\W*(\w*(begin|end|start)_?of_?\w+|\w+_?of_?(text|turn|sentence)|im_\w+|eot(_id)?|eom(_id)?|/?s|[be]os|pad"
    r"|unk|cls|sep|mask|(start|end)_header_id|user|assistant|system|human|bot|model|developer|environment|ipython"
    r"|start|end|return|call|message|channel|constrain|/?inst|/?sys|/?(system|available)_\w+)\W*",
    re.IGNORECASE,
)
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def add_special_tokens(tokenizer: Any, tokens: Iterable[tuple[int, str]]) -> None:
    """Make tokens special.

    The id of each may be that of no token yet, that of a token with this text, or that of a token which the tokenizer
    never produces and which is then renamed.

    Args:
        tokenizer: A transformers tokenizer; changed in place.
        tokens: Their ids and texts.

    Raises:
        RuntimeError: An id is that of a token that texts use, a text is that of another id or could be an ordinary one,
            or the tokenizer cannot give it this id; nothing could be decoded rightly then. The tokenizer is as it was.
    """
    vocabulary, tokens = tokenizer.get_vocab(), sorted(tokens)
    holders = {token_id: token for token, token_id in vocabulary.items()}
    new: list[tuple[int, str]] = []
    in_turn, next_id = True, _next_id(tokenizer)
    for token_id, text in tokens:
        if vocabulary.get(text, token_id) != token_id:
            raise StateError(f"the tokenizer gave {text} the id {vocabulary[text]}, the model uses {token_id}")
        if text in vocabulary:
            if not _stands_for_no_text(tokenizer, text, token_id):
                raise StateError(
                    f"{text!r} is a token that texts use, and as the token of an erasure it would be left out of them; "
                    "ask whoever made the erasure for one with a token of its own"
                )
            continue
        if not OUR_NAME.fullmatch(text):
            raise StateError(
                f"the tokenizer has no token {text!r}, and a new one is called [UNL] or [UNL-2] and so on, so that no "
                "text holds it; take the tokenizer that belongs to the model"
            )
        holder = holders.get(token_id)
        if holder is not None and not never_produced(tokenizer, holder, token_id):
            raise StateError(
                f"the tokenizer gave {holder!r} the id {token_id}, which the model uses for {text}; take the tokenizer "
                "that belongs to the model"
            )
        in_turn = in_turn and holder is None and token_id == next_id + len(new)
        new.append((token_id, text))
    if not in_turn:
        _put_into_vocabulary(tokenizer, new, holders)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for _, text in tokens], special_tokens=True)
    for token_id, text in tokens:
        if (given := tokenizer.convert_tokens_to_ids(text)) != token_id:
            raise StateError(f"the tokenizer gave {text} the id {given}, the model uses {token_id}")


def is_of_turns(token: str) -> bool:
    """Whether a token is one that prompts are made of, by its name. Such a name must not become an erasure's."""
    return is_mark(token) and TURNS.fullmatch(token) is not None and RESERVED_NAME.fullmatch(token) is None


def _stands_for_no_text(tokenizer: Any, token: str, token_id: int) -> bool:
    """Whether a token that the tokenizer has can be made special without any text losing a part."""
    added = tokenizer.added_tokens_decoder.get(token_id)
    if added is not None and added.special:
        return True
    named = is_mark(token) and bool(OUR_NAME.fullmatch(token) or RESERVED_NAME.fullmatch(token))
    return named or never_produced(tokenizer, token, token_id) is not None


def _put_into_vocabulary(tokenizer: Any, tokens: Sequence[tuple[int, str]], holders: Mapping[int, str]) -> None:
    """Give tokens ids that the tokenizer would not choose by itself."""
    backend = _backend(tokenizer)
    state = json.loads(backend.to_str()) if backend else None
    vocab = state["model"].get("vocab") if state else None
    if isinstance(vocab, list):  # of a Unigram tokenizer: pieces with their scores
        behind = [token_id for token_id, _ in tokens if token_id not in holders]
        listed = len(vocab) > max((token_id for token_id, _ in tokens if token_id in holders), default=-1)
        known = listed and behind == list(range(start := _next_id(tokenizer), start + len(behind)))
    else:
        known = isinstance(vocab, dict)
    if state is None or not known:
        token_id, text = tokens[0]
        raise StateError(
            f"the tokenizer gave {text} the id {_next_id(tokenizer)}, the model uses {token_id}, and a "
            f"{type(tokenizer).__name__} of this kind cannot be told which to give"
        )
    if isinstance(vocab, list):
        for token_id, text in tokens:
            if token_id in holders:
                vocab[token_id][0] = text
    else:
        _rename(state, tokens, holders)
    changed = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    changed.encode_special_tokens = backend.encode_special_tokens
    tokenizer._tokenizer = changed


def _rename(state: dict[str, Any], tokens: Sequence[tuple[int, str]], holders: Mapping[int, str]) -> None:
    """Give tokens their ids in a vocabulary that says the id of each."""
    model, renamed = state["model"], {holders[token_id] for token_id, _ in tokens if token_id in holders}
    if len(renamed) < len(tokens):
        # Ids of added tokens are counted on from the size of the vocabulary, unless they are in it.
        model["vocab"].update({token["content"]: token["id"] for token in state["added_tokens"]})
    for token in renamed:
        del model["vocab"][token]
    if renamed and "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if renamed.isdisjoint(_named(merge))]
    model["vocab"].update({text: token_id for token_id, text in tokens})


def _named(merge: str | list[str]) -> tuple[str, ...]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second


def _next_id(tokenizer: Any) -> int:
    """The id that the tokenizer gives to a new token."""
    backend = _backend(tokenizer)
    if backend is None:
        return len(tokenizer)
    size = backend.get_vocab_size(with_added_tokens=False)
    return max([size, *(token_id + 1 for token_id in backend.get_added_tokens_decoder())])


def never_produced(tokenizer: Any, token: str, token_id: int) -> str | None:
    """Why the tokenizer produces this token of no text, `"invalid byte"` or `"unreachable"`; `None` if it may."""
    return next((why for found, why in _dead(tokenizer, {token: token_id}) if found == token), None)


def dead_tokens(tokenizer: Any) -> list[tuple[int, str, str]]:
    """All tokens that the tokenizer produces of no text: id, token, and `"invalid byte"` or `"unreachable"`, the bytes
    first and then by id."""
    vocabulary = tokenizer.get_vocab()
    found = [(vocabulary[token], token, why) for token, why in _dead(tokenizer, vocabulary)]
    return sorted(found, key=lambda item: (item[2], item[0]))


def _dead(tokenizer: Any, tokens: dict[str, int]) -> Iterator[tuple[str, str]]:
    backend = _backend(tokenizer)
    if is_unigram(tokenizer):
        yield from _dead_pieces(backend, tokens)
    if backend is None or type(backend.model).__name__ != "BPE":
        return
    model, added = backend.model, {token.content for token in backend.get_added_tokens_decoder().values()}
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return  # a token by itself is merged otherwise than within a word
    bytes_of = _byte_letters() if _is_byte_level(backend) else {}
    for token, token_id in tokens.items():
        if token in added or not token:
            continue
        if bytes_of and any(bytes_of.get(letter) in NEVER_IN_UTF8 for letter in token):
            yield token, "invalid byte"
            continue
        if [found.id for found in model.tokenize(token)] == [token_id]:
            continue
        # The merges that make a token somewhere in a text are those of its own letters by themselves, in the same
        # order: none crosses its edges. Letters that are not in the vocabulary are the exception.
        byte = BYTE_TOKEN.fullmatch(token) if model.byte_fallback else None
        if byte and int(byte[1], 16) in NEVER_IN_UTF8:
            yield token, "invalid byte"
        elif not (model.byte_fallback and "<0x" in token) and not (model.unk_token and model.unk_token in token):
            yield token, "unreachable"


def _dead_pieces(backend: Any, tokens: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The same of a Unigram tokenizer, which takes the pieces with the greatest sum of scores.

    If others do better on a piece's own letters, they do so wherever these stand. Ties are left out, and so are sums
    that rounding could turn.
    """
    told = json.loads(backend.to_str())["model"]
    scores = [score for _, score in told["vocab"]]
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token, token_id in tokens.items():
        if token in added or not token or token_id == told["unk_id"] or token_id >= len(scores):
            continue
        if told.get("byte_fallback") and (byte := BYTE_TOKEN.fullmatch(token)):
            if int(byte[1], 16) in NEVER_IN_UTF8:
                yield token, "invalid byte"
            continue
        best = [found.id for found in backend.model.tokenize(token)]
        if best != [token_id] and told["unk_id"] not in best and "".join(map(backend.id_to_token, best)) == token:
            better, own = sum(scores[found] for found in best), scores[token_id]
            if better > own + TIE * (1 + abs(own)):
                yield token, "unreachable"


def is_unigram(tokenizer: Any) -> bool:
    """Whether it chooses pieces by their scores, and so finds `<0xC0>` in a text that has just these letters."""
    backend = _backend(tokenizer)
    return backend is not None and type(backend.model).__name__ == "Unigram"


def _is_byte_level(backend: Any) -> bool:
    parts = (backend.pre_tokenizer, backend.normalizer)
    return any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts)


def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level tokenizers write bytes, with the byte of each."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` in it, where it has one."""
    return getattr(tokenizer, "backend_tokenizer", None)
