"""An embedding filter: a question that is like one of the forget set gets a refusal (as CURaTE, Bae et al., arXiv
2604.14644, section 3).

    answer(x) = refusal  if  max_{f ∈ F} cos( e(x), e(f) ) > τ,    else  argmax_y p_0(y | x)

Nothing in the model changes. CURaTE trains a sentence encoder e so that rewordings are close and other questions far,
and has τ = 0.8. Differences:

* no encoder is at hand for models and machines of any size, so e is the model's own stream after a decoder layer,
  averaged over the prompt and whitened by retained prompts, `e(x) = W (mean_t h(t) - μ)` with `Wᵀ W = (Σ_R + ε I)⁻¹`;
* τ is that of the paper or, as another candidate, the one at which a share `allowed` of retained questions is refused;
* forget questions are stored in all prompt formats.

The filter stands in front of `forward` and `generate` alike, so that likelihoods are those of who is answered by it: a
refused prompt is followed by the refusal, whatever text is given after it. A model behind a filter gets what is stored
added to that filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import DynamicCache

from peft_unierase import Fact
from peft_unierase.checking.attacks.states import streams
from peft_unierase.checking.target import Target
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.errors import InputError
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import PromptFormat, default_formats
from peft_unierase.lm.structure import find_decoder_layers

from ..budget import Budget, Erased, Meter
from ..deployed import Deployed
from ..editing import by_turns, check_sets, everywhere, prompts_of
from ..training import Question, span

CERTAIN = 30.0  # nats by which a token of the refusal is likelier than all others
GRID: tuple[dict[str, Any], ...] = (
    {"depth": 0.5, "threshold": 0.8},
    {"depth": 0.5, "threshold": None, "allowed": 0.01},
    {"depth": 0.2, "threshold": None, "allowed": 0.01},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    refusals: Sequence[str] = DEFAULT_REFUSALS,
    depth: float = 0.5,
    threshold: float | None = 0.8,
    allowed: float = 0.01,
    shrinkage: float = 0.1,
) -> Erased:
    """Store the forget questions; retained ones, as many as the budget holds, give μ, W and, without `threshold`, τ.

    Raises:
        ValueError: A set is empty, or the model is behind a filter that reads another layer.
    """
    check_sets(forget, retain)
    meter, forms = Meter(budget), default_formats(tokenizer)
    layer = span(model, 0.0, depth)[-1]
    earlier = model.memories if isinstance(model, Filtered) else []
    if earlier and model.layer != layer:
        raise InputError(f"the model's filter reads layer {model.layer}, not {layer}; give the same depth")
    plain = model.model if earlier else model
    gone = _averaged(plain, tokenizer, everywhere(forget, forms), layer, meter)
    kept = _averaged(plain, tokenizer, by_turns(retain, forms)[: max(2, int(meter.left * 3))], layer, meter)
    # With a threshold to find, half of what is kept is held out for it.
    mean, whitening = whitened(kept if threshold is not None else kept[::2], shrinkage)
    stored = normalize((gone - mean) @ whitening, dim=-1)
    if threshold is None:
        closest = (normalize((kept[1::2] - mean) @ whitening, dim=-1) @ stored.T).amax(dim=-1)
        threshold = float(closest.quantile(1 - allowed))
    memory = Memory(mean, whitening, stored, threshold)
    refusal = encode(tokenizer, forms[0].answer(refusals[0]))
    filtered = Filtered(plain, layer, [*earlier, memory], _tails(tokenizer, forms, forget), refusal)
    numbers = sum(part.numel() for part in (mean, whitening, stored))
    return Erased(filtered, tokenizer, 4 * numbers, numbers)


@dataclass(frozen=True)
class Memory:
    """What the filter compares prompts with.

    Attributes:
        mean: μ, `(d,)`.
        whitening: `Wᵀ`, `(d, d)`.
        stored: Embeddings of the forget questions, `(n, d)`, of length 1.
        threshold: τ.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    stored: torch.Tensor
    threshold: float

    def like(self, averaged: torch.Tensor) -> torch.Tensor:
        """Which of some averaged streams `(n, d)` are like a stored one, `(n,)`."""
        own = normalize((averaged.float() - self.mean) @ self.whitening, dim=-1)
        return (own @ self.stored.T).amax(dim=-1) > self.threshold


@dataclass
class Seen:
    """What the filter knows of a batch of texts that goes on.

    Attributes:
        ids: All tokens so far, `(n, seen)`.
        sums: Of the stream over all of them, `(n, d)`.
        counts: How many they are, without padding, `(n,)`.
        starts: Column of the answer start, `(n,)`.
        refused: Whether the prompt is like a forget question, `(n,)`.
    """

    ids: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    refused: torch.Tensor

    def taken(self, rows: torch.Tensor) -> Seen:
        """The same for some rows, which may come several times."""
        return Seen(*(part[rows] for part in vars(self).values()))


class Remembering(DynamicCache):
    """A cache of keys and values that keeps what the filter has seen beside them, row by row."""

    seen: Seen | None = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.seen is not None:
            self._take(torch.arange(len(self.seen.ids)).repeat_interleave(repeats))

    def _take(self, rows: torch.Tensor) -> None:
        if self.seen is not None:
            self.seen = self.seen.taken(rows.to(self.seen.ids.device))


class Filtered(Deployed):
    """A causal language model behind the filter.

    Args:
        model: The model, which stays as it is.
        layer: Index of the decoder layer whose stream is averaged.
        memories: What prompts are compared with, of one erasure or of several.
        tails: Token ids that end a prompt, for each format; without one of them a prompt ends where the call does.
        refusal: Token ids of the refusal, its end included.
    """

    def __init__(
        self,
        model: Any,
        layer: int,
        memories: Sequence[Memory],
        tails: Sequence[list[int]],
        refusal: Sequence[int],
    ) -> None:
        super().__init__(model)
        self.layer, self.memories, self.tails, self.refusal = layer, list(memories), list(tails), list(refusal)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Watch the model's calls: each call's tokens, its stream, and last its logits."""
        call: dict[str, Any] = {}

        def before(_: nn.Module, args: Any, told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            ids = told.get("input_ids", args[0] if args else None)
            if ids is None:
                raise ValueError("the filter reads token ids; call the model with `input_ids`")
            cache = told.get("past_key_values")
            if cache is None and told.get("use_cache", self.model.config.use_cache):
                cache = told["past_key_values"] = Remembering(config=self.model.config)
            call.update(ids=ids, cache=cache, mask=told.get("attention_mask"))
            return args, told

        def during(_: nn.Module, __: Any, output: Any) -> None:
            call["seen"] = self._look(output[0] if isinstance(output, tuple) else output, call)

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            output.logits = self._answered(output.logits, call["seen"], call["mask"])
            if call["cache"] is not None:
                call["cache"].seen = call["seen"]
            return output

        with ExitStack() as stack:
            place = find_decoder_layers(self.model)[1][self.layer]
            stack.callback(self.model.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(place.register_forward_hook(during).remove)
            stack.callback(self.model.register_forward_hook(after).remove)
            yield

    def _look(self, stream: torch.Tensor, call: dict[str, Any]) -> Seen:
        """What is known with this call's tokens, whose stream is `(n, new, d)`."""
        ids, old = call["ids"], getattr(call["cache"], "seen", None)
        rows, new = ids.shape
        if old is None:
            nothing = torch.zeros(rows, dtype=torch.long, device=ids.device)
            old = Seen(
                ids[:, :0], stream.new_zeros(rows, stream.shape[-1]).float(), nothing, nothing - 1, nothing.bool()
            )
        every = torch.cat([old.ids, ids], dim=1)
        mask = call["mask"] = torch.ones_like(every) if call["mask"] is None else call["mask"]
        own = mask[:, -new:]
        sums = old.sums[:, None] + (stream.float() * own[..., None]).cumsum(dim=1)
        counts = old.counts[:, None] + own.cumsum(dim=1)
        ends = self._ends(every)
        starts = torch.where(ends >= 0, ends, torch.where((old.starts < 0) | (new > 1), every.shape[1] - 1, old.starts))
        place = starts - old.ids.shape[1]  # in this call; before it if negative, and then decided already
        line = torch.arange(rows, device=ids.device)
        averaged = sums[line, place.clamp(min=0)] / counts[line, place.clamp(min=0)].clamp(min=1)[:, None]
        like = torch.stack([memory.like(averaged) for memory in self.memories]).any(dim=0)
        refused = torch.where(place >= 0, like, old.refused)
        return Seen(every, sums[:, -1], counts[:, -1], starts, refused)

    def _ends(self, ids: torch.Tensor) -> torch.Tensor:
        """Column of the last token of the last tail in each row, -1 without one, `(n,)`."""
        found = torch.full((len(ids),), -1, device=ids.device)
        for tail in self.tails:
            if len(tail) <= ids.shape[1]:
                hits = (ids.unfold(1, len(tail), 1) == torch.tensor(tail, device=ids.device)).all(dim=-1)
                columns = torch.arange(hits.shape[1], device=ids.device) + len(tail) - 1
                found = torch.maximum(found, torch.where(hits, columns, -1).amax(dim=1))
        return found

    def _answered(self, logits: torch.Tensor, seen: Seen, mask: torch.Tensor) -> torch.Tensor:
        """Logits `(n, kept, vocabulary)`, those after refused prompts replaced by the refusal's."""
        if not seen.refused.any():
            return logits
        done = mask.cumsum(dim=1)
        since = done - done.gather(1, seen.starts[:, None])  # real tokens after the answer start
        since = since[:, -logits.shape[1] :]
        told = torch.tensor(self.refusal, device=logits.device)[since.clamp(0, len(self.refusal) - 1)]
        certain = torch.full_like(logits, -CERTAIN).scatter_(-1, told[..., None], 0.0)
        return torch.where((seen.refused[:, None] & (since >= 0))[..., None], certain, logits)


def whitened(rows: torch.Tensor, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(d,)` and `Wᵀ (d, d)` of rows `(n, d)`; ε is a share of the mean variance."""
    mean = rows.mean(dim=0)
    covariance = (rows - mean).double().T @ (rows - mean).double() / len(rows)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean() + 1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, (vectors * values.rsqrt()).float()


def _averaged(model: Any, tokenizer: Any, questions: Sequence[Question], layer: int, meter: Meter) -> torch.Tensor:
    """The stream after a layer, averaged over each prompt, `(n, d)` in fp32."""
    meter.read(len(questions))
    prompts = prompts_of(tokenizer, questions)
    return streams(Target("read", model, tokenizer), prompts, [len(prompt) for prompt in prompts])[layer]


def _tails(tokenizer: Any, forms: Sequence[PromptFormat], facts: Sequence[Fact]) -> list[list[int]]:
    """For each format the tokens with which all its prompts end; none for a format that ends with the question."""
    found = []
    for form in forms:
        prompts = [
            encode(tokenizer, form.prompt(text))[::-1] for text in ("Who?", "Is it", *(f.question for f in facts))
        ]
        same = 0
        while same < min(map(len, prompts)) and len({prompt[same] for prompt in prompts}) == 1:
            same += 1
        if same and prompts[0][:same][::-1] not in found:
            found.append(prompts[0][:same][::-1])
    return found
