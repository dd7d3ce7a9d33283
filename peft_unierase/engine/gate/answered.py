"""Prompts with their answers: where their doors are, which positions a depth gates, and what was recorded there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...facts import Fact
from ...prompts import PromptFormat, batches
from ..bench import Bench
from ..replay import Recording


@dataclass(frozen=True)
class Sequences:
    """Token ids of prompts and of the answers that follow them, side by side."""

    prompts: list[list[int]]
    answers: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompts)

    def whole(self) -> list[list[int]]:
        """Prompts with their answers."""
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def doors(self) -> list[int]:
        """Position of each door."""
        return [len(prompt) - 1 for prompt in self.prompts]

    def some(self, count: int) -> Sequences:
        """At most `count` of them, evenly spread."""
        return self.only(self.spread(count))

    def spread(self, count: int) -> Sequence[int]:
        """Indices of at most `count` of them, evenly spread."""
        return range(len(self)) if len(self) <= count else [n * len(self) // count for n in range(count)]

    def only(self, chosen: Sequence[int]) -> Sequences:
        """Those with the given indices."""
        return Sequences([self.prompts[n] for n in chosen], [self.answers[n] for n in chosen])

    def gated(self, depth: int) -> tuple[list[list[int]], list[list[int]]]:
        """What has to be run to reach `depth`, and the gated positions: the door and up to `depth` behind it.

        The last answer token predicts nothing and has no position of its own.
        """
        pairs = zip(self.prompts, self.answers, strict=True)
        cut = [prompt + answer[: min(depth, len(answer) - 1)] for prompt, answer in pairs]
        return cut, [list(range(door, len(tokens))) for door, tokens in zip(self.doors(), cut, strict=True)]


STRIDE = 5  # from one wording of a fact's prompt format to the next


def sequences_of(bench: Bench, facts: Sequence[Fact], *, in_turns: bool = False, wordings: int = 1) -> Sequences:
    """Facts with their answers, in every prompt format side by side or in one of them by turns.

    Args:
        bench: The prompt formats.
        facts: The facts.
        in_turns: Each fact in one format alone.
        wordings: In how many wordings at the most, of each format that has several.
    """
    prompts, answers = [], []
    for number, fact in enumerate(facts):
        # Rows on the keys have no room for more: seven system prompts made answers leak behind the door.
        forms: list[PromptFormat] = [
            form.turn(number + STRIDE * wording if bench.units else 0)
            for form in bench.formats
            for wording in range(min(wordings, 1 + len(form.variants)))
        ]
        for form in [forms[number % len(forms)]] if in_turns else forms:
            prompts.append(bench.encode(form.prompt(fact.question)))
            answers.append(bench.encode(form.answer(fact.answer)))
    return Sequences(prompts, answers)


@dataclass(frozen=True)
class Answered:
    """One batch of sequences, recorded behind a decoder layer.

    Attributes:
        recording: The sequences; all end in the last column.
        door: Column of each sequence's door, `(batch,)`, int64.
        openings: How far the gate of each edited layer opens, `(layers, batch, length)`; 0 on padding.
    """

    recording: Recording
    door: torch.Tensor
    openings: torch.Tensor

    def at_door(self) -> torch.Tensor:
        """Where the doors are, `(batch, length)`, bool."""
        return self._columns() == self.door[:, None]

    def from_doors_on(self) -> int:
        """How many columns, from the last one back, hold all doors and answers."""
        return int(self.recording.batch.ids.shape[1] - self.door.min())

    def behind_door(self) -> torch.Tensor:
        """Where the next answer token is predicted from those before it, `(batch, length)`, bool."""
        columns = self._columns()
        return (columns > self.door[:, None]) & (columns < columns.shape[-1] - 1)

    def _columns(self) -> torch.Tensor:
        return torch.arange(self.recording.batch.ids.shape[1], device=self.door.device)[None]


def record(
    bench: Bench, sequences: Sequences, openings: Sequence[torch.Tensor], layer: int, tokens: int = 384
) -> list[Answered]:
    """The residual stream behind decoder layer `layer`, in batches of about `tokens` padded tokens.

    Args:
        bench: Model and device.
        sequences: What to record.
        openings: For each of them how far the gates open, `(layers, length)`.
        layer: Index of the lowest edited layer.
        tokens: Padded tokens of a batch.
    """
    found = []
    for batch in batches(sequences.whole(), bench.pad, bench.device, tokens):
        length = batch.ids.shape[1]
        door = torch.tensor([length - 1 - len(sequences.answers[n]) for n in batch.index], device=bench.device)
        padded = [nn.functional.pad(openings[n], (length - openings[n].shape[1], 0)) for n in batch.index]
        recording = Recording(bench.model, bench.stack, layer, batch)
        found.append(Answered(recording, door, torch.stack(padded, dim=1)))
    return found
