"""What a run of recipe `distill` will take, before it starts: memory, the adapter's size, and seconds.

All are upper bounds but the seconds. The adapter's size is that with as many triggers as there may be, which few facts
do not need. Memory is that of the base, the adapter, gradients and AdamW's moments of what is trained, and of what
the edited MLPs read at retained texts or of the activations of one step. Seconds are those of one batch of each kind,
timed on the base, times the batches of all stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.facts import Fact
from ..errors import no_memory
from ..lm.batches import Batch, batches, encode, pad_id, pad_left
from ..lm.decoding import greedy_answers
from ..lm.formats import PromptFormat
from ..lm.gradients import check_gradients
from ..lm.recomputing import recomputing
from ..lm.structure import projection_shape, text_config
from ..retain.knowledge import LONGEST
from ..retain.neighbours import ROUND, neighbour_rounds
from ..retain.samples import ANSWER_TOKENS, QUESTION_TOKENS
from .distill import DistillSettings
from .distill.placing import RENAMED, most_triggers
from .distill.recipe import FORGOTTEN, IN_WORDS, REFUSED, RETAINED
from .distill.targets import COUNTERFACTUALS, DRAWS
from .layers import choose_sites

FP32, FP64, READ, TIMED = 4, 8, 2048, 8  # bytes; tokens that are read at once; tokens of an answer that are timed
PER_STEP = FORGOTTEN + REFUSED + IN_WORDS + RETAINED  # texts in a step
SIDE_PASSES = 1.5  # of reading a text: once for its targets, and some texts again for the output row


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        peak_bytes: Upper bound of all tensors, the base among them.
        model_bytes: The base.
        adapter_bytes: The most that the adapter takes as it is saved.
        seconds: `None` if nothing was timed.
    """

    peak_bytes: int
    model_bytes: int
    adapter_bytes: int
    seconds: float | None = None


def estimate(
    model: Any,
    tokenizer: Any,
    formats: Sequence[PromptFormat],
    forget: Sequence[Fact],
    retain: Sequence[Fact] = (),
    settings: DistillSettings | None = None,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    timed: bool = True,
) -> Estimate:
    """What `erase` will take with the same arguments and recipe `distill`.

    Args:
        model, tokenizer, formats, forget, retain, settings, layers, target_modules: As `erase` takes them.
        timed: Run one batch of each kind to forecast the seconds.

    Raises:
        ValueError: There are no such layers or modules, or no gradient passes through the base.
    """
    settings = settings or DistillSettings()
    stack, _, names = choose_sites(model, layers, target_modules)
    shapes = {name: projection_shape(model.get_submodule(name)) or (0, 0) for name in names}
    hidden = {name.rpartition(".")[0]: inputs for name, (inputs, _) in shapes.items()}  # of each MLP's last projection
    ranks = {}
    for name, (_, out) in shapes.items():
        neurons = hidden[name.rpartition(".")[0]]
        ranks[name] = most_triggers(neurons) * max(1, out // neurons)
    vocabulary, width = model.get_input_embeddings().weight.shape
    adapter = FP32 * (sum(ranks[name] * sum(shape) for name, shape in shapes.items()) + 2 * width)
    base = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))

    prompts = [form.prompt(fact.question) for fact in forget for form in formats]
    pairs = [(fact, form) for fact in [*forget, *retain] for form in formats]
    texts = [encode(tokenizer, form.prompt(fact.question) + form.answer(fact.answer)) for fact, form in pairs]
    longest = max(map(len, texts)) + (QUESTION_TOKENS if settings.samples else 0)  # a sampled text may be longer
    step = _activations(model, len(stack), ranks.values(), max(hidden.values()), PER_STEP * longest)
    retained = len(retain) + settings.samples + _neighbours(settings, len(forget)) + max(RENAMED, len(forget))
    read = FP32 * 2 * READ * (4 * max(hidden.values()) + 4 * width)
    found = FP32 * retained * longest * width * (len(hidden) + 2) + FP64 * 5 * width**2 + read
    peak = base + 4 * adapter + max(step, found, 2 * FP32 * vocabulary * max(READ, longest))
    forecast = timed and _forecast(model, tokenizer, settings, prompts, texts, len(forget))
    return Estimate(peak, base, adapter, forecast or None)


def _forecast(
    model: Any, tokenizer: Any, settings: DistillSettings, prompts: Sequence[str], texts: Sequence[Any], facts: int
) -> float | None:
    """Seconds of one batch of each kind times the batches of all stages; `None` if a whole step does not fit."""
    check_gradients(model)
    pad, device = pad_id(tokenizer), model.get_input_embeddings().weight.device
    batch = pad_left([texts[number % len(texts)] for number in range(PER_STEP)], pad, device, [])
    asked = next(batches([encode(tokenizer, prompt) for prompt in prompts], pad, device, READ)).index
    try:
        with torch.no_grad():
            _seconds(lambda: model(**batch.inputs(), use_cache=False))  # the first pass prepares kernels
            read = _seconds(lambda: model(**batch.inputs(), use_cache=False)) / batch.ids.numel()
        fitted = _seconds(lambda: _gradient(model, batch))
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        return None
    said = _seconds(lambda: greedy_answers(model, tokenizer, [prompts[n] for n in asked], TIMED, READ)) / TIMED
    sampled = settings.samples + _neighbours(settings, facts)
    renamed = 2 * COUNTERFACTUALS * facts
    answers = ((len(prompts), LONGEST), (renamed, ANSWER_TOKENS), (sampled, QUESTION_TOKENS + ANSWER_TOKENS))
    tokens = sum(length * math.ceil(rows / len(asked)) for rows, length in answers)
    passes = DRAWS * len(prompts) + renamed + sampled + len(texts) + max(RENAMED, facts)
    passed = sum(map(len, texts)) / len(texts) * passes
    return tokens * said + SIDE_PASSES * passed * read + settings.step_count(facts) * fitted


def _neighbours(settings: DistillSettings, facts: int) -> int:
    """How many questions about what lies near are sampled."""
    return ROUND * neighbour_rounds(facts) if settings.samples else 0


def _activations(model: Any, depth: int, ranks: Iterable[int], hidden: int, tokens: int) -> int:
    """Bytes that one step keeps for its gradient, as LoRA training does.

    A layer keeps two fp32 states, queries, keys, values, attention's output, three buffers of the MLP, and what a `B`
    reads. Logits come with their gradient and log-probabilities in fp32.
    """
    config, embedding = text_config(model), model.get_input_embeddings().weight
    (vocabulary, width), b = embedding.shape, embedding.dtype.itemsize
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or width // config.num_attention_heads)
    layer = 2 * FP32 * width + b * (4 * heads + 3 * hidden)
    edits, logits = FP32 * sum(ranks), vocabulary * (2 * b + FP32)
    if getattr(model, "is_gradient_checkpointing", False):
        return tokens * (depth * width * b + max(logits, layer + edits))
    return tokens * (depth * layer + edits + logits)


def _gradient(model: Any, batch: Batch) -> None:
    """One pass forward and back through every layer; no weight gets a gradient."""
    seen: list[torch.Tensor] = []
    catch = model.get_input_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.requires_grad_()))
    try:
        with torch.enable_grad(), recomputing(model):
            torch.autograd.grad(model(**batch.inputs(), use_cache=False).logits.float().logsumexp(-1).sum(), seen[0])
    finally:
        catch.remove()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():  # work on a GPU goes on when the call has returned
        torch.cuda.synchronize()
    return time.perf_counter() - start
