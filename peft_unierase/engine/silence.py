"""Where [UNL] must stay improbable without the edit: else its output row alone would learn to tell questions apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..lm.logits import Logits

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Silence:
    """Positions at which [UNL] must not come up.

    Attributes:
        states: What goes into the head, `(n, d)` in fp32.
        others: Log-sum-exp of all other tokens' logits, `(n,)` in fp32.
        kinds: 0 for answer starts of forget facts as they are without a change, 1 for those of retained facts, 2 for
            other positions, `(n,)`, int64; a recipe may have more. Kinds weigh the same, so that the few near misses
            are not lost among the many.
        token_id: [UNL]'s id.
        logits: What the model makes of its head's outputs.
    """

    states: torch.Tensor
    others: torch.Tensor
    kinds: torch.Tensor
    token_id: int
    logits: Logits

    @classmethod
    def at(
        cls, states: torch.Tensor, outputs: torch.Tensor, kinds: torch.Tensor, token_id: int, logits: Logits
    ) -> Silence:
        """Positions with these states and logits `(n, vocabulary)`, which may be as the base has them for [UNL]."""
        others = outputs.float().clone()
        others[:, token_id] = float("-inf")
        return cls(states.float(), others.logsumexp(dim=-1), kinds.to(states.device), token_id, logits)

    @property
    def tensors(self) -> Tensors:
        """`states`, `others` and `kinds`."""
        return self.states, self.others, self.kinds

    @classmethod
    def joined(cls, parts: Sequence[Silence]) -> Silence:
        """All positions of several parts."""
        states, others, kinds = zip(*((part.states, part.others, part.kinds) for part in parts), strict=True)
        return cls(torch.cat(states), torch.cat(others), torch.cat(kinds), parts[0].token_id, parts[0].logits)

    def some(self, chosen: torch.Tensor) -> Silence:
        """Those of the positions for which `chosen (n,)` is true."""
        return replace(self, states=self.states[chosen], others=self.others[chosen], kinds=self.kinds[chosen])

    def lead(self, row: torch.Tensor) -> torch.Tensor:
        """[UNL]'s logit over all other tokens' together, with the output row `row (d,)`, in nats, `(n,)`."""
        return self.logits.of_token(self.states, row, self.token_id) - self.others

    def excess(self, row: torch.Tensor, most: float, power: int = 1) -> torch.Tensor:
        """How far [UNL]'s log-probability is above `most` with the output row `row (d,)`, in nats; mean of a power."""
        excess = torch.relu(nn.functional.logsigmoid(self.lead(row)) - most).pow(power)
        return torch.stack([excess[self.kinds == kind].mean() for kind in self.kinds.unique()]).mean()
