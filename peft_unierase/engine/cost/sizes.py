"""A base as far as its cost depends on it, and what passes through it cost: operations and bytes.

Counted are the multiplications and additions of matrices, two operations a weight and token, and the few large buffers;
norms, activations, softmaxes and the padding of sequences that are shorter than others in their batch are left out. `d`
is the width of the residual stream, `d_ff` that of a down-projection's input, `V` the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FP32, FP64 = 4, 8  # bytes


@dataclass(frozen=True)
class Sizes:
    """A base, as far as its cost depends on it.

    Attributes:
        width: `d`.
        mlp: `d_ff`.
        layers: Number of decoder layers.
        vocabulary: `V`.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        gated: Whether the MLP has a gate projection beside those up and down.
        tied: Whether embedding and head are one matrix.
        bytes: Bytes of a weight.
    """

    width: int
    mlp: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool = True
    tied: bool = False
    bytes: int = 2

    @property
    def attention_weights(self) -> int:
        """Weights of one decoder layer before its MLP."""
        return 2 * self.width * self.head_dim * (self.heads + self.kv_heads)

    @property
    def layer_weights(self) -> int:
        """Weights of one decoder layer."""
        return self.attention_weights + (3 if self.gated else 2) * self.width * self.mlp

    def to_mlp(self, layer: int) -> float:
        """Decoder layers that a pass runs that ends before the MLP of layer `layer`."""
        return layer + self.attention_weights / self.layer_weights

    @property
    def weights(self) -> int:
        """Weights of the whole model."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.vocabulary * self.width

    def forward(self, tokens: float, context: float, layers: float, predicted: float) -> float:
        """Operations of a forward pass.

        Args:
            tokens: Tokens that go through it.
            context: Positions that each attends to.
            layers: Decoder layers that are run.
            predicted: Positions at which logits are computed.
        """
        a_token = 2 * self.layer_weights + 4 * context * self.heads * self.head_dim
        return tokens * layers * a_token + 2 * predicted * self.vocabulary * self.width

    def both_ways(self, tokens: float, context: float, layers: float, predicted: float) -> float:
        """Operations of a forward pass and of its gradient with respect to activations; weights are frozen.

        Attention has two factors that depend on the input, so its gradient costs twice what it cost forward.
        """
        attention = tokens * layers * 4 * context * self.heads * self.head_dim
        return 2 * self.forward(tokens, context, layers, predicted) + attention

    def caches(self, tokens: float) -> float:
        """Bytes of the keys and values of all layers."""
        return tokens * self.layers * 2 * self.kv_heads * self.head_dim * self.bytes

    def passing(self, tokens: float, predicted: float) -> float:
        """Bytes of a pass that nothing is kept of: the widest layer's buffers, and the logits."""
        return self.bytes * (tokens * (4 * self.width + 3 * self.mlp) + predicted * self.vocabulary)

    def kept_for_gradient(self, tokens: float, layers: float, predicted: float) -> float:
        """Bytes of a pass with a gradient: some 12 buffers of `d` and 4 of `d_ff` a layer, 4 of the logits in fp32."""
        kept = tokens * layers * self.bytes * (12 * self.width + 4 * self.mlp)
        return kept + 4 * FP32 * predicted * self.vocabulary


def sizes_of(base: Any) -> Sizes:
    """The sizes of a model, of a configuration, or in a mapping.

    Raises:
        ValueError: One is missing.
    """
    if isinstance(base, Sizes):
        return base
    if isinstance(base, Mapping):
        missing = [name for name in ("width", "mlp", "layers", "vocabulary") if name not in base]
        if missing:
            raise ValueError(f"sizes without {', '.join(missing)}; give width, mlp, layers and vocabulary at least")
        heads = base.get("heads") or math.ceil(base["width"] / 128)
        rest = {"heads": heads, "kv_heads": heads, "head_dim": base["width"] // heads}
        return Sizes(**{**rest, **base})
    config = getattr(base, "config", base)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not width or not heads:
        raise ValueError(f"{type(base).__name__} tells no hidden_size or num_attention_heads; give a mapping of sizes")
    widths = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    sizes = Sizes(
        width=width,
        mlp=next(filter(None, widths), 4 * width),
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or width // heads,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        bytes=getattr(getattr(base, "dtype", None), "itemsize", 2),
    )
    # Configurations do not say whether there is a gate projection; a model without them has too few weights.
    few = hasattr(base, "parameters") and sum(p.numel() for p in base.parameters()) < 0.98 * sizes.weights
    return replace(sizes, gated=not few)
