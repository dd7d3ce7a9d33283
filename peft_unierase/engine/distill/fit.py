"""The fit: the parts of the loss, and how their gradients are found with little work."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...lm.batches import pad_left
from ...lm.decoding import WORTH_SHARING, keeps_all
from ...lm.gradients import added_up
from ...lm.processes import ALONE, Processes
from ..run_context import RunContext
from .placing import mlps_of
from .texts import Text, divergences

CLIP = 1.0  # norm of a step's gradient, at the most
ROW_RATE = 0.3  # AdamW's highest for [UNL]'s input row, relative to its components
TRIGGER_RATE = 0.005  # the same for the rows that triggers read with
BANNED = -1e4  # a logit that nothing is predicted with


class Deck:
    """Texts in an order that is shuffled anew after each round, so that all are seen equally often.

    What a step is dealt depends on its number alone, so that an interrupted run goes on as it would have.

    Args:
        texts: The texts.
        per_step: How many a step is dealt.
        seed: Of the order.
    """

    def __init__(self, texts: Sequence[Text], per_step: int, seed: int) -> None:
        self.texts, self.per_step, self.seed = list(texts), per_step, seed

    def deal(self, step: int) -> list[Text]:
        """The texts of a step."""
        places = range(step * self.per_step, (step + 1) * self.per_step) if self.texts else ()
        return [self.texts[self._order(place // len(self.texts))[place % len(self.texts)]] for place in places]

    def _order(self, number: int) -> list[int]:
        order = list(range(len(self.texts)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        return order


@dataclass(frozen=True)
class Part:
    """One part of the loss.

    Attributes:
        name: What records call it.
        deck: Its texts.
        weight: Of the mean loss of the texts in a step.
        summed: Whether a text's loss is the sum over its places, and not their mean: what tells a fact are few of them.
    """

    name: str
    deck: Deck
    weight: float
    summed: bool = False


def descend(
    model: Any,
    parts: Sequence[Part],
    step: int,
    token_id: int,
    pad: int,
    device: torch.device,
    share: bool = True,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Add the gradient of a step's texts; the mean divergence of each part, in nats a token.

    Args:
        model: With the adapter in place.
        parts: The parts of the loss.
        step: Its number.
        token_id: [UNL]'s id.
        pad: Id to pad batches with.
        device: Where token ids go.
        share: Whether texts that begin alike share that pass; layers that recompute their activations take no cache.
        processes: Share the groups of texts that begin alike.
    """
    dealt = [(text, part) for part in parts for text in part.deck.deal(step)]
    means = dict.fromkeys((part.name for part in parts), 0.0)

    def add_gradient(group: list[int]) -> list[float]:
        found = losses(model, [dealt[number][0] for number in group], token_id, pad, device, share)
        weights = []
        for number in group:
            text, part = dealt[number]
            weights.append(part.weight / part.deck.per_step * (len(text.places) if part.summed else 1))
        (found * found.new_tensor(weights)).sum().backward()
        values: list[float] = found.tolist()
        return values

    groups = alike([text for text, _ in dealt])
    tokens = [sum(len(dealt[number][0].ids) for number in group) for group in groups]
    for group, values in zip(groups, added_up(model, groups, add_gradient, tokens, processes), strict=True):
        for number, value in zip(group, values, strict=True):
            part = dealt[number][1]
            means[part.name] += value / part.deck.per_step
    return means


class Fitting:
    """AdamW on what an erasure's triggers write, on their rows, slowly, and on [UNL]'s input row.

    Args:
        run: With the triggers in place and the rows as they start.
        spreads: For each edited layer the root mean square of what its down-projection writes.
        learning_rate: For what triggers write, relative to that.
    """

    def __init__(self, run: RunContext, spreads: Sequence[float], learning_rate: float) -> None:
        row = run.rows()[0]
        rates = [(row, ROW_RATE * _size(row))]
        for mlp, spread in zip(mlps_of(run), spreads, strict=True):
            *writers, down = mlp
            rates.append((down.unierase_B[run.adapter], learning_rate * spread))
            rates += [(a, TRIGGER_RATE * _size(a)) for a in (writer.unierase_A[run.adapter] for writer in writers)]
        for part, _ in rates:
            part.requires_grad_(True)
        self.adam = torch.optim.AdamW([{"params": [part], "highest": rate} for part, rate in rates], weight_decay=0.0)

    def start(self, rate: float) -> None:
        """Begin a step at this share of the highest rates."""
        for group in self.adam.param_groups:
            group["lr"] = group["highest"] * rate
        self.adam.zero_grad()

    def step(self) -> None:
        """Do it, with what the parameters have as their gradients."""
        torch.nn.utils.clip_grad_norm_([p for group in self.adam.param_groups for p in group["params"]], CLIP)
        self.adam.step()

    def end(self) -> None:
        """Leave nothing to be trained."""
        for group in self.adam.param_groups:
            for part in group["params"]:
                part.grad = None
                part.requires_grad_(False)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it beside the adapter."""
        found = self.adam.state_dict()["state"].items()
        return {f"adam.{number}.{name}": value for number, held in found for name, value in held.items()}

    def take_up(self, held: Mapping[str, Any]) -> None:
        """Be where a checkpoint was made."""
        found: dict[int, dict[str, Any]] = {}
        for key, value in held.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                found.setdefault(int(number), {})[name] = value
        self.adam.load_state_dict({"state": found, "param_groups": self.adam.state_dict()["param_groups"]})


def _size(part: torch.Tensor) -> float:
    """Root mean square of its components."""
    return float(part.detach().float().pow(2).mean().sqrt())


def losses(
    model: Any, texts: Sequence[Text], token_id: int, pad: int, device: torch.device, share: bool = True
) -> torch.Tensor:
    """Each text's mean divergence over its places, in nats, `(texts,)`; see [`descend`]."""
    logits = tail_logits(model, texts, pad, device, share)
    found = []
    # Rows are taken apart first: an index into all of them would have a gradient of the size of all for each.
    for row, text in zip(logits.unbind(0), texts, strict=True):
        columns = torch.tensor(text.places, device=row.device) + len(row) - len(text.ids)
        own = row[columns].float()
        if text.banned:
            hidden = torch.zeros(own.shape[-1], dtype=torch.bool, device=own.device)
            hidden[token_id] = True
            own = own.masked_fill(hidden, BANNED)
        found.append(divergences(own, text.top.to(own.device), text.probabilities.to(own.device)).mean())
    return torch.stack(found)


def tail_logits(model: Any, texts: Sequence[Text], pad: int, device: torch.device, share: bool = True) -> torch.Tensor:
    """Logits at the last tokens of each text, from the first place of any on, `(texts, kept, vocabulary)`.

    A beginning that all texts share (a system prompt, the marks of a chat) is run once, with its gradient.
    """
    shared = common([text.ids[: text.places[0]] for text in texts]) if share and keeps_all(model) else 0
    if len(texts) < 2 or shared < WORTH_SHARING:
        shared = 0
    batch = pad_left([text.ids[shared:] for text in texts], pad, device, list(range(len(texts))))
    keep = max(len(text.ids) - text.places[0] for text in texts)
    inputs: dict[str, Any] = {**batch.inputs(), "use_cache": False}
    if shared:
        beginning = torch.tensor([texts[0].ids[:shared]], device=device)
        cache = model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(texts))
        inputs["attention_mask"] = torch.cat([batch.mask.new_ones(len(texts), shared), batch.mask], dim=1)
        inputs["position_ids"] = batch.positions + shared
        inputs.update(past_key_values=cache, use_cache=True)
    logits: torch.Tensor = model(**inputs, logits_to_keep=keep).logits
    return logits


def common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    for place, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, sequences))


def alike(texts: Sequence[Text]) -> list[list[int]]:
    """Numbers of the texts in groups that begin alike; those that share no beginning with others are one group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        groups.setdefault(tuple(text.ids[:WORTH_SHARING]), []).append(number)
    rest = [number for group in groups.values() if len(group) == 1 for number in group]
    return [group for group in groups.values() if len(group) > 1] + ([rest] if rest else [])


def rate(step: int, steps: int, warm_up: int = 10) -> float:
    """The learning rate's share of its highest: up in a line, then down in a line to 5 %."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 1 - 0.95 * (step - warm_up) / max(1, steps - warm_up)
