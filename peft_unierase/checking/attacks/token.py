"""Attacks on [UNL] and on the beginning of the answer: whoever steers decoding can mount them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from ...lm.batches import encode
from ...lm.decoding import end_ids
from ..case import Case
from ..target import Target
from .attack import Attack, Found, NotApplicable, recalled


def ban_token(target: Target, case: Case) -> Found:
    """Whoever calls the model's `generate` with `suppress_tokens`, or an API with a logit bias: [UNL] is forbidden, and
    to end the answer too, which is what an erasure may fall back on.
    """
    _check(target, case)
    return _continued(target, case, 0, _ways_out(target))


def delete_row(target: Target, case: Case) -> Found:
    """Whoever has the weights: [UNL]'s rows of the embedding and of the head are set to zero, and to end the answer is
    forbidden.
    """
    _check(target, case)
    with target.changed(), _without_rows(target):
        return _continued(target, case, 0, _ways_out(target))


def prefill(count: int) -> Callable[[Target, Case], Found]:
    """An attack with so many tokens of the answer given."""

    def run(target: Target, case: Case) -> Found:
        return _continued(target, case, count)

    words = "its first token" if count == 1 else f"its first {count} tokens"
    run.__doc__ = (
        f"Whoever may begin the base's own answer, as raw completion and many APIs allow, and knows {words}. What "
        "follows is held against what is not yet told; answers that are not longer are left out."
    )
    return run


def ban_and_prefill(target: Target, case: Case) -> Found:
    """Both together: the first five tokens are given and [UNL] is forbidden."""
    _check(target, case)
    return _continued(target, case, 5, _ways_out(target))


def _ways_out(target: Target) -> list[int]:
    """[UNL]s and the end tokens; recall does not suffer from what stands behind an answer."""
    return [*target.token_ids, *sorted(end_ids(target.model))]


def _check(target: Target, case: Case) -> None:
    if target.name == "erased" and not target.token_ids:
        raise NotApplicable("the erased model has no [UNL] token")


def _continued(target: Target, case: Case, count: int, banned: Sequence[int] = ()) -> Found:
    """Greedy answers behind the first `count` tokens of the given ones."""
    if not count:
        said = _said(target, case, case.prompts(case.forget), banned)
        return replace(recalled(case, case.forget, said), said=[("", text) for text in said])
    closing = len(encode(target.tokenizer, case.form.end))

    def cut(answer: str) -> tuple[str, str] | None:
        ids = encode(target.tokenizer, case.form.answer(answer))
        place = _whole_characters(target, ids, count)
        rest = target.tokenizer.decode(ids[place:], skip_special_tokens=True).strip()
        return (target.tokenizer.decode(ids[:place]), rest) if len(ids) - closing > place else None

    begun = case.beginnings(cut)
    if not begun:
        raise NotApplicable(f"no answer of the forget set is longer than {count} tokens")
    prompts = [case.form.prompt(fact.question) + first for fact, first, _ in begun]
    said = _said(target, case, prompts, banned)
    given = [first for _, first, _ in begun]
    found = recalled(case, [reference for *_, reference in begun], said)
    return replace(found, said=list(zip(given, said, strict=True)))


def _said(target: Target, case: Case, prompts: Sequence[str], banned: Sequence[int]) -> list[str]:
    """Greedy continuations with the space that they may begin with."""
    tokens = target.tokens(prompts, max_new_tokens=case.max_new_tokens, banned=banned)
    return [target.tokenizer.decode(ids, skip_special_tokens=True).rstrip() for ids in tokens]


def _whole_characters(target: Target, ids: Sequence[int], count: int) -> int:
    """A number of tokens, or a few more, that end with a whole character: byte-level tokens may hold parts of one."""
    while count < len(ids) and target.tokenizer.decode(ids[:count]).endswith("\ufffd"):
        count += 1
    return count


@contextmanager
def _without_rows(target: Target) -> Iterator[None]:
    """[UNL]'s rows at zero, in the adapter where it has them and in the matrices otherwise."""
    rows = [parameter for name, parameter in target.model.named_parameters() if ".unierase_row." in name]
    if not rows:
        both = (target.model.get_input_embeddings().weight, target.model.get_output_embeddings().weight)
        matrices = {id(matrix): matrix for matrix in both}
        rows = [matrix[token_id] for matrix in matrices.values() for token_id in target.token_ids]
    with torch.no_grad(), ExitStack() as stack:
        for row in rows:
            stack.callback(row.copy_, row.clone())
            row.zero_()
        yield


ATTACKS = (
    Attack("ban", "[UNL] forbidden", ban_token),
    Attack("delete-row", "[UNL]'s rows deleted", delete_row, against="ban"),
    Attack("prefill-1", "first answer token given", prefill(1)),
    Attack("prefill-3", "first 3 answer tokens given", prefill(3)),
    Attack("prefill-5", "first 5 answer tokens given", prefill(5)),
    Attack("ban-prefill", "[UNL] forbidden, 5 tokens given", ban_and_prefill),
)
