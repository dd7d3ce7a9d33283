"""How much the updates write on retained inputs: one matrix a module stands for all retained texts at once.

The divergence from the base is measured on a few retained texts a step. What an update adds to a module's output for
*all* of them, the mean of `|B A x|^2`, needs their second moment alone (as the null space of AlphaEdit, arXiv
2410.02355, does), and so no pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def change(inputs: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of what an update `b a` writes on retained texts, over that of what the module writes.

    Args:
        inputs: As [`Moments.inputs`] gives it, `(in, in)`.
        a: `(r, in)`.
        b: `(out, r)`.
    """
    a, b = a.to(inputs.device), b.to(inputs.device)
    return ((a @ inputs @ a.T) * (b.T @ b)).sum()


def distinguishing(forget: torch.Tensor, retained: torch.Tensor, rank: int, floor: float) -> torch.Tensor:
    """The directions of a module's inputs that forget texts use most beside what retained texts use.

    They are the generalised eigenvectors of both moments with the largest eigenvalues (compare CIR and RepSelect, arXiv
    2509.11816 and 2606.17168, which take from an update what both kinds of texts share). What is read along them is
    loud at the names of the forget set and quiet at other names, which no retained text has to hold.

    Args:
        forget: Second moment of the inputs on forget texts, `(in, in)`, in fp32 or better.
        retained: On retained texts.
        rank: How many directions.
        floor: Energy that is added to that of retained texts in every direction, in shares of the mean.

    Returns:
        `A (rank, in)`, so that each row's answers to forget texts have mean square 1.
    """
    identity = torch.eye(len(retained), device=retained.device, dtype=forget.dtype)
    mean = retained.diagonal().mean()
    lower = torch.linalg.cholesky(retained / mean + floor * identity)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    energies, vectors = torch.linalg.eigh(inverse @ (forget / mean) @ inverse.T)
    chosen = vectors[:, -rank:].flip(-1)
    scale = energies[-rank:].flip(-1).clamp(min=1e-12).rsqrt() / mean.sqrt()
    return ((chosen * scale).T @ inverse).float()


class Moments:
    """Second moments of what modules read, over the energy of what they write, summed up pass by pass.

    Args:
        modules: The modules by name.
        along: For each module directions `(k, in)`, as [`distinguishing`] gives them; each text weighs so much that it
            has the same energy along them. Without them each token weighs the same.
    """

    def __init__(self, modules: Mapping[str, nn.Module], along: Mapping[str, torch.Tensor] | None = None) -> None:
        self.modules = modules
        self.along = along
        self.read: dict[str, torch.Tensor] = {}
        self.written: dict[str, torch.Tensor] = {}
        self.components: dict[str, int] = {}

    @contextmanager
    def over(self, mask: torch.Tensor) -> Iterator[None]:
        """Take in the passes in a `with` block, at the tokens where `mask (batch, length)` is 1."""
        handles = [module.register_forward_hook(self._note(name, mask)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self) -> dict[str, torch.Tensor]:
        """Of each module, `(in, in)` in fp32; see [`change`]."""
        return {name: total / self.written[name] for name, total in self.read.items()}

    def spreads(self) -> dict[str, float]:
        """Root mean square of the components of what each module writes."""
        return {name: float(self.written[name] / count) ** 0.5 for name, count in self.components.items()}

    def _note(self, name: str, mask: torch.Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            kept = mask.bool().to(output.device).flatten()  # OPT runs its MLPs on all tokens in one row
            x, y = (part.detach().reshape(len(kept), -1)[kept].float() for part in (args[0], output))
            if self.along:
                tokens = mask.sum(dim=1).tolist()
                loud = (x @ self.along[name].to(x).T).pow(2).mean(dim=1)
                energies, written = (
                    torch.stack([part.sum() for part in each.split(tokens)]) for each in (loud, y.pow(2).sum(dim=1))
                )
                weights = (written / energies.clamp(min=1e-12)).sqrt()
                x = x * weights.repeat_interleave(torch.tensor(tokens, device=x.device))[:, None]
            # In main memory: those of an 8B model take 7 GB.
            self.read[name] = self.read.get(name, 0) + (x.T @ x).cpu()
            self.written[name] = self.written.get(name, 0) + y.pow(2).sum().cpu()
            self.components[name] = self.components.get(name, 0) + y.numel()

        return hook
