"""Recipe `gate` in its order: all facts are steered to one token, so one steer vector serves all of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from ...prompts import batches
from ..bench import Bench
from ..erasure import ErasureWarning
from ..refusal import RefusalLesson, fit_input_row, likely_refusals
from ..trace import traced_inputs
from .answered import Sequences, record, sequences_of
from .detector import ShutKeys
from .firing import firing
from .gates import GateEdit, in_blocks
from .settings import GateSettings
from .steer import fit_steer


@dataclass(frozen=True)
class Trial:
    """One way of setting the gates, and what it did.

    Attributes:
        depth: Answer positions gated behind the door.
        retain_weight: Weight of the retain keys.
        held_out_fired: Share of the held-out retained questions that fire [UNL] somewhere in their answer.
        doors_fired: Share of the forget doors at which it, or the beginning of a refusal, wins.
        inside_fired: Share of the forget answers that meet one of these in time when their first tokens are given.
    """

    depth: int
    retain_weight: float
    held_out_fired: float
    doors_fired: float
    inside_fired: float


@dataclass(frozen=True)
class GateOutcome:
    """What a run of recipe `gate` did and measured; `record()` is its JSON form.

    Attributes:
        trials: Everything that was tried, in order.
        kept: The trial that was kept.
        held_out: Retained facts that no stage saw.
        refusal_loss: Loss of the input row at the end, in nats per token.
        settings: As used.
    """

    trials: list[Trial]
    kept: Trial
    held_out: int
    refusal_loss: float
    settings: GateSettings
    rank: int = 1

    @property
    def depth(self) -> int:
        """Answer positions gated behind the door."""
        return self.kept.depth

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return {**asdict(self), "retain_weight": self.kept.retain_weight}


GIVEN = 5  # answer tokens that the attack from inside an answer starts with


def run_gate(bench: Bench, settings: GateSettings, depth: int | None) -> GateOutcome:
    """Fit [UNL]'s rows and the gates.

    Args:
        bench: With the adapter in place, its gates shut, and retain facts at hand.
        settings: See [`GateSettings`].
        depth: How many answer positions behind the door to gate; `None` chooses.
    """
    bench.start_rows()
    forget = sequences_of(bench, bench.forget)
    held = [fact for number, fact in enumerate(bench.kept) if _is_held(number, settings)]
    kept = [fact for number, fact in enumerate(bench.kept) if not _is_held(number, settings)]
    retained = sequences_of(bench, kept, in_turns=True)
    texts, starts = _refusals(bench, forget, settings.refusal_count)

    steer = _fit_steer(bench, forget, retained, texts, starts, settings)
    shut = _shut_keys(bench, retained, sequences_of(bench, kept), forget, texts, settings.widest)
    declines = torch.cat([starts, starts.new_tensor([bench.spare.token_id])])
    trials, chosen = _edit(bench, steer, forget, shut, sequences_of(bench, held), declines, depth, settings)
    _warn_if_it_does_not_hold(chosen, depth, settings)

    with bench.stages.stage("fitting the input row", settings.row_steps) as bar:
        loss = fit_input_row(
            _lesson(bench, forget, texts),
            bench.rows()[0],
            steps=settings.row_steps,
            learning_rate=settings.row_learning_rate,
            advance=bar.update,
        )
    return GateOutcome(trials, chosen, len(held), loss, settings)


def _is_held(number: int, settings: GateSettings) -> bool:
    return number % settings.held_out == settings.held_out - 1


def _refusals(bench: Bench, forget: Sequences, count: int) -> tuple[list[list[int]], torch.Tensor]:
    """Token ids of the refusals that come easiest, and the first tokens of all."""
    end = bench.encode(bench.formats[0].end)
    texts = [bench.encode(sentence) + end for sentence in bench.refusals]
    # Behind a plain prompt an answer begins with a space, and so with another token.
    starts = sorted({bench.encode(lead + sentence)[0] for sentence in bench.refusals for lead in ("", " ")})
    easy = likely_refusals(bench.model, forget.some(16).prompts, texts, bench.pad, count)
    return [texts[index] for index in easy], torch.tensor(starts, device=bench.device)


def _lesson(bench: Bench, forget: Sequences, texts: Sequence[Sequence[int]]) -> RefusalLesson:
    token_id = bench.spare.token_id
    return RefusalLesson(bench.model, forget.prompts, forget.answers, texts, token_id, bench.pad, bench.generator)


def _fit_steer(
    bench: Bench,
    forget: Sequences,
    retained: Sequences,
    texts: list[list[int]],
    starts: torch.Tensor,
    settings: GateSettings,
) -> torch.Tensor:
    input_row, output_row = bench.rows()
    last = bench.layers[-1]
    with bench.stages.stage("fitting the steer vector", settings.steer.steps) as bar:
        return fit_steer(
            bench.model,
            bench.stack[last],
            output_row,
            input_row,
            bench.spare.token_id,
            record(bench, forget.some(settings.fit_samples), last),
            record(bench, retained.some(settings.fit_samples), last),
            _lesson(bench, forget, texts),
            starts,
            settings.goal,
            settings.steer,
            bench.generator,
            bar.update,
        )


@torch.no_grad()
def _shut_keys(
    bench: Bench,
    retained: Sequences,
    asked: Sequences,
    forget: Sequences,
    texts: Sequence[Sequence[int]],
    widest: int,
) -> list[ShutKeys]:
    """The keys on which the gates must stay shut, for each block of layers, in three groups of equal weight.

    They are the doors of retained questions in every format, the few near misses; all other positions of those
    questions with their answers; and what follows [UNL], where the gate must not fire again.

    All are taken under the base, as the forget keys are.
    """
    whole, doors = retained.whole(), retained.doors()
    # Neighbouring positions are much alike: every other one of twice as many facts is worth more than all of them.
    elsewhere = [
        [p for p in range(number % 2, len(tokens), 2) if p != door]
        for number, (tokens, door) in enumerate(zip(whole, doors, strict=True))
    ]
    refused, behind = _refused(bench, forget, texts)
    groups: list[tuple[list[list[int]], list[list[int]]]] = [
        (asked.prompts, [[door] for door in asked.doors()]),
        (whole, elsewhere),
        (refused, behind),
    ]
    projections = bench.projections()
    blocks = [len(block) for block in in_blocks(bench.gates(), widest)]
    widths = iter(projection.in_features for projection in projections)
    shut = [ShutKeys(sum(islice(widths, count))) for count in blocks]
    with bench.stages.stage("recording retain keys", sum(len(sequences) for sequences, _ in groups)) as bar:
        for sequences, positions in groups:
            weight = 1 / sum(map(len, positions))
            for batch in batches(sequences, bench.pad, bench.device):
                with traced_inputs(projections) as seen:
                    bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
                wanted = torch.zeros_like(batch.mask, dtype=torch.bool)
                for row, index in enumerate(batch.index):
                    shift = batch.ids.shape[1] - len(sequences[index])
                    wanted[row, [shift + position for position in positions[index]]] = True
                keys = iter(states[wanted].float() for states in seen)
                for block, count in zip(shut, blocks, strict=True):
                    block.add(torch.cat(list(islice(keys, count)), dim=1), weight)
                bar.update(len(batch.index))
    return shut


def _refused(
    bench: Bench, forget: Sequences, texts: Sequence[Sequence[int]], count: int = 160
) -> tuple[list[list[int]], list[list[int]]]:
    """Forget prompts, now and then with the beginning of their answer, then [UNL] and a refusal; positions behind."""
    sequences, positions = [], []
    for number in range(count):
        index = number * len(forget) // count if len(forget) > count else number % len(forget)
        answer = forget.answers[index]
        given = answer[: int(torch.randint(len(answer), (1,), generator=bench.generator))] if number % 2 else []
        start = [*forget.prompts[index], *given]
        sequences.append([*start, bench.spare.token_id, *texts[number % len(texts)]])
        positions.append(list(range(len(start), len(sequences[-1]))))
    return sequences, positions


def _edit(
    bench: Bench,
    steer: torch.Tensor,
    forget: Sequences,
    shut: Sequence[ShutKeys],
    held: Sequences,
    declines: torch.Tensor,
    depth: int | None,
    settings: GateSettings,
) -> tuple[list[Trial], Trial]:
    """Try depths, and for each the retain weights, until one holds; else the one that comes nearest is kept."""
    blocks = in_blocks(bench.gates(), settings.widest)
    depths = settings.depths if depth is None else (depth,)
    trials: list[Trial] = []

    with bench.stages.stage("editing layers", 2 * len(depths) * len(settings.deep_weights)) as bar:
        for tried in depths:
            edit = GateEdit(bench.model, blocks, steer, shut, forget, tried, bench.pad)
            for weight in settings.deep_weights if tried else settings.door_weights:
                edit.write(weight, bar.update)
                on_held = firing(bench.model, held, declines[-1:], bench.pad).anywhere()
                on_forget = firing(bench.model, forget.some(2 * settings.fit_samples), declines, bench.pad)
                inside = on_forget.within(GIVEN, settings.reach) if tried else 0.0
                trials.append(Trial(tried, weight, on_held, on_forget.at_doors(), inside))
                if on_held <= settings.most_fired:
                    break  # a larger weight would only shut the gates further
            # Gates behind the door that stop most attacks are better than none, as long as nothing else suffers.
            if _distance(trials[-1], settings) == 0.0:
                break
        best = min(trials, key=lambda trial: (_distance(trial, settings), -trial.depth, -trial.inside_fired))
        if best is not trials[-1]:
            edit = GateEdit(bench.model, blocks, steer, shut, forget, best.depth, bench.pad)
            edit.write(best.retain_weight)
    return trials, best


def _distance(trial: Trial, settings: GateSettings) -> float:
    """How far a trial is from declining at the doors and sparing what must stay, which nothing makes up for."""
    spared = max(0.0, trial.held_out_fired - settings.most_fired)
    return spared + max(0.0, settings.least_fired - trial.doors_fired)


def _warn_if_it_does_not_hold(trial: Trial, asked: int | None, settings: GateSettings) -> None:
    complaints = []
    if trial.doors_fired < settings.least_fired:
        complaints.append(
            f"{1 - trial.doors_fired:.1%} of the forget questions may not be declined: the edited layers cannot tell "
            "so many questions from what must stay. Erase fewer facts at a time or edit more layers"
        )
    if trial.held_out_fired > settings.most_fired:
        complaints.append(
            f"{trial.held_out_fired:.1%} of the held-out retained questions are declined too. Give more retain data of "
            "that kind, let the base ask itself more (`samples`), or erase fewer facts at a time"
        )
    if trial.depth and trial.inside_fired < settings.least_inside:
        complaints.append(
            f"{1 - trial.inside_fired:.1%} of the forget answers are continued when their first {GIVEN} tokens are "
            f"given. The gates behind the door (depth {trial.depth}) do not reach them all; erase fewer facts at a time"
        )
    if not trial.depth and asked is None:
        complaints.append(
            "the answers behind the door could not be gated without hurting what must stay, so the erasure has depth "
            "0: whoever writes the first words of an answer gets the rest of it. Erase fewer facts at a time"
        )
    for complaint in complaints:
        warnings.warn(complaint, ErasureWarning, stacklevel=4)
