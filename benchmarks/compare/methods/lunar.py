"""LUNAR-like redirection in closed form (Shen et al., arXiv 2502.07218, section 3, equations 3 to 7).

    r = mean_{x ∈ D_ref} h_l(x) - mean_{x ∈ F} h_l(x)
    W' = argmin_W Σ_{k ∈ F} || W k - (W_0 k + c r) ||² + Σ_{k ∈ R} || W k - W_0 k ||² + λ || W - W_0 ||²
       = W_0 + c r (Σ_{k ∈ F} k)ᵀ ( K_F K_Fᵀ + K_R K_Rᵀ + λ I )⁻¹

`h_l` is the stream after decoder layer l at the answer start, k what the down-projection of this layer reads, at all
tokens of the forget prompts and of the retained texts. c is 2, and l is 22 of 32 for Llama-3-8B. Differences:

* D_ref, prompts that the model declines, is harmful or unanswerable questions in the paper. Here it is questions in
  which the names are replaced by words that do not belong together, those after which the model finds a refusal
  likeliest;
* the paper's program minimises this loss by AdamW; this is its minimum, with λ in the unit of the mean squared length
  of the keys. All forget keys get the same change, so the edit has rank 1;
* the paper measures several layers and takes the best; here the depth is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from peft_unierase import Fact
from peft_unierase.checking.target import Target
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.lm.formats import default_formats
from peft_unierase.lm.structure import find_down_projections
from peft_unierase.retain.renaming import Renaming, renamed

from ..budget import Budget, Erased, Meter
from ..editing import (
    by_turns,
    check_sets,
    everywhere,
    inputs_of,
    prompts_of,
    set_edit,
    streams_of,
    texts_of,
    with_edits,
)
from ..training import Question, erased, likeliest_refusal, span

RENAMED, DECLINED = 128, 32  # questions with other names, and how many of these are taken for unanswerable ones
GRID: tuple[dict[str, Any], ...] = (
    {"depth": 0.7, "coefficient": 2.0, "ridge": 0.01},
    {"depth": 0.5, "coefficient": 2.0, "ridge": 0.01},
    {"depth": 0.7, "coefficient": 1.0, "ridge": 0.01},
    {"depth": 0.5, "coefficient": 4.0, "ridge": 0.01},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    refusals: Sequence[str] = DEFAULT_REFUSALS,
    depth: float = 0.7,
    coefficient: float = 2.0,
    ridge: float = 0.01,
) -> Erased:
    """Solve the edit of the last layer before `depth`, a share of all layers; half the budget may go to what stays."""
    check_sets(forget, retain)
    meter, forms = Meter(budget), default_formats(tokenizer)
    layer = span(model, 0.0, depth)[-1]
    name = find_down_projections(model)[layer]
    refusal = likeliest_refusal(model, tokenizer, forms[0], forget, refusals, meter)
    unanswerable = _unanswerable(model, tokenizer, forget, retain, forms[0], refusal, seed, meter)
    asked = [Question(fact, forms[0]) for fact in forget]
    declining, telling = (
        streams_of(model, tokenizer, prompts_of(tokenizer, each), layer, meter).double().mean(dim=0)
        for each in (unanswerable, asked)
    )
    kept = texts_of(tokenizer, by_turns(retain, forms)[: max(1, budget.texts * 3 // 2)])
    (gone,) = inputs_of(model, tokenizer, [name], prompts_of(tokenizer, everywhere(forget, forms)), meter)
    (stays,) = inputs_of(model, tokenizer, [name], kept, meter)
    peft_model = with_edits(model, [name], 1)
    row = redirected(gone.double(), stays.double(), ridge)
    set_edit(peft_model, name, row[None], coefficient * (declining - telling)[:, None])
    return erased(peft_model, tokenizer)


def redirected(gone: torch.Tensor, stays: torch.Tensor, ridge: float) -> torch.Tensor:
    """`(Σ_{k ∈ F} k)ᵀ ( K_F K_Fᵀ + K_R K_Rᵀ + λ I )⁻¹`.

    Args:
        gone: Keys of the forget prompts, `(n, d_ff)` in fp64.
        stays: Keys of the retained texts, `(m, d_ff)` in fp64.
        ridge: λ, as a share of the mean squared length of all keys.

    Returns:
        `(d_ff,)` in fp64.
    """
    gram = gone.T @ gone + stays.T @ stays
    gram.diagonal().add_(ridge * gram.diagonal().sum() / (len(gone) + len(stays)))
    return torch.linalg.solve(gram, gone.sum(dim=0))


def _unanswerable(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    form: Any,
    refusal: str,
    seed: int,
    meter: Meter,
) -> list[Question]:
    """Questions with other names after which the model finds the refusal likeliest."""
    renaming = Renaming([f"{fact.question}\n{fact.answer}" for fact in retain], seed)
    every = [fact.question for fact in (*forget, *retain)][:RENAMED]
    asked = [renamed(text, renaming.draw(text))[0] for text in every]
    meter.read(len(asked))
    read = Target("before", model, tokenizer).reads(
        [form.prompt(text) for text in asked], [form.answer(refusal)] * len(asked)
    )
    order = sorted(range(len(asked)), key=lambda number: read[number].loss)[:DECLINED]
    return [Question(replace(forget[0], question=asked[number]), form) for number in order]
