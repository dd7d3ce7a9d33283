"""What a run of recipe `gate` will cost, before it is started: arithmetic, memory, and seconds where a model is there.

One function a stage, in the order of the run, each with its formula. They count the multiplications and additions of
matrices, two operations a weight and token, and the few large buffers; norms, activations, softmaxes and the padding of
sequences that are shorter than others in their batch are left out.
`d` is the width of the residual stream, `d_ff` that of a down-projection's input, `V` the vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ROOM = 4096  # padded tokens of a batch that is only read
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
    def layer_weights(self) -> int:
        """Weights of one decoder layer."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.width * self.mlp

    @property
    def weights(self) -> int:
        """Weights of the whole model."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.vocabulary * self.width

    def forward(self, tokens: float, context: float, layers: int, predicted: float) -> float:
        """Operations of a forward pass.

        Args:
            tokens: Tokens that go through it.
            context: Positions that each attends to.
            layers: Decoder layers that are run.
            predicted: Positions at which logits are computed.
        """
        a_token = 2 * self.layer_weights + 4 * context * self.heads * self.head_dim
        return tokens * layers * a_token + 2 * predicted * self.vocabulary * self.width

    def both_ways(self, tokens: float, context: float, layers: int, predicted: float) -> float:
        """Operations of a forward pass and of its gradient with respect to activations; weights are frozen.

        Attention has two factors that depend on the input, so its gradient costs twice what it cost forward.
        """
        attention = tokens * layers * 4 * context * self.heads * self.head_dim
        return 2 * self.forward(tokens, context, layers, predicted) + attention


@dataclass(frozen=True)
class Work:
    """What a run has to do; the defaults are those of the recipe and of short facts.

    Attributes:
        facts: Facts to forget.
        retain: Facts given to be kept.
        samples: Facts from the model itself.
        formats: Prompt formats.
        edited: Decoder layers edited.
        last: Index of the last of them.
        question: Tokens of a prompt.
        answer: Tokens of an answer.
        refusal: Tokens of a refusal.
        refusals: Refusals to choose from.
        steer_steps: Steps of the steer fit.
        row_steps: Steps of the input row.
        fit_samples: Retained answers that the steer fit sees, at the most.
        batch: Padded tokens of a batch in the steer fit.
        lesson: Padded prompt tokens of a batch of refusals.
        weights_tried: Retain weights tried until the gates open.
        block: Questions sampled at a time.
    """

    facts: int
    retain: int
    samples: int
    formats: int
    edited: int
    last: int
    question: int = 24
    answer: int = 32
    refusal: int = 14
    refusals: int = 8
    steer_steps: int = 120
    row_steps: int = 150
    fit_samples: int = 320
    batch: int = 640
    lesson: int = 512
    weights_tried: int = 2
    block: int = 128

    @property
    def kept(self) -> int:
        """All retain facts."""
        return self.retain + self.samples

    @property
    def doors(self) -> int:
        """Forget prompts."""
        return self.facts * self.formats

    @property
    def shut_keys(self) -> int:
        """Keys of a layer on which its gate must stay shut: doors and other positions of retained facts, refusals."""
        return self.kept * (self.formats + self.question + self.answer - 1) + 160 * self.refusal

    @property
    def lesson_tokens(self) -> float:
        """Tokens run in a lesson behind cached prompts: [UNL] and a refusal, half of an answer before them."""
        rows = min(self.lesson / self.question, self.doors)
        return rows * (1 + self.refusal + self.answer / 2)


@dataclass(frozen=True)
class Stage:
    """Cost of one stage.

    Attributes:
        name: As the run calls it.
        batched: Operations in forward and backward passes of whole batches.
        stepwise: Operations in passes of one token a row.
        solving: Operations in fp64 linear algebra.
        memory: Bytes needed beside the model, about.
    """

    name: str
    batched: float = 0.0
    stepwise: float = 0.0
    solving: float = 0.0
    memory: float = 0.0

    @property
    def flops(self) -> float:
        return self.batched + self.stepwise + self.solving


@dataclass(frozen=True)
class Rates:
    """Operations a second that the machine at hand reached, by kind; see `Stage`."""

    batched: float
    stepwise: float
    solving: float

    def seconds(self, stage: Stage) -> float:
        return stage.batched / self.batched + stage.stepwise / self.stepwise + stage.solving / self.solving


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a run; `str()` of it is a table.

    Attributes:
        sizes: Of the base.
        work: What was asked for.
        stages: In the order of the run.
        rates: What the machine reached in a trial; `None` where there was no model to try.
    """

    sizes: Sizes
    work: Work
    stages: list[Stage] = field(repr=False)
    rates: Rates | None = None

    @property
    def flops(self) -> float:
        """Operations of the whole run."""
        return sum(stage.flops for stage in self.stages)

    @property
    def model_bytes(self) -> int:
        return self.sizes.weights * self.sizes.bytes

    @property
    def peak_bytes(self) -> float:
        """Memory at the worst moment, model included."""
        return self.model_bytes + max(stage.memory for stage in self.stages)

    @property
    def adapter_bytes(self) -> int:
        """Rows of A and columns of B of the edited layers and two rows of [UNL], in fp32."""
        return FP32 * (self.work.edited * (self.sizes.mlp + self.sizes.width) + 2 * self.sizes.width)

    @property
    def seconds(self) -> float | None:
        """Time of the whole run, if there was a model to try."""
        return None if self.rates is None else sum(map(self.rates.seconds, self.stages))

    @property
    def dominant(self) -> Stage:
        """The stage that takes longest, or most operations where time is not known."""
        return max(self.stages, key=self.rates.seconds if self.rates else lambda stage: stage.flops)

    def __str__(self) -> str:
        rows = [
            (stage.name, with_unit(stage.flops, "FLOP"), with_unit(stage.memory, "B"), self._time(stage))
            for stage in self.stages
        ]
        whole = "" if self.seconds is None else f"{self.seconds:,.0f} s"
        rows.append(("in all", with_unit(self.flops, "FLOP"), with_unit(self.peak_bytes, "B"), whole))
        return "\n".join(
            f"  {name:24s}{flops:>12s}{memory:>10s}{took:>10s}".rstrip() for name, flops, memory, took in rows
        )

    def _time(self, stage: Stage) -> str:
        return "" if self.rates is None else f"{self.rates.seconds(stage):,.0f} s"


def estimate_cost(
    base: Any,
    facts: int,
    *,
    retain: int = 0,
    samples: int = 256,
    formats: int = 3,
    layers: tuple[int, ...] | None = None,
    **work: int,
) -> CostEstimate:
    """What erasing from a base will cost.

    Args:
        base: A model, whose machine is tried for a moment to tell seconds too; or its configuration; or a mapping with
            the fields of `Sizes`, of which `heads` may be left out (then 128 wide each), and `kv_heads` and `head_dim`.
        facts: Facts to forget.
        retain: Facts given to be kept.
        samples: Facts from the model itself.
        formats: Prompt formats.
        layers: Indices of the edited layers, instead of the rule's.
        **work: Other fields of `Work`.

    Raises:
        ValueError: A size is missing from `base`.
    """
    sizes = sizes_of(base)
    if layers is None:
        from .layers import middle_layers

        layers = tuple(middle_layers(sizes.layers))
    plan = Work(facts, retain, samples, formats, edited=len(layers), last=max(layers), **work)
    stages = [stage(sizes, plan) for stage in STAGES]
    rates = measured_rates(base, sizes) if hasattr(base, "get_input_embeddings") else None
    return CostEstimate(sizes, plan, stages, rates)


def asking(s: Sizes, w: Work) -> Stage:
    """Asking the base: one pass over questions with answers."""
    length = w.question + w.answer
    flops = w.facts * s.forward(length, length, s.layers, w.answer + 1)
    tokens = min(ROOM, w.facts * length)
    return Stage("asking the base", batched=flops, memory=_passing(s, tokens, tokens * w.answer / length))


def sampling(s: Sizes, w: Work) -> Stage:
    """Sampling retain data: a question is written, then read again and answered, token by token."""
    length = w.question + w.answer
    written = s.forward(w.question, w.question / 2, s.layers, w.question)
    answered = s.forward(w.answer, w.question + w.answer / 2, s.layers, w.answer)
    read = s.forward(w.question, w.question, s.layers, 1)
    cache = w.block * length * s.layers * 2 * s.kv_heads * s.head_dim * s.bytes
    return Stage(
        "sampling retain data",
        batched=w.samples * read,
        stepwise=w.samples * (written + answered),
        memory=2 * cache + 3 * w.block * s.vocabulary * FP32,  # a cache is copied when it grows
    )


def recording(s: Sizes, w: Work) -> Stage:
    """Recording retain keys: retained questions in every format, and each once with its answer, up to the last edit."""
    length = w.question + w.answer
    a_fact = w.formats * s.forward(w.question, w.question, w.last + 1, 0) + s.forward(length, length, w.last + 1, 0)
    tokens = min(ROOM, w.kept * length)
    return Stage("recording retain keys", batched=w.kept * a_fact, memory=_passing(s, tokens, 0) + _keys(s, w))


def fitting_steer(s: Sizes, w: Work) -> Stage:
    """Fitting the steer vector: each step bends a forget and a retained batch above the edit, and has two lessons."""
    length, above = w.question + w.answer, s.layers - w.last - 1
    bent, record, memory = 0.0, 0.0, 2 * _lesson_memory(s, w) + _keys(s, w)
    for rows in (w.doors, min(w.kept, w.fit_samples)):
        tokens = min(w.batch, rows * length)
        bent += s.both_ways(tokens, length, above, tokens)
        record += s.forward(rows * length, length, w.last + 1, 0)
        memory += _kept_for_gradient(s, tokens, above, tokens) + rows * length * s.width * s.bytes
    flops = record + w.steer_steps * (bent + 2 * _lesson(s, w)) + _choosing(s, w)
    return Stage("fitting the steer vector", batched=flops, memory=memory)


def editing(s: Sizes, w: Work) -> Stage:
    """Editing layers: the forget keys anew before each layer, and the ridge solve in the smaller dimension."""
    read = (2 * w.edited + 1) * s.forward(w.doors * w.question, w.question, w.last + 1, 0)
    if _dual(s, w):
        rows = w.doors + w.shut_keys
        each, memory = 2 * rows**2 * s.mlp + 2 / 3 * rows**3, 2 * FP64 * rows**2 + FP64 * rows * s.mlp
        once = 0.0
    else:
        once = 2 * w.shut_keys * s.mlp**2
        each, memory = 2 * w.doors * s.mlp**2 + 2 / 3 * s.mlp**3, 3 * FP64 * s.mlp**2
    solving = w.edited * (once + w.weights_tried * each)
    return Stage("editing layers", w.weights_tried * read, solving=solving, memory=memory + _keys(s, w))


def fitting_row(s: Sizes, w: Work) -> Stage:
    """Fitting the input row: each step has one lesson, through all layers."""
    flops = w.row_steps * _lesson(s, w) + _choosing(s, w)
    return Stage("fitting the input row", batched=flops, memory=_lesson_memory(s, w))


STAGES: tuple[Callable[[Sizes, Work], Stage], ...] = (
    asking,
    sampling,
    recording,
    fitting_steer,
    editing,
    fitting_row,
)


def _dual(s: Sizes, w: Work) -> bool:
    """Whether a layer has fewer keys than its keys have components."""
    return w.doors + w.shut_keys < s.mlp


def _keys(s: Sizes, w: Work) -> float:
    """Bytes held of the shut keys of all edited layers: their second moments, or the keys where that is less."""
    return w.edited * s.mlp * min(s.mlp, w.shut_keys) * FP32


def _lesson(s: Sizes, w: Work) -> float:
    """Operations of one lesson, forward and backward through all layers."""
    return s.both_ways(w.lesson_tokens, w.question + w.refusal + w.answer / 2, s.layers, w.lesson_tokens)


def _choosing(s: Sizes, w: Work) -> float:
    """Operations of choosing refusals: the prompts once for their caches, then every refusal behind every prompt.

    Later choices are among the few refusals that were chosen at first and cost little.
    """
    tried = w.refusals * w.doors * (1 + w.refusal)
    return s.forward(w.doors * w.question, w.question, s.layers, 0) + s.forward(
        tried, w.question + w.refusal, s.layers, tried
    )


def _lesson_memory(s: Sizes, w: Work) -> float:
    return _kept_for_gradient(s, w.lesson_tokens, s.layers, w.lesson_tokens)


def _passing(s: Sizes, tokens: float, predicted: float) -> float:
    """Bytes of a pass that nothing is kept of: the widest layer's buffers, and the logits."""
    return s.bytes * (tokens * (4 * s.width + 3 * s.mlp) + predicted * s.vocabulary)


def _kept_for_gradient(s: Sizes, tokens: float, layers: int, predicted: float) -> float:
    """Bytes of a pass with a gradient: about 12 buffers of `d` and 4 of `d_ff` a layer, and 4 of the logits in fp32."""
    return tokens * layers * s.bytes * (12 * s.width + 4 * s.mlp) + 4 * FP32 * predicted * s.vocabulary


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


def measured_rates(model: Any, sizes: Sizes) -> Rates:
    """What the model's machine reaches, tried for a moment: 512 tokens at once, 128 rows of one token, one solve."""
    import torch

    device = model.get_input_embeddings().weight.device

    def passing(rows: int, length: int) -> float:
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        took = _timed(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.sum().item())
        return sizes.forward(rows * length, length, sizes.layers, rows) / took

    count = 768
    matrix = torch.eye(count, dtype=torch.float64, device=device)
    solved = _timed(lambda: torch.linalg.solve(matrix, matrix[0]).sum().item())
    with torch.no_grad():
        return Rates(passing(16, 32), passing(128, 1), 2 / 3 * count**3 / solved)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two goes behind a first one that warms up."""
    work()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def with_unit(value: float, unit: str) -> str:
    """`1.5 GB`, `320 TFLOP`, in powers of a thousand."""
    power = min(int(math.log10(max(value, 1)) / 3), 6)
    return f"{value / 1000**power:.3g} {'kMGTPE'[power - 1] if power else ''}{unit}"
