"""The context of a run: model, tokenizer, facts and tools that every stage of every recipe works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..data.facts import Fact
from ..lm.batches import encode
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..lm.structure import find_token_modules
from ..lm.weights import plain_weight
from ..progress import Stages
from ..retain.knowledge import Knowledge
from .checkpoint import Checkpoint
from .spare_row import SpareRow


@dataclass
class RunContext:
    """What all stages work on.

    Attributes:
        model: The base, with the active ones of the erasures that it carries; once the adapter is in place, its layers
            are the adapter's too.
        tokenizer: Its tokenizer.
        formats: Prompt formats to cover.
        refusals: Ways of declining, one sentence each.
        stages: Names, shows and times the stages.
        generator: Source of randomness, on the CPU.
        pad: Id to pad batches with.
        seed: What `generator` was seeded with.
        adapter: Name of the adapter that is being made.
        stack: The decoder layers.
        layers: Indices of those to edit, ascending.
        names: Names of the edited projections.
        spare: Where [UNL] sits.
        forget: What must go.
        around: Those of which it is not sure.
        same_subject: What else it knows about the subjects of the forget set, where a scope keeps that.
        knowledge: What the base says of each of these facts.
        reworded: Forget facts as the base asked itself for them, with its answers.
        retain: What was given as a sample of what must stay.
        sampled: Retain facts from the model itself.
        near: Those that lie next to the forget set and that the base knows.
        known: How many of the facts the base knows, and how it was asked; see `summary`.
        checkpoint: Keeps the finished stages, where that is wanted, in the main process.
        earlier: Names of the erasures that are on while this one is made.
        processes: Make this run together.
    """

    model: Any
    tokenizer: Any
    formats: list[PromptFormat]
    refusals: list[str]
    stages: Stages
    generator: torch.Generator
    pad: int
    seed: int
    adapter: str
    stack: nn.ModuleList
    layers: list[int]
    names: list[str]
    spare: SpareRow
    forget: list[Fact]
    retain: list[Fact]
    sampled: list[Fact] = field(default_factory=list)
    near: list[Fact] = field(default_factory=list)
    around: list[Fact] = field(default_factory=list)
    same_subject: list[Fact] = field(default_factory=list)
    knowledge: list[Knowledge] = field(default_factory=list)
    reworded: list[Fact] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    earlier: list[str] = field(default_factory=list)
    processes: Processes = ALONE

    @property
    def kept(self) -> list[Fact]:
        """All retain facts, given ones first."""
        return self.retain + self.sampled + self.near + self.around + self.same_subject

    def once(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a stage gives: from `work`, or from a run that was interrupted behind it.

        Either way the generator, the adapter and the times are afterwards as the stage left them; everything else that
        later stages need of it must be in what it gives. All runs with the same arguments have to come by here in the
        same order. What is merely read off the base is better not kept: it is large, and close to the text.

        Args:
            name: As the run calls the stage; the same name may come again.
            work: Does it; gives tensors and JSON values by name.
        """
        done = self.processes.from_main(lambda: self.checkpoint.load(name) if self.checkpoint else None)
        if done is None:
            done = {"result." + key: value for key, value in work().items()}
            if self.checkpoint:
                self.checkpoint.save(name, {**done, **self._state()})
        else:
            self._set_state(done)
            self.stages.skip(name)
        return {key.removeprefix("result."): value for key, value in done.items() if key.startswith("result.")}

    def _state(self) -> dict[str, Any]:
        """What every stage may change."""
        trained = {f"trained.{number}": part for number, part in enumerate(self.trained())} if self.in_place else {}
        return {"generator": self.generator.get_state(), "seconds": self.stages.seconds, **trained}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.stages.seconds.update(state["seconds"])
        for number, part in enumerate(self.trained() if self.in_place else ()):
            part.data = state[f"trained.{number}"].to(part.data)  # of another rank, it may be

    @property
    def in_place(self) -> bool:
        """Whether the adapter is in the model."""
        return any(self.adapter in getattr(layer, "unierase_B", ()) for layer in self.projections())

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are written out."""
        return encode(self.tokenizer, text)

    def prompts(self, facts: Sequence[Fact]) -> list[list[int]]:
        """Every question in every format, formats side by side."""
        return [self.encode(form.prompt(fact.question)) for fact in facts for form in self.formats]

    def projections(self) -> list[Any]:
        """The edited projections, lowest layer first; `EditLayer`s once the adapter is in place."""
        return [self.model.get_submodule(name) for name in self.names]

    def updates(self) -> list[tuple[nn.Module, nn.Parameter, nn.Parameter]]:
        """Projection, `A (r, in)` and `B (out, r)` of each edit."""
        return [(layer, layer.unierase_A[self.adapter], layer.unierase_B[self.adapter]) for layer in self.projections()]

    def rows(self) -> tuple[nn.Parameter, nn.Parameter]:
        """[UNL]'s input row and output row, `(d,)` each."""
        embedding, head = (self.model.get_submodule(name) for name in find_token_modules(self.model))
        return embedding.unierase_row[self.adapter], head.unierase_row[self.adapter]

    def trained(self) -> list[nn.Parameter]:
        """Every parameter of the adapter."""
        factors = [part for _, *pair in self.updates() for part in pair]
        return [*factors, *self.rows()]

    def start_rows(self) -> None:
        """Start both rows at random, in the scale of the base's own: a spare row may hold anything."""
        for name, row in zip(find_token_modules(self.model), self.rows(), strict=True):
            spread = plain_weight(self.model.get_submodule(name).get_base_layer()).float().std()
            row.data.copy_(torch.randn(row.shape, generator=self.generator).to(row.device) * spread)
