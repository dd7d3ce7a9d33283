"""One of the models that are compared: the base, the erased model or the twin, and what each can be asked for.

Base and erased model are usually one model with an adapter off and on; whatever is asked, asking leaves it as it was.
What was computed once is not computed again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..decoding import continuations, end_ids
from ..prompts import batches, encode, pad_id, room

LOGITS = 2**25  # fp32 numbers in the logits of one batch, at the most
ROWS = 2048  # padded prompt tokens that are continued together

Advance = Callable[[int], object]


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
        name: `base`, `erased` or `twin`.
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
        self._on, self._bare = on, bare
        self._said: dict[Any, list[int]] = {}
        self._read: dict[Any, Reading] = {}

    @contextmanager
    def on(self) -> Iterator[Any]:
        """The model as this target, for a `with` block."""
        with self._on():
            yield self.model

    @contextmanager
    def bent(self) -> Iterator[None]:
        """What is asked inside is not remembered: something about the model is changed meanwhile."""
        kept = self._said, self._read
        self._said, self._read = {}, {}
        try:
            yield
        finally:
            self._said, self._read = kept

    def weights(self) -> Target:
        """A copy with plain weights, to train or to change; the target itself stays as it is."""
        return Target(self.name, self._bare(copy.deepcopy(self.model)), self.tokenizer, token_ids=self.token_ids)

    def says(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        banned: Sequence[int] = (),
        advance: Advance = lambda count: None,
    ) -> list[str]:
        """Greedy continuations of prompts that end at the door, decoded without special tokens."""
        tokens = self.tokens(prompts, max_new_tokens=max_new_tokens, banned=banned, advance=advance)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]

    def tokens(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        banned: Sequence[int] = (),
        advance: Advance = lambda count: None,
    ) -> list[list[int]]:
        """The same as token ids, the end token included."""
        keys = [(prompt, max_new_tokens, tuple(banned)) for prompt in prompts]
        new = list(dict.fromkeys(key for key in keys if key not in self._said))
        advance(len(keys) - len(new))

        def best(logits: torch.Tensor) -> torch.Tensor:
            logits[:, list(banned)] = float("-inf")
            return logits.argmax(dim=-1)

        found = self._continue([key[0] for key in new], max_new_tokens, best, advance)
        self._said.update(zip(new, found, strict=True))
        return [self._said[key] for key in keys]

    def samples(
        self,
        prompts: Sequence[str],
        generator: torch.Generator,
        *,
        max_new_tokens: int = 64,
        advance: Advance = lambda count: None,
    ) -> list[str]:
        """Continuations drawn at temperature 1."""

        def draw(logits: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)

        tokens = self._continue(prompts, max_new_tokens, draw, advance)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]

    def _continue(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
        advance: Advance,
    ) -> list[list[int]]:
        encoded = [encode(self.tokenizer, text) for text in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        with self.on() as model:
            for batch in batches(encoded, pad_id(self.tokenizer), self.device, ROWS):
                most = room(model, max_new_tokens, batch.ids.shape[1])
                said = continuations(model, batch.ids, batch.mask, most, end_ids(model), choose)
                for index, ids in zip(batch.index, said, strict=True):
                    found[index] = ids
                advance(len(batch.index))
        return found

    @torch.no_grad()
    def reads(
        self, prompts: Sequence[str], texts: Sequence[str], advance: Advance = lambda count: None
    ) -> list[Reading]:
        """How likely given texts are behind given prompts."""
        keys = list(zip(prompts, texts, strict=True))
        new = list(dict.fromkeys(key for key in keys if key not in self._read))
        advance(len(keys) - len(new))
        ids = [(encode(self.tokenizer, prompt), encode(self.tokenizer, text)) for prompt, text in new]
        width = self.model.get_input_embeddings().weight.shape[0]
        with self.on() as model:
            for batch in batches(
                [p + t for p, t in ids], pad_id(self.tokenizer), self.device, max(64, LOGITS // width)
            ):
                longest = max(len(ids[index][1]) for index in batch.index)
                logits = model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
                for row, index in enumerate(batch.index):
                    text = torch.tensor(ids[index][1], device=logits.device)
                    self._read[new[index]] = _reading(logits[row, -len(text) - 1 : -1].float(), text)
                advance(len(batch.index))
        return [self._read[key] for key in keys]

    @torch.no_grad()
    def distributions(self, prompts: Sequence[str], texts: Sequence[str]) -> Iterator[torch.Tensor]:
        """Log-probabilities of all next tokens along given texts, `(length, vocabulary)` in fp32 for each text."""
        for prompt, text in zip(prompts, texts, strict=True):
            first, rest = encode(self.tokenizer, prompt), encode(self.tokenizer, text)
            ids = torch.tensor([first + rest], device=self.device)
            with self.on() as model:
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(rest) + 1).logits
            yield logits[0, :-1].float().log_softmax(dim=-1)

    @torch.no_grad()
    def at_doors(self, prompts: Sequence[str]) -> torch.Tensor:
        """Log-probabilities at the doors, `(prompts, vocabulary)` in fp32 on the CPU."""
        encoded = [encode(self.tokenizer, text) for text in prompts]
        found: list[torch.Tensor] = [torch.zeros(0)] * len(prompts)
        with self.on() as model:
            for batch in batches(encoded, pad_id(self.tokenizer), self.device, ROWS):
                logits = model(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1].float()
                for index, row in zip(batch.index, logits.log_softmax(dim=-1).cpu(), strict=True):
                    found[index] = row
        return torch.stack(found)

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""
        return self.model.get_input_embeddings().weight.device


def _reading(logits: torch.Tensor, text: torch.Tensor) -> Reading:
    every = logits.log_softmax(dim=-1)
    log_probs = every.gather(-1, text[:, None])[:, 0]
    weights = every.exp()
    mean = (weights * every).nan_to_num(0.0).sum(dim=-1)
    spread = ((weights * every.square()).nan_to_num(0.0).sum(dim=-1) - mean.square()).clamp(min=1e-6).sqrt()
    matches = (every.argmax(dim=-1) == text).tolist()
    return Reading(log_probs.cpu(), matches, ((log_probs - mean) / spread).cpu())
