"""What a run of recipe `gate` will cost, before it is started: arithmetic, memory, and seconds where a model is there.

One function a stage, in the order of the run, each with its formula. They count the multiplications and additions of
matrices, two operations a weight and token, and the few large buffers; norms, activations, softmaxes and the padding of
sequences that are shorter than others in their batch are left out. The gates are taken to be rows on the keys; hidden
units as detectors (`gate/units.py`) are not counted yet.
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
        layers: Indices of the edited decoder layers, ascending.
        question: Tokens of a prompt.
        answer: Tokens of an answer.
        refusal: Tokens of a refusal.
        refusals: Refusals to choose from.
        depth: Answer positions gated behind the door.
        trials: Retain weights tried until few enough held-out questions fire.
        widest: Width of the keys that are solved together, at the most.
        held_out: One in this many retained facts is shown to no stage.
        refused: Refusals in which the gates must stay shut.
        fit_samples: Retained answers, and forget answers, that the steer fit sees, at the most; twice as many forget
            answers are asked for at each trial.
        steer_steps: Steps of the steer fit.
        row_steps: Steps of the input row, at the most.
        row_steps_per_fact: More of them for every fact.
        batch: Padded tokens of a batch in the steer fit.
        lesson: Padded prompt tokens of a lesson, a batch of refusals.
        given: Answer tokens that come before a refusal in a lesson, at the most.
        asked: Questions sampled at a time.
    """

    facts: int
    retain: int
    samples: int
    formats: int
    layers: tuple[int, ...]
    question: int = 24
    answer: int = 32
    refusal: int = 14
    refusals: int = 8
    depth: int = 16
    trials: int = 2
    widest: int = 16384
    held_out: int = 8
    refused: int = 160
    fit_samples: int = 320
    steer_steps: int = 140
    row_steps: int = 130
    row_steps_per_fact: float = 0.5
    batch: int = 384
    lesson: int = 256
    given: int = 24
    asked: int = 128

    @property
    def length(self) -> int:
        """Tokens of a prompt with its answer."""
        return self.question + self.answer

    @property
    def held(self) -> int:
        """Retain facts that are held out."""
        return (self.retain + self.samples) // self.held_out

    @property
    def kept(self) -> int:
        """Retain facts that the stages see."""
        return self.retain + self.samples - self.held

    @property
    def doors(self) -> int:
        """Forget prompts."""
        return self.facts * self.formats

    @property
    def behind(self) -> int:
        """Gated positions behind a door; the last answer token has none of its own."""
        return min(self.depth, self.answer - 1)

    @property
    def forget_keys(self) -> int:
        """Keys of a layer on which its gate must open."""
        return self.doors * (1 + self.behind)

    @property
    def shut_keys(self) -> float:
        """Keys of a layer on which it must stay shut: doors, every other position of answered questions, refusals."""
        return self.kept * (self.formats + self.length / 2) + self.refused * (1 + self.refusal)

    @property
    def before_refusal(self) -> float:
        """Answer tokens before a refusal in a lesson: its rows are padded to the longest, of ten four fifths."""
        return 0.8 * min(self.given, self.answer)

    @property
    def lesson_tokens(self) -> float:
        """Tokens run in a lesson behind cached prompts: the door, the beginning of an answer, [UNL], a refusal."""
        return min(self.lesson / self.question, self.doors) * (1 + self.before_refusal + self.refusal)

    def blocks(self, width: int) -> list[tuple[int, ...]]:
        """The edited layers in blocks that are solved together, for keys `width` wide."""
        count = max(1, self.widest // width)
        return [self.layers[start : start + count] for start in range(0, len(self.layers), count)]


@dataclass(frozen=True)
class Stage:
    """Cost of one stage.

    Attributes:
        name: As the run calls it.
        batched: Operations in forward and backward passes of whole batches, and in moments of keys, in fp32.
        stepwise: Operations in passes of one token a row.
        solving: Operations in factorising moments, in fp64.
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
        return FP32 * (len(self.work.layers) * (self.sizes.mlp + self.sizes.width) + 2 * self.sizes.width)

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
    samples: int = 1024,
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
        layers: Indices of the edited layers, ascending, instead of the rule's.
        **work: Other fields of `Work`.

    Raises:
        ValueError: A size is missing from `base`.
    """
    sizes = sizes_of(base)
    if layers is None:
        from .layers import middle_layers

        layers = tuple(middle_layers(sizes.layers))
    plan = Work(facts, retain, samples, formats, tuple(layers), **work)
    stages = [stage(sizes, plan) for stage in STAGES]
    rates = measured_rates(base, sizes) if hasattr(base, "get_input_embeddings") else None
    return CostEstimate(sizes, plan, stages, rates)


def asking(s: Sizes, w: Work) -> Stage:
    """Asking the base: one pass over questions with answers."""
    return Stage("asking the base", _answered(s, w, w.facts), memory=_answered_memory(s, w, w.facts))


def sampling(s: Sizes, w: Work) -> Stage:
    """Sampling retain data: a question is written, then read again and answered, token by token."""
    written = s.forward(w.question, w.question / 2, s.layers, w.question)
    answered = s.forward(w.answer, w.question + w.answer / 2, s.layers, w.answer)
    read = s.forward(w.question, w.question, s.layers, 1)
    return Stage(
        "sampling retain data",
        batched=w.samples * read,
        stepwise=w.samples * (written + answered),
        memory=2 * _caches(s, w.asked * w.length) + 3 * w.asked * s.vocabulary * FP32,  # a cache is copied as it grows
    )


def recording(s: Sizes, w: Work) -> Stage:
    """Recording retain keys: retained questions in every format, and each once with its answer.

    The passes end at the last edit. Of the keys second moments are kept, those of a block's layers side by side.
    """
    return _recording(
        s,
        w,
        "recording retain keys",
        w.kept * (w.formats + w.length / 2),
        [
            (w.kept * w.formats, w.question),
            (w.kept, w.length),
        ],
    )


def fitting_steer(s: Sizes, w: Work) -> Stage:
    """Fitting the steer vector: the gates are solved once; then each step bends a forget and a retained batch above the
    lowest edit, and has one lesson."""
    first, last, above = w.layers[0] + 1, w.layers[-1] + 1, s.layers - w.layers[0] - 1
    kept = min(w.kept, w.fit_samples)
    once = s.forward(kept * w.length, w.length, above, kept * w.length)  # what the base says at retained positions
    once += _forget_keys(s, w) + _grams(s, w)
    once += s.forward((w.doors + kept) * w.length, w.length, last, 0)  # how far the gates open
    bent, memory = 0.0, _lesson_memory(s, w)
    for rows in (min(w.doors, w.fit_samples), kept):
        tokens = min(w.batch, rows * w.length)
        once += s.forward(rows * w.length, w.length, first, 0)
        bent += s.both_ways(tokens, w.length, above, tokens)
        memory += _kept_for_gradient(s, tokens, above, tokens) + rows * w.length * s.width * s.bytes
    flops = once + w.steer_steps * (bent + _lesson(s, w)) + _choosing(s, w)
    memory = max(memory + w.forget_keys * len(w.layers) * s.mlp * FP32, _solving_memory(s, w)) + _moments(s, w)
    return Stage("fitting the steer vector", flops, solving=_solving(s, w), memory=memory)


def recording_refusals(s: Sizes, w: Work) -> Stage:
    """Recording refusals: forget questions and beginnings of answers, and refusals behind them."""
    before = w.question + w.answer / 4
    keys = w.refused * (w.refusal + 0.5)
    return _recording(s, w, "recording refusals", keys, [(w.refused, before + 0.5 + w.refusal)])


def editing(s: Sizes, w: Work) -> Stage:
    """Editing layers: at each trial two solves, the forget keys anew between them, then answers are asked for.

    A solve is for the rows of all layers of a block: a moment in fp32, its Cholesky factor in fp64.
    """
    asked = w.held * w.formats + min(w.doors, 2 * w.fit_samples)
    batched = _answered(s, w, asked) + _forget_keys(s, w) + 3 * _grams(s, w)  # in the second, the echo has one too
    memory = max(_solving_memory(s, w), _answered_memory(s, w, asked)) + 2 * _moments(s, w)
    return Stage("editing layers", w.trials * batched, solving=w.trials * 2 * _solving(s, w), memory=memory)


def fitting_row(s: Sizes, w: Work) -> Stage:
    """Fitting the input row: each step has one lesson, through all layers."""
    flops = (w.row_steps + w.row_steps_per_fact * w.facts) * _lesson(s, w) + _choosing(s, w)
    return Stage("fitting the input row", batched=flops, memory=_lesson_memory(s, w) + _moments(s, w))


STAGES: tuple[Callable[[Sizes, Work], Stage], ...] = (
    asking,
    sampling,
    recording,
    fitting_steer,
    recording_refusals,
    editing,
    fitting_row,
)


def _recording(s: Sizes, w: Work, name: str, keys: float, passes: list[tuple[float, float]]) -> Stage:
    read = sum(s.forward(rows * length, length, w.layers[-1] + 1, 0) for rows, length in passes)
    moments = sum(2 * keys * (len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))
    tokens = min(ROOM, sum(rows * length for rows, length in passes))
    held = tokens * len(w.layers) * s.mlp * (s.bytes + FP32)
    return Stage(name, read + moments, memory=_passing(s, tokens, 0) + held + _moments(s, w))


def _forget_keys(s: Sizes, w: Work) -> float:
    """Operations of a pass that records the forget keys."""
    length = w.question + w.behind
    return s.forward(w.doors * length, length, w.layers[-1] + 1, 0)


def _grams(s: Sizes, w: Work) -> float:
    """Operations of the forget keys' second moments."""
    return sum(2 * w.forget_keys * (len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))


def _solving(s: Sizes, w: Work) -> float:
    """Operations of the Cholesky factors of all blocks."""
    return sum((len(block) * s.mlp) ** 3 / 3 for block in w.blocks(s.mlp))


def _solving_memory(s: Sizes, w: Work) -> float:
    """Bytes of moment, factor and the solver's copy of it in fp64, beside the forget keys and their echo."""
    width = len(w.blocks(s.mlp)[0]) * s.mlp
    keys = 3 * FP32 * w.forget_keys * len(w.layers) * s.mlp
    return 3 * FP64 * width**2 + keys


def _moments(s: Sizes, w: Work) -> float:
    """Bytes of the shut keys' second moments, which stay until the run ends."""
    return FP32 * sum((len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))


def _caches(s: Sizes, tokens: float) -> float:
    """Bytes of the keys and values of all layers."""
    return tokens * s.layers * 2 * s.kv_heads * s.head_dim * s.bytes


def _answered(s: Sizes, w: Work, rows: float) -> float:
    """Operations of a pass over questions with answers, whose tokens are predicted."""
    return rows * s.forward(w.length, w.length, s.layers, w.answer + 1)


def _answered_memory(s: Sizes, w: Work, rows: float) -> float:
    tokens = min(ROOM, rows * w.length)
    return _passing(s, tokens, tokens * w.answer / w.length)


def _lesson(s: Sizes, w: Work) -> float:
    """Operations of one lesson, forward and backward through all layers."""
    return s.both_ways(w.lesson_tokens, w.question + w.before_refusal + w.refusal, s.layers, w.lesson_tokens)


def _choosing(s: Sizes, w: Work) -> float:
    """Operations of choosing refusals: the prompts once for their caches, then every refusal behind every prompt.

    Later choices are among the few refusals that were chosen at first and cost little.
    """
    tried = w.refusals * w.doors * (1 + w.refusal)
    return s.forward(w.doors * w.question, w.question, s.layers, 0) + s.forward(
        tried, w.question + w.refusal, s.layers, tried
    )


def _lesson_memory(s: Sizes, w: Work) -> float:
    return _kept_for_gradient(s, w.lesson_tokens, s.layers, w.lesson_tokens) + _caches(s, w.doors * w.question)


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
    """What the model's machine reaches, tried for a moment: 512 tokens at once, 128 rows of one token, one factor."""
    import torch

    device = model.get_input_embeddings().weight.device

    def passing(rows: int, length: int) -> float:
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        took = _timed(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.sum().item())
        return sizes.forward(rows * length, length, sizes.layers, rows) / took

    count = 768
    matrix = torch.eye(count, dtype=torch.float64, device=device)
    factorised = _timed(lambda: torch.linalg.cholesky(matrix).sum().item())
    with torch.no_grad():
        return Rates(passing(16, 32), passing(128, 1), count**3 / 3 / factorised)


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
