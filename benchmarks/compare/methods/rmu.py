"""RMU: representation misdirection (Li et al., arXiv 2403.03218, section 4, equations 2 to 4).

    L(θ) = E_{F} [ mean_t || h_θ(t) - c u ||² ] + alpha E_{R} [ mean_t || h_θ(t) - h_0(t) ||² ]

`h` is the residual stream `(d,)` after decoder layer l, u a random unit vector with entries from U(0, 1), and the
squares are averaged over the d components. The paper changes the down-projections of layers l-2 to l with l = 7 of 32,
and has c = 6.5 and alpha = 1200 for Zephyr-7B. Here

* the LoRA is on these three down-projections or, as a setting, on all projections up to layer l;
* c is `steering` times the mean norm of the stream, because norms differ from model to model (Dang et al., arXiv
  2408.06223, do so too), and both terms are in the unit of its mean square, so that alpha means the same everywhere;
* tokens are those of questions and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peft_unierase import Fact
from peft_unierase.lm.structure import find_decoder_layers
from peft_unierase.lm.trace import traced_output

from ..budget import Budget, Erased
from ..training import Question, Training, projections, span

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "depth": 0.25, "steering": 1.0, "retain_weight": 100.0, "all_projections": False},
    {"learning_rate": 1e-3, "depth": 0.5, "steering": 2.0, "retain_weight": 10.0, "all_projections": True},
    {"learning_rate": 3e-3, "depth": 0.5, "steering": 2.0, "retain_weight": 10.0, "all_projections": True},
    {"learning_rate": 1e-3, "depth": 0.5, "steering": 5.0, "retain_weight": 100.0, "all_projections": True},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    learning_rate: float = 1e-4,
    depth: float = 0.25,
    steering: float = 1.0,
    retain_weight: float = 100.0,
    all_projections: bool = False,
    epochs: float | None = None,
) -> Erased:
    """Train until the budget is used up; l is the last layer before `depth`, a share of all layers."""
    layer = span(model, 0.0, depth)[-1]
    edited = range(layer + 1) if all_projections else range(max(0, layer - 2), layer + 1)
    modules = projections(model, edited, () if all_projections else ("down_proj",))
    run = Training(model, tokenizer, forget, retain, budget, seed=seed, modules=modules)
    place = find_decoder_layers(run.model)[1][layer]

    def stream(questions: Sequence[Question]) -> torch.Tensor:
        """The stream at all tokens of the questions and answers, `(tokens, d)`."""
        batch, _ = run.batch(questions)
        with traced_output(place) as seen:
            run.model(**batch.inputs(), use_cache=False)
        states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        return states[batch.mask.bool()].float()

    def before(questions: Sequence[Question]) -> torch.Tensor:
        run.meter.read(len(questions))
        with torch.no_grad(), run.model.disable_adapter():
            return stream(questions)

    def now(questions: Sequence[Question]) -> torch.Tensor:
        run.meter.trained(len(questions))
        return stream(questions)

    known = before(run.retain.take())
    direction = torch.rand(known.shape[1], generator=torch.Generator().manual_seed(seed)).to(known.device)
    target = steering * known.norm(dim=-1).mean() * direction / direction.norm()
    unit = known.square().mean()

    def loss() -> torch.Tensor:
        kept = run.retain.take()
        misdirected = (now(run.forget.take()) - target).square().mean() / unit
        return misdirected + retain_weight * (now(kept) - before(kept)).square().mean() / unit

    return run.descend(loss, learning_rate, epochs).erased()
