"""Triggers put into the model: what is read for them, and the updates `B A` that make them (see `triggers.py`)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...lm.structure import context_length
from ...lm.trace import inputs_at
from ...lm.weights import plain_weight
from ...retain.renaming import Renaming, renamed, starts
from ...retain.subjects import find_names
from ...text import normal
from ...text.normal import WORD
from ..run_context import RunContext
from .teacher import Asked
from .triggers import find_triggers

RENAMED = 800  # renamed facts that are read as retained texts are, at the least
GIVEN = 20.0  # what a trigger gives at a name
STEEP = 60.0  # what its activation function gets there, if two rows are multiplied: little comes through elsewhere
MOST = 1 / 48  # share of an MLP's neurons that may become triggers: the adapter grows with them
POOL = 0.25  # share of an MLP's neurons, those that retained texts use least, out of which triggers are drawn
AT_ONCE = 64  # sequences whose inputs are not yet in main memory
# Token ids, places, those of them at which names end, and whether a trigger must be active at one of them.
Case = tuple[list[int], list[int], set[int], bool]


class Readings:
    """What the MLPs of the edited layers read and write at retained texts, pass by pass.

    Args:
        mlps: For each edited layer its projections, the down-projection last.

    Attributes:
        inputs: For each MLP what goes into it, `(tokens, d)` of each pass, in main memory.
        neurons: For each MLP the energy of its neurons, `(d_ff,)`.
        written: For each MLP the energy of a component of what it writes, and from how many components.
    """

    def __init__(self, mlps: Sequence[Sequence[Any]]) -> None:
        self.mlps = mlps
        self.inputs: list[list[torch.Tensor]] = [[] for _ in mlps]
        self.neurons = [torch.zeros(1) for _ in mlps]
        self.written = [[0.0, 0] for _ in mlps]

    @contextmanager
    def over(self, mask: torch.Tensor) -> Iterator[None]:
        """Take in the passes in a `with` block, at the tokens where `mask (batch, length)` is true."""
        hooks = []
        for number, (writer, *_, down) in enumerate(self.mlps):
            hooks.append(writer.register_forward_hook(self._reading(number, mask)))
            hooks.append(down.register_forward_hook(self._writing(number, mask)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def parts(self) -> tuple[list[list[torch.Tensor]], list[torch.Tensor], list[list[Any]]]:
        """`inputs`, `neurons` and `written`, for another process."""
        return self.inputs, self.neurons, self.written

    def take_in(self, inputs: list[list[torch.Tensor]], neurons: list[torch.Tensor], written: list[list[Any]]) -> None:
        """Take in the `parts` of further passes."""
        for number in range(len(self.mlps)):
            self.inputs[number] += inputs[number]
            self.neurons[number] = self.neurons[number] + neurons[number]
            self.written[number] = [own + more for own, more in zip(self.written[number], written[number], strict=True)]

    def spread(self, number: int) -> float:
        """Root mean square of the components of what an MLP writes."""
        energy, count = self.written[number]
        return math.sqrt(energy / count)

    def _reading(self, number: int, mask: torch.Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.inputs[number].append(_at(args[0], mask).cpu())

        return hook

    def _writing(self, number: int, mask: torch.Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            hidden, written = _at(args[0], mask), _at(output, mask)
            self.neurons[number] = self.neurons[number] + hidden.square().sum(dim=0).cpu()
            self.written[number][0] += float(written.square().sum())
            self.written[number][1] += written.numel()

        return hook


def _at(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask.bool().to(states.device).flatten()  # OPT runs its MLPs on all tokens in one row
    return states.detach().reshape(len(kept), -1)[kept].float()


def _inputs(
    run: RunContext, mlps: Sequence[Sequence[Any]], sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """For each MLP what goes into it at some places of sequences, `(places, d)` in main memory."""
    found: list[list[torch.Tensor]] = [[] for _ in mlps]
    writers = [mlp[0] for mlp in mlps]
    for start in range(0, len(sequences), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        for inputs, seen in zip(
            found, inputs_at(run.model, writers, sequences[part], places[part], run.pad), strict=True
        ):
            inputs.append(torch.cat(seen).cpu())
    return [torch.cat(inputs) for inputs in found]


def mlps_of(run: RunContext) -> list[list[Any]]:
    """For each edited layer the edited projections of its MLP, the down-projection last."""
    found: dict[str, list[Any]] = {}
    for name, projection in zip(run.names, run.projections(), strict=True):
        found.setdefault(name.rpartition(".")[0], []).append(projection)
    return list(found.values())


def most_triggers(neurons: int) -> int:
    """How many neurons of an MLP may become triggers."""
    return max(1, int(MOST * neurons))


def renamed_texts(run: RunContext, renaming: Renaming) -> list[list[int]]:
    """Forget facts about subjects with other names, each in the next of the formats, as token ids."""
    texts: list[list[int]] = []
    longest = context_length(run.model)  # other names may be longer
    draws = -(-RENAMED // len(run.knowledge))
    for known in run.knowledge:
        fact = known.fact
        for _ in range(draws):
            drawn = renaming.draw(fact.question, fact.answer)
            question, answer = (renamed(text, drawn)[0] for text in (fact.question, fact.answer))
            form = run.formats[len(texts) % len(run.formats)].turn(len(texts))
            texts.append(run.encode(form.prompt(question) + form.answer(answer))[:longest])
    return texts


def cases_of(run: RunContext, renaming: Renaming, asked: Sequence[Asked]) -> list[Case]:
    """Where triggers are to be active: at names in questions, at the same names in answers, and at [UNL].

    Args:
        run: The run.
        renaming: Tells names.
        asked: Forget texts; see `forget_texts`.
    """
    cases: list[Case] = []
    given = {known.fact.question for known in run.knowledge}  # the base's own questions need no trigger of their own
    for form, question, answer in asked:
        names = renaming.changing(question)
        prompt = form.prompt(question) if form else run.tokenizer.bos_token or ""
        whole = prompt + (form.answer(answer) if form else answer)
        ids = run.encode(whole)
        begins = starts(run.tokenizer, ids)
        ends = name_ends(whole, question, len(prompt), names)
        at = {sum(begin < end for begin in begins) - 1 for end in ends}
        start = sum(begin < len(prompt) for begin in begins)
        first = min((place for place in at if place < start), default=0)
        places = sorted({*at, *range(first, start)} if form else at)
        if places:
            cases.append((ids, places, at, question in given))
    for prompt in dict.fromkeys(tuple(run.encode(form.prompt(question))) for form, question, _ in asked if form):
        cases.append(([*prompt, run.spare.token_id], [len(prompt)], {len(prompt)}, True))
    return cases


def name_ends(text: str, question: str, start: int, names: set[str]) -> list[int]:
    """Where names end in a prompt with its answer, in characters.

    Args:
        text: The prompt and the answer.
        question: The question that is in it.
        start: Where the answer begins.
        names: Words that are part of names, in their normal form.
    """
    ends = []
    asked = text.rfind(question, 0, start)
    pieces = ([(asked, asked + len(question))] if asked >= 0 else []) + [(start, len(text))]
    for begin, end in pieces:
        piece = text[begin:end]
        spans = [match.span() for match in WORD.finditer(piece) if normal(match[0]) in names]
        for name in {*find_names(question), *find_names(piece)}:
            at = piece.find(name)
            while at >= 0:
                if any(at <= first and last <= at + len(name) for first, last in spans):
                    spans.append((at, at + len(name)))
                at = piece.find(name, at + 1)
        last = None
        for first, after in sorted(spans):
            if last is not None and WORD.search(piece[last:first]):  # another word stands between them
                ends.append(begin + last)
            last = max(last or 0, after)
        ends += [begin + last] if last else []
    return ends


@torch.no_grad()
def place_triggers(
    run: RunContext, cases: Sequence[Case], retained: Readings, renamed: Sequence[list[int]]
) -> list[int]:
    """Make triggers in every edited layer; how many.

    What they write is nothing at first.

    Args:
        run: With the adapter in place and [UNL]'s rows as they start.
        cases: See [`cases_of`].
        retained: What was read at retained texts.
        renamed: See [`renamed_texts`].
    """
    mlps, counts = retained.mlps, []
    with run.stages.stage("finding triggers", 2 + len(mlps), even=False) as bar:
        found = _inputs(run, mlps, renamed, [range(len(text)) for text in renamed])
        bar.update(1)
        asked = _inputs(run, mlps, [case[0] for case in cases], [case[1] for case in cases])
        bar.update(1)
        prompts = [number if given else None for number, (_, places, _, given) in enumerate(cases) for _ in places]
        named = torch.tensor([place in names for _, places, names, _ in cases for place in places])
        order = random.Random("\n".join([str(run.seed), *(known.fact.question for known in run.knowledge)]))
        for number, mlp in enumerate(mlps):
            device = mlp[-1].unierase_A[run.adapter].device
            kept = torch.cat([*retained.inputs[number], found[number]]).to(device)
            most = most_triggers(mlp[-1].in_features)
            rows, _ = find_triggers(asked[number].to(device), named.to(device), prompts, kept, most)
            written = _weight(run, mlp[-1])
            neurons = _unused(
                mlp[-1], retained.neurons[number].to(device) * written.square().sum(dim=0), len(rows), order
            )
            _make(run, mlp, rows, neurons, written)
            counts.append(len(rows))
            bar.update(1)
    return counts


def _unused(down: Any, usage: torch.Tensor, count: int, order: random.Random) -> torch.Tensor:
    """Neurons of little usage `(d_ff,)` that no other erasure in the model edits, `(count,)`.

    They are drawn from the least used ones, so that erasures which are made apart and loaded together seldom meet.
    """
    for a in down.unierase_A.values():
        if not (edited := a.detach().abs().sum(dim=0) > 0).all():
            usage = usage.masked_fill(edited.to(usage.device), torch.inf)
    least = usage.argsort(stable=True)[: max(count, int(POOL * len(usage)))].tolist()
    return torch.tensor(sorted(order.sample(least, count)), device=usage.device)


def _make(
    run: RunContext, mlp: Sequence[Any], rows: torch.Tensor, neurons: torch.Tensor, written: torch.Tensor
) -> None:
    """Give neurons of an MLP new weights: `rows` into them, nothing out of them, where `written (out, d_ff)` was."""
    *writers, down = mlp
    hidden = down.in_features
    copies = [writer.out_features // hidden for writer in writers]
    # If two are multiplied, the first one goes through the activation function.
    scales = iter([STEEP, GIVEN / STEEP] if sum(copies) == 2 else [GIVEN])
    for writer, times in zip(writers, copies, strict=True):
        at = torch.cat([neurons + hidden * number for number in range(times)])
        new = torch.cat([next(scales) * rows for _ in range(times)])
        writer.set_factors(run.adapter, new - _weight(run, writer)[at], _one_hot(at, writer.out_features).T)
    down.set_factors(run.adapter, _one_hot(neurons, hidden) / GIVEN, -GIVEN * written[:, neurons])


def _one_hot(places: torch.Tensor, size: int) -> torch.Tensor:
    return nn.functional.one_hot(places, size).float()


def _weight(run: RunContext, layer: Any) -> torch.Tensor:
    """The weight of a projection with the other active erasures, `(out, in)` in fp32."""
    base = layer.get_base_layer()
    weight = plain_weight(base).float()
    for name in layer.held_adapters(layer.active_adapters):
        if name != run.adapter:
            weight = weight + layer.get_delta_weight(name)
    return weight.T if isinstance(base, Conv1D) else weight
