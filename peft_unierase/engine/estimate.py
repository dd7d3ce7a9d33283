"""What a run of recipe `distill` will take, before it is started: memory, and tokens to pass through the model.

Memory is that of LoRA training at the batch of one step. `d` is the width of the residual stream, `a` that of all
attention heads together, `f` that of an MLP's hidden units, `V` the vocabulary, `b` the bytes of a number in the base,
`L` its layers, of which `E` are edited.

    base        as loaded: quantised weights count as they lie in memory
    adapter     4 (rank (inputs + outputs) for each edited projection + 2 d), saved in fp32
    training    the adapter; for `B` and the rows gradients and AdamW's two moments; 4 inputs^2 for the second moment of
                what each edited projection reads on retained texts
    activations tokens (L (8 d + b (4 a + 3 f)) + E e): a layer keeps what enters its two norms in fp32, queries, keys,
                values and what attention gives, and three buffers of the MLP; an edited one also what its `B` reads,
                e = 4 rank: `A` is not trained, so that nothing keeps what it reads
    logits      2 b V for each kept position and 4 V for each place with a target: logits, their gradient, and
                log-probabilities in fp32

With gradient checkpointing tokens L d b take the place of the activations, and one layer's come when the logits are
gone. All texts of a step are taken to go through together, each as long as the longest, less a beginning that all
prompt formats share (not with checkpointing). Sampling retain data, which keeps the keys and values of many rows, or
reading what stays or what the teacher predicts, 2 b V for each of `READ` tokens and the moments of what the edited
projections read, is the peak if it takes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..decoding import WORTH_SHARING
from ..facts import Fact
from ..knowledge import LONGEST
from ..prompts import PromptFormat, encode
from ..tuner.structure import projection_shape, text_config
from .distill import DistillSettings
from .distill.fit import common
from .distill.recipe import ANSWER, COUNTERFACTUAL, SOLVED, SOME_TEXTS
from .distill.teacher import TOGETHER
from .layers import choose_sites
from .neighbours import ROUND, neighbour_rounds
from .samples import ANSWER_TOKENS, QUESTION_TOKENS, ROWS

FP32 = 4  # bytes
READ = 2048  # tokens at once
LOOKED_AT = 6  # texts for each of `SOME_TEXTS`, when the output row is solved; most of them are cut at the answer
BOTH_WAYS = 2  # passes that a pass with its gradient counts for: the base's weights get none
RECORDED = 2  # times that forget texts are run to choose the directions


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        peak_bytes: Tensors at the worst, the base among them.
        model_bytes: The base.
        adapter_bytes: The adapter, as it is saved.
        token_passes: Tokens to pass through the base in all stages; one with its gradient counts twice.
    """

    peak_bytes: int
    model_bytes: int
    adapter_bytes: int
    token_passes: int

    def record(self) -> dict[str, int]:
        """A JSON object."""
        return asdict(self)


def estimate(
    model: Any,
    tokenizer: Any,
    formats: Sequence[PromptFormat],
    forget: Sequence[Fact],
    retain: Sequence[Fact] = (),
    settings: DistillSettings | None = None,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
) -> Estimate:
    """What `erase` will take with the same arguments and recipe `distill`.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        formats: Prompt formats to cover.
        forget: What must go.
        retain: What is given as a sample of what must stay.
        settings: See [`DistillSettings`].
        layers, target_modules: As `erase` takes them.

    Raises:
        ValueError: There are no such layers or modules.
    """
    settings = settings or DistillSettings()
    stack, _, names = choose_sites(model, layers, target_modules, settings.modules, (settings.first, settings.last))
    config, embedding = text_config(model), model.get_input_embeddings().weight
    vocabulary, d = embedding.shape
    heads, b = config.num_attention_heads, embedding.dtype.itemsize
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    shapes = [projection_shape(model.get_submodule(name)) or (0, 0) for name in names]
    f = shapes[-1][0]
    adapter = FP32 * (settings.rank * sum(map(sum, shapes)) + 2 * d)
    base = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))

    prompts = [len(encode(tokenizer, form.prompt(fact.question))) for fact in forget for form in formats]
    whole = [
        len(encode(tokenizer, form.prompt(fact.question) + form.answer(fact.answer)))
        for fact in [*forget, *retain]
        for form in formats
    ]
    asked, mean = sum(prompts) / len(prompts), sum(whole) / len(whole)
    sampled = settings.samples + (ROUND * neighbour_rounds(len(forget)) if settings.samples else 0)
    checkpoints = bool(getattr(model, "is_gradient_checkpointing", False))
    shared = common([encode(tokenizer, wording.head) for form in formats for wording in (form, *form.variants)])
    said = ANSWER if sampled else COUNTERFACTUAL if settings.counterfactuals else 0
    length = max(*whole, max(prompts) + said) - (shared if shared >= WORTH_SHARING and not checkpoints else 0)

    near = settings.retain_batch // 2 if sampled else 0
    general = settings.retain_batch - settings.retain_batch // 2
    texts = settings.forget_batch + settings.refusal_batch + max(1, settings.refusal_batch // 2) + near + general
    tokens, answer = texts * length, max(*whole, max(prompts) + said) - min(prompts) + 1
    places = general * length + (texts - general) * answer
    layer = 2 * FP32 * d + b * (4 * heads * head + 3 * f)
    edits = FP32 * settings.rank * len(names)
    logits = vocabulary * (2 * b * tokens + FP32 * places)
    if checkpoints:
        kept = tokens * len(stack) * d * b + max(logits, tokens * (layer + edits))
    else:
        kept = tokens * (len(stack) * layer + edits) + logits
    written = FP32 * (settings.rank * sum(outputs for _, outputs in shapes) + 2 * d)
    moments = FP32 * sum(inputs**2 for inputs, _ in shapes)
    fitting = adapter + 3 * written + moments + kept
    caches = 2 * b * len(stack) * (getattr(config, "num_key_value_heads", None) or heads) * head
    sampling = min(ROWS, sampled) * ((asked + ANSWER_TOKENS) * caches + 2 * FP32 * vocabulary)

    reading = 2 * b * vocabulary * min(READ, max(sampled + len(retain), settings.draws * TOGETHER) * length)
    reading += 3 * moments

    passes = len(forget) * len(formats) * (asked + LONGEST) + sampled * (asked + QUESTION_TOKENS + ANSWER_TOKENS)
    passes += len(forget) * mean * (len(formats) * settings.draws + 4 * settings.counterfactuals)
    passes += (sampled + len(retain)) * mean
    passes += RECORDED * len(forget) * mean * (len(formats) * (1 + settings.counterfactuals) + 1)
    steps = settings.step_count(len(forget)) + settings.settling_steps
    passes += (BOTH_WAYS * texts + LOOKED_AT * SOME_TEXTS / SOLVED) * steps * mean
    return Estimate(base + round(max(fitting, sampling, reading)), base, adapter, round(passes))
