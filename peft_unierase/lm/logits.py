"""From what a head puts out to what the model gives as logits.

Some models scale what their head puts out (Cohere, Granite), others press it together (Gemma 2). A logit that is worked
out here, to be compared with those that the model gives, must go the same way: it is sent through the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .batches import pad_left
from .replay import Recording

PROBE = 50.0  # farther than that from 0 hardly any head goes


class Logits:
    """What a model makes of its head's outputs, each by itself.

    Args:
        model: A causal language model.
        layers: Its decoder layers, none of which is run again.

    Attributes:
        plain: Whether it gives them as they are.
        slope: How much a logit grows with the head's output, near 0.
    """

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        batch = pad_left([[0]], 0, model.get_input_embeddings().weight.device, [0])
        self.head, self.recording = model.get_output_embeddings(), Recording(model, layers, len(layers) - 1, batch)
        probe = torch.linspace(-PROBE, PROBE, 101, device=self.head.weight.device)
        with torch.no_grad():
            found = self._through_model(probe).to(probe)
        self.plain = torch.equal(found, probe)
        self.slope = float((found[51] - found[49]) / (probe[51] - probe[49]))

    def __call__(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits in fp32 for outputs of the head, in their shape; the gradient goes through."""
        return outputs.float() if self.plain else self._through_model(outputs.float())

    def of_token(self, states: torch.Tensor, row: torch.Tensor, token_id: int) -> torch.Tensor:
        """The logits of one token.

        Args:
            states: What goes into the head, `(n, d)`.
            row: The token's row of the head, `(d,)`.
            token_id: Its id; the bias is the head's own, where it has one.
        """
        outputs, bias = states @ row.to(states), getattr(self.head, "bias", None)
        return self(outputs if bias is None else outputs + bias.detach()[token_id].to(outputs))

    def _through_model(self, outputs: torch.Tensor) -> torch.Tensor:
        handle = self.head.register_forward_hook(lambda *_: outputs.reshape(1, -1, 1))
        try:
            return self.recording.logits(self.recording.states).float().view(outputs.shape)
        finally:
            handle.remove()
