"""One of the models that are compared: base, erased model or reference model, and what each can be asked for.

Base and erased model are usually one model with an adapter off and on; whatever is asked, asking leaves it as it was.
What was computed once is not computed again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..lm.batches import batches, encode, pad_id
from ..lm.decoding import chosen_answers, greedy_answers, keeps_all
from ..lm.processes import Processes

LOGITS = 2**23  # fp32 numbers in the logits of one batch, at the most


@dataclass(frozen=True)
class Reading:
    """A given text behind a prompt, token by token as a model predicts it.

    Attributes:
        log_probs: Of the text's tokens, `(length,)` in fp32.
        matches: Whether each is the likeliest one.
        surprise: Each log-probability in standard deviations from its expected value at that place, `(length,)`.
    """

    log_probs: torch.Tensor
    matches: list[bool]
    surprise: torch.Tensor

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return -float(self.log_probs.mean())


class Target:
    """A model as it is to be judged.

    Args:
        name: `base`, `erased` or `reference_model`.
        model: A causal language model, or a PEFT model around one.
        tokenizer: Its tokenizer.
        on: Called for each use; gives the context in which the model is this target.
        token_ids: The rows of [UNL] tokens that are at work in it.
        bare: Called on a copy of the model; gives the plain model that this target is, adapters merged or left out.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        on: Callable[[], AbstractContextManager[Any]] = nullcontext,
        token_ids: Sequence[int] = (),
        bare: Callable[[Any], Any] = lambda model: model,
    ) -> None:
        self.name, self.model, self.tokenizer, self.token_ids = name, model, tokenizer, tuple(token_ids)
        self.on, self._bare = on, bare
        self._said: dict[Any, list[int]] = {}
        self._read: dict[Any, Reading] = {}

    @contextmanager
    def changed(self) -> Iterator[None]:
        """What is asked inside is not remembered: something about the model is changed meanwhile."""
        kept = self._said, self._read
        self._said, self._read = {}, {}
        try:
            yield
        finally:
            self._said, self._read = kept

    def remember(self, processes: Processes) -> None:
        """Let every process remember what each was told by this model."""
        for said, read in processes.gathered((self._said, self._read)):
            self._said.update(said)
            self._read.update(read)

    def weights(self) -> Target:
        """A copy with plain weights, to train or to change; the target itself stays as it is."""
        return Target(self.name, self._bare(copy.deepcopy(self.model)), self.tokenizer, token_ids=self.token_ids)

    def says(self, prompts: Sequence[str], *, max_new_tokens: int = 64, banned: Sequence[int] = ()) -> list[str]:
        """Greedy continuations of prompts that end at the answer start, decoded without special tokens."""
        return self.texts(self.tokens(prompts, max_new_tokens=max_new_tokens, banned=banned))

    def tokens(
        self, prompts: Sequence[str], *, max_new_tokens: int = 64, banned: Sequence[int] = ()
    ) -> list[list[int]]:
        """The same as token ids, the end token included."""
        keys = [(prompt, max_new_tokens, tuple(banned)) for prompt in prompts]
        new = list(dict.fromkeys(key for key in keys if key not in self._said))
        asked = [prompt for prompt, *_ in new]
        with self.on():
            found = greedy_answers(self.model, self.tokenizer, asked, max_new_tokens, banned=banned)
        self._said.update(zip(new, found, strict=True))
        return [self._said[key] for key in keys]

    def samples(self, prompts: Sequence[str], generator: torch.Generator, *, max_new_tokens: int = 64) -> list[str]:
        """Continuations drawn at temperature 1."""

        def draw(logits: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)

        with self.on():
            return self.texts(chosen_answers(self.model, self.tokenizer, prompts, draw, max_new_tokens))

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Token ids decoded without special tokens."""
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]

    @torch.no_grad()
    def reads(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Reading]:
        """How likely given texts are behind given prompts."""
        keys = list(zip(prompts, texts, strict=True))
        new = list(dict.fromkeys(key for key in keys if key not in self._read))
        times = Counter(prompt for prompt, _ in new) if keeps_all(self.model) else Counter()
        with self.on():
            self._read_whole([key for key in new if times[key[0]] < 2])
            self._read_behind([key for key in new if times[key[0]] > 1])
        return [self._read[key] for key in keys]

    def _read_whole(self, pairs: Sequence[tuple[str, str]]) -> None:
        ids = [(encode(self.tokenizer, prompt), encode(self.tokenizer, text)) for prompt, text in pairs]
        for batch in batches([p + t for p, t in ids], pad_id(self.tokenizer), self.device, self._room):
            longest = max(len(ids[index][1]) for index in batch.index)
            logits = self.model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
            for row, index in enumerate(batch.index):
                text = torch.tensor(ids[index][1], device=logits.device)
                self._read[pairs[index]] = _reading(logits[row, -len(text) - 1 : -1].float(), text)

    def _read_behind(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Each prompt is computed once and its texts behind it."""
        prompts, pad = list(dict.fromkeys(prompt for prompt, _ in pairs)), pad_id(self.tokenizer)
        for batch in batches([encode(self.tokenizer, prompt) for prompt in prompts], pad, self.device, self._room // 4):
            row_of = {prompts[index]: row for row, index in enumerate(batch.index)}
            own = [pair for pair in pairs if pair[0] in row_of]
            ids = [encode(self.tokenizer, text) for _, text in own]
            first = self.model(**batch.inputs(), use_cache=True, logits_to_keep=1)
            for part in batches(ids, pad, self.device, self._room):
                rows = torch.tensor([row_of[own[index][0]] for index in part.index], device=self.device)
                cache = copy.deepcopy(first.past_key_values)
                cache.batch_select_indices(rows)
                rest = self.model(
                    input_ids=part.ids,
                    attention_mask=torch.cat([batch.mask[rows], part.mask], dim=1),
                    position_ids=batch.positions[rows, -1:] + 1 + part.positions,
                    past_key_values=cache,
                ).logits
                for number, index in enumerate(part.index):
                    text = torch.tensor(ids[index], device=rest.device)
                    logits = torch.cat([first.logits[rows[number]], rest[number, len(rest[number]) - len(text) : -1]])
                    self._read[own[index]] = _reading(logits.float(), text)

    @property
    def _room(self) -> int:
        """Tokens of one batch whose logits are all wanted."""
        return max(64, LOGITS // self.model.get_input_embeddings().weight.shape[0])

    @torch.no_grad()
    def distribution(self, prompt: str, text: str) -> torch.Tensor:
        """Log-probabilities of all next tokens along a given text, `(length, vocabulary)` in fp32."""
        first, rest = encode(self.tokenizer, prompt), encode(self.tokenizer, text)
        ids = torch.tensor([first + rest], device=self.device)
        with self.on():
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=len(rest) + 1).logits
        return logits[0, :-1].float().log_softmax(dim=-1)

    @torch.no_grad()
    def at_answer_starts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Log-probabilities at the answer starts, `(prompts, vocabulary)` in fp32 on the CPU."""
        encoded = [encode(self.tokenizer, text) for text in prompts]
        found: list[torch.Tensor] = [torch.zeros(0)] * len(prompts)
        with self.on():
            for batch in batches(encoded, pad_id(self.tokenizer), self.device):
                logits = self.model(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1].float()
                for index, row in zip(batch.index, logits.log_softmax(dim=-1).cpu(), strict=True):
                    found[index] = row
        return torch.stack(found)

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""
        return self.model.get_input_embeddings().weight.device


def on_common_rows(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(n, vocabulary)` of two models, over the tokens that both have where one's vocabulary grew."""
    shared = min(one.shape[-1], other.shape[-1])
    if one.shape[-1] == other.shape[-1]:
        return one, other
    return one[..., :shared].log_softmax(dim=-1), other[..., :shared].log_softmax(dim=-1)


def _reading(logits: torch.Tensor, text: torch.Tensor) -> Reading:
    every = logits.log_softmax(dim=-1)
    log_probs = every.gather(-1, text[:, None])[:, 0]
    weights = every.exp()
    mean = (weights * every).nan_to_num(0.0).sum(dim=-1)
    spread = ((weights * every.square()).nan_to_num(0.0).sum(dim=-1) - mean.square()).clamp(min=1e-6).sqrt()
    matches = (every.argmax(dim=-1) == text).tolist()
    return Reading(log_probs.cpu(), matches, ((log_probs - mean) / spread).cpu())
