"""CIR-like selective updates: what retained texts use is collapsed (Sondej & Yang, arXiv 2509.11816, section 3; with
Mahdi: RepSelect, arXiv 2606.17168).

    ΔW = (I - V Vᵀ) B A (I - U Uᵀ)
    L(θ) = E_{F} [ mean_{l, t} max(0, m_θ(l, t) · m_0(l, t) / n_l² ) ] + λ E_{R} [ mean_t || h_θ(t) - h_0(t) || / n ]

For every projection U are the top principal components of its inputs, and V those of the gradients at its outputs.
`m(l, t)` is what the MLP of layer l writes and `n_l` its mean norm: the first term breaks it and ends at 0. `h` is the
stream after the last edited layer. CIR takes 24 and 36 components and the MLPs of layers 6 to 11 of 32, and updates the
weights directly. Here

* a LoRA is held in this space: its factors are projected after every step;
* the components are those of retained texts and their cross-entropy (CIR takes those of the forget set itself), found
  once, on `measured` texts, for which a tenth of the budget is used at the most;
* the optimizer is that of all methods, where CIR takes plain gradients of a fixed norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from peft_unierase import Fact
from peft_unierase.lm.structure import find_decoder_layers, find_mlp_projections

from ..budget import Budget, Erased
from ..training import BATCH, Question, Training, outputs_of, span

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "layers": (0.2, 0.375), "inputs": 24, "outputs": 36, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "layers": (0.0, 0.5), "inputs": 24, "outputs": 36, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "layers": (0.0, 0.5), "inputs": 24, "outputs": 36, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "layers": (0.0, 0.5), "inputs": 96, "outputs": 36, "retain_weight": 5.0},
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
    layers: tuple[float, float] = (0.2, 0.375),
    inputs: int = 24,
    outputs: int = 36,
    retain_weight: float = 1.0,
    measured: int = 64,
    epochs: float | None = None,
) -> Erased:
    """Find the components, then train until the budget is used up."""
    edited = span(model, *layers)
    names = [find_mlp_projections(model)[index] for index in edited]
    run = Training(model, tokenizer, forget, retain, budget, seed=seed, modules=[name for mlp in names for name in mlp])
    projected = [run.model.get_submodule(f"base_model.model.{name}") for mlp in names for name in mlp]
    writing = [run.model.get_submodule(f"base_model.model.{mlp[-1]}") for mlp in names]
    last = find_decoder_layers(run.model)[1][edited[-1]]
    spaces = _components(run, projected, max(1, min(measured, budget.texts // 10)), inputs, outputs)

    @torch.no_grad()
    def collapse() -> None:
        for module, (u, v) in zip(projected, spaces, strict=True):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a -= (a @ u) @ u.T
            b -= v @ (v.T @ b)

    collapse()

    def states(questions: Sequence[Question], of: Sequence[nn.Module]) -> list[torch.Tensor]:
        """What modules put out at all tokens of the questions and answers, `(tokens, d)` each."""
        batch, _ = run.batch(questions)
        with outputs_of(of) as seen:
            run.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
        return [each.reshape(*batch.ids.shape, -1)[batch.mask.bool()].float() for each in seen]

    def both(questions: Sequence[Question], of: Sequence[nn.Module]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same now and before."""
        run.meter.trained(len(questions))
        run.meter.read(len(questions))
        with torch.no_grad(), run.model.disable_adapter():
            before = states(questions, of)
        return list(zip(states(questions, of), before, strict=True))

    def loss() -> torch.Tensor:
        written = both(run.forget.take(), writing)
        agreeing = [(now * was).sum(dim=-1) / was.norm(dim=-1).mean().square() for now, was in written]
        ((now, was),) = both(run.retain.take(), [last])
        moved = (now - was).norm(dim=-1).mean() / was.norm(dim=-1).mean()
        return torch.stack([each.clamp(min=0).mean() for each in agreeing]).mean() + retain_weight * moved

    return run.descend(loss, learning_rate, epochs, after=collapse).erased()


def _components(
    run: Training, modules: Sequence[nn.Module], texts: int, inputs: int, outputs: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each projection `U (in, inputs)` and `V (out, outputs)`, found on retained texts; orthonormal columns."""
    read: list[list[torch.Tensor]] = [[] for _ in modules]
    sent: list[list[torch.Tensor]] = [[] for _ in modules]
    for _ in range(-(-texts // BATCH)):
        with ExitStack() as stack:
            for module, states, gradients in zip(modules, read, sent, strict=True):

                def see(_: nn.Module, args: Any, output: torch.Tensor, x: Any = states, g: Any = gradients) -> None:
                    x.append(args[0].detach().flatten(0, -2))
                    output.register_hook(lambda gradient: g.append(gradient.flatten(0, -2)))

                stack.callback(module.register_forward_hook(see).remove)
            run.retain_loss().backward()
    run.model.zero_grad()
    return [(_top(states, inputs), _top(gradients, outputs)) for states, gradients in zip(read, sent, strict=True)]


def _top(rows: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """The directions in which rows are largest, at most half of all: orthonormal columns."""
    every = torch.cat(list(rows)).double()
    _, vectors = torch.linalg.eigh(every.T @ every)  # ascending
    return vectors[:, -min(count, len(vectors) // 2) :].float()
