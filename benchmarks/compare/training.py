"""What the trained methods share: a LoRA, texts in a fixed order, reading answers, and a loop that keeps the budget.

Whatever differs between two methods is in their own files. All train the same rank on the same projections, draw the
same facts in the same prompt formats (those that our recipes cover too) and use the same optimizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from peft_unierase import Fact
from peft_unierase.checking.target import Target
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.errors import InputError
from peft_unierase.lm.batches import Batch, encode, pad_id, pad_left
from peft_unierase.lm.formats import PromptFormat, default_formats
from peft_unierase.lm.structure import find_decoder_layers, projection_shape

from .budget import Budget, Erased, Meter

BATCH = 4  # texts of each kind in a step
WARM_UP = 0.1  # share of the steps in which the learning rate rises; then it falls to zero
CLIP = 1.0  # norm of a step's gradient, at the most
WEIGHT_DECAY = 0.01
COMPARED, ASKED = 25, 4  # refusals that are compared, and after how many forget questions


@dataclass(frozen=True)
class Question:
    """A fact and the format that it is asked in."""

    fact: Fact
    form: PromptFormat

    def answered(self, answer: str) -> Question:
        """The same question with another answer."""
        return replace(self, fact=replace(self.fact, answer=answer))


class Draws:
    """Questions by turns: facts in an order that is shuffled anew after each round, each in the next prompt format.

    Args:
        facts: The facts.
        forms: The formats.
        seed: Of the order.
    """

    def __init__(self, facts: Sequence[Fact], forms: Sequence[PromptFormat], seed: str) -> None:
        self.facts, self._next = list(facts), self._rounds(list(forms), random.Random(seed))

    def take(self, count: int = BATCH) -> list[Question]:
        """The next questions.

        Raises:
            ValueError: There are no facts.
        """
        if not self.facts:
            raise InputError("there is no fact to draw; give forget facts and retain facts")
        return [next(self._next) for _ in range(count)]

    def _rounds(self, forms: list[PromptFormat], order: random.Random) -> Iterator[Question]:
        number = 0
        while True:
            for fact in order.sample(self.facts, len(self.facts)):
                yield Question(fact, forms[number % len(forms)].turn(number // len(forms)))
                number += 1


@dataclass(frozen=True)
class Answers:
    """The answers of a batch as a model predicts them, at their places from the right.

    Attributes:
        logits: `(n, length, vocabulary)` in fp32: at each place what predicts its token.
        tokens: `(n, length)`, int64.
        mask: True where an answer's token is, `(n, length)`.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor

    @property
    def log_probs(self) -> torch.Tensor:
        """`log p(y_t | x, y_<t)`, `(n, length)`; 0 where no answer is."""
        return self.logits.log_softmax(dim=-1).gather(-1, self.tokens[..., None])[..., 0] * self.mask

    @property
    def sums(self) -> torch.Tensor:
        """`log p(y | x)`, `(n,)`."""
        return self.log_probs.sum(dim=-1)

    @property
    def lengths(self) -> torch.Tensor:
        """`|y|`, `(n,)`."""
        return self.mask.sum(dim=-1)

    @property
    def cross_entropy(self) -> torch.Tensor:
        """Mean negative log-likelihood of the answers' tokens, in nats."""
        return -self.mean(self.log_probs)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of `(n, length)` over the answers' tokens."""
        return (values * self.mask).sum() / self.mask.sum()

    def divergence(self, reference: Answers) -> torch.Tensor:
        """Mean `KL(reference || self)` over the answers' tokens, in nats."""
        own, other = self.logits.log_softmax(dim=-1), reference.logits.log_softmax(dim=-1)
        return self.mean((other.exp() * (other - own)).sum(dim=-1))


class Training:
    """A LoRA that is being trained, the texts it is trained on, and what is left of the budget.

    Args:
        model: A plain causal language model, which is wrapped in place.
        tokenizer: Its tokenizer.
        forget: What must go.
        retain: What must stay.
        budget: What may be used.
        seed: Of the LoRA's start and of all that is drawn.
        refusals: Sentences that decline.
        modules: Full names of the projections to train; by default all linear ones of the decoder.

    Attributes:
        model: The `PeftModel`.
        meter: Counts what is read and trained.
        forget, retain: Draws of questions.

    Raises:
        ValueError: The model has adapters already, or there is no forget fact.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        forget: Sequence[Fact],
        retain: Sequence[Fact],
        budget: Budget,
        *,
        seed: int = 0,
        refusals: Sequence[str] = DEFAULT_REFUSALS,
        modules: Sequence[str] | None = None,
    ) -> None:
        if not forget:
            raise InputError("the forget set is empty; give at least one fact that must go")
        self.tokenizer, self.forms, self.seed = tokenizer, default_formats(tokenizer), seed
        self.meter = Meter(budget)
        self.forget = Draws(forget, self.forms, f"{seed} forget")
        self.retain = Draws(retain, self.forms, f"{seed} retain")
        self.refusals, self._refusing = list(refusals), random.Random(f"{seed} refusals")
        self.model = with_lora(model, modules or projections(model), budget.rank, seed)

    def declined(self, questions: Sequence[Question]) -> list[Question]:
        """The same questions, each with a refusal that is drawn."""
        return [each.answered(self._refusing.choice(self.refusals)) for each in questions]

    def batch(self, questions: Sequence[Question]) -> tuple[Batch, list[int]]:
        """Prompts with their answers, padded on the left, and the length of each answer in tokens."""
        prompts = [encode(self.tokenizer, each.form.prompt(each.fact.question)) for each in questions]
        answers = [encode(self.tokenizer, each.form.answer(each.fact.answer)) for each in questions]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        device = self.model.get_input_embeddings().weight.device
        return pad_left(texts, pad_id(self.tokenizer), device, list(range(len(texts)))), [len(ids) for ids in answers]

    def read(self, questions: Sequence[Question]) -> Answers:
        """The answers as the model that is being trained predicts them, with gradients."""
        self.meter.trained(len(questions))
        return self._read(questions)

    @torch.no_grad()
    def reference(self, questions: Sequence[Question]) -> Answers:
        """The answers as the model predicted them before: the same one with its adapter off."""
        self.meter.read(len(questions))
        with self.model.disable_adapter():
            return self._read(questions)

    def retain_loss(self) -> torch.Tensor:
        """Cross-entropy of the next retained answers: what "+ GD" adds."""
        return self.read(self.retain.take()).cross_entropy

    def retain_divergence(self) -> torch.Tensor:
        """`KL(before || now)` along the next retained answers: what "+ KL" adds."""
        questions = self.retain.take()
        return self.read(questions).divergence(self.reference(questions))

    def _read(self, questions: Sequence[Question]) -> Answers:
        batch, lengths = self.batch(questions)
        longest = max(lengths)
        logits = self.model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
        ends = torch.tensor(lengths, device=batch.ids.device)
        mask = torch.arange(longest, device=ends.device) >= longest - ends[:, None]
        return Answers(logits[:, :-1].float(), batch.ids[:, -longest:], mask)

    def descend(
        self,
        loss: Callable[[], torch.Tensor],
        learning_rate: float,
        epochs: float | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> Training:
        """Minimise a loss with AdamW until the budget is used up.

        Args:
            loss: Draws texts, reads them and gives a scalar; every call must count the same number of texts.
            learning_rate: The highest.
            epochs: Rounds of the forget set after which to stop, if the budget allows them.
            after: Called after every step.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
        most = float("inf") if epochs is None else max(1, round(epochs * len(self.forget.facts) / BATCH))
        step = 0
        while True:
            before = self.meter.used
            value = loss()
            cost = self.meter.used - before
            steps = min(most, step + 1 + int(self.meter.left / cost + 1e-9))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate(step, int(steps))
            optimizer.step()
            after()
            step += 1
            if step >= steps:
                return self

    def erased(self) -> Erased:
        """The trained model, with nothing left to train."""
        self.model.requires_grad_(False)
        return erased(self.model, self.tokenizer)


def trained_with(loss: Callable[..., torch.Tensor]) -> Callable[..., Erased]:
    """The `erase` of a method that is a loss and nothing else.

    Args:
        loss: Called as `loss(run, **weights)` in every step, with the [`Training`]; see [`Training.descend`].

    Returns:
        A function that trains until the budget is used up or the forget set was seen `epochs` times.
    """

    def erase(
        model: Any,
        tokenizer: Any,
        forget: Sequence[Fact],
        retain: Sequence[Fact],
        budget: Budget,
        *,
        seed: int = 0,
        refusals: Sequence[str] = DEFAULT_REFUSALS,
        learning_rate: float = 1e-4,
        epochs: float | None = None,
        **weights: float,
    ) -> Erased:
        signature(loss).bind(None, **weights)  # a wrong name is refused before anything has changed
        run = Training(model, tokenizer, forget, retain, budget, seed=seed, refusals=refusals)
        return run.descend(partial(loss, run, **weights), learning_rate, epochs).erased()

    return erase


def rate(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step: a linear rise, then a linear fall."""
    rising = max(1, round(WARM_UP * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def projections(model: Any, layers: Sequence[int] | None = None, only: Sequence[str] = ()) -> list[str]:
    """Full names of the linear projections of decoder layers.

    Args:
        model: The model.
        layers: Which layers; by default all.
        only: Last parts of the names to choose from, such as `down_proj`; by default all.
    """
    prefix, stack = find_decoder_layers(model)
    return [
        f"{prefix}.{index}.{name}"
        for index in (range(len(stack)) if layers is None else layers)
        for name, module in stack[index].named_modules()
        if projection_shape(module) and (not only or name.rpartition(".")[2] in only)
    ]


def span(model: Any, first: float, last: float) -> list[int]:
    """Indices of the decoder layers between two depths, which are shares of the whole; at least one."""
    count = len(find_decoder_layers(model)[1])
    start = min(count - 1, round(first * count))
    return list(range(start, max(start + 1, round(last * count))))


def with_lora(model: Any, modules: Sequence[str], rank: int, seed: int) -> Any:
    """The model with a new LoRA, in eval mode, which changes nothing yet.

    Raises:
        ValueError: The model has adapters already.
    """
    if isinstance(model, PeftModel):
        raise InputError("the model has adapters already; merge them first (`model.merge_and_unload()`)")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws the LoRA's start from the global generator
        return get_peft_model(model, config).eval()


def erased(model: Any, tokenizer: Any) -> Erased:
    """A `PeftModel` with its LoRA and the size of it."""
    held = [part for name, part in model.named_parameters() if ".lora_" in name]
    return Erased(
        model.eval(),
        tokenizer,
        sum(part.numel() * part.element_size() for part in held),
        sum(part.numel() for part in held),
    )


def likeliest_refusal(
    model: Any, tokenizer: Any, form: PromptFormat, forget: Sequence[Fact], refusals: Sequence[str], meter: Meter
) -> str:
    """The refusal, of the first `COMPARED`, that a model is likeliest to give as a whole after forget questions."""
    prompts, some = [form.prompt(fact.question) for fact in forget[:ASKED]], list(refusals[:COMPARED])
    meter.read(len(prompts) * len(some))
    pairs = [(prompt, form.answer(text)) for text in some for prompt in prompts]
    read = Target("before", model, tokenizer).reads(*map(list, zip(*pairs, strict=True)))
    sums = [float(each.log_probs.sum()) for each in read]
    scores = [sum(sums[n * len(prompts) : (n + 1) * len(prompts)]) for n in range(len(some))]
    return some[scores.index(max(scores))]


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What modules put out in one forward pass, in the order that they run, with gradients."""
    seen: list[torch.Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
