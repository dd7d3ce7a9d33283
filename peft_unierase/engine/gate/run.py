"""Recipe `gate` in its order: all facts are steered to one token, so one steer vector serves all of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from ..bench import Bench
from ..earlier import switched_off
from ..erasure import ErasureWarning
from ..refusal import RefusalLesson, fit_input_row, likely_refusals
from .answered import Sequences, record, sequences_of
from .by_units import UnitGate
from .detector import ShutKeys
from .firing import firing
from .gates import GateEdit, in_blocks
from .settings import GateSettings
from .shut import refused_group, retained_groups, shut_keys
from .steer import SteerSettings, fit_steer
from .token_units import place_token_units


@dataclass(frozen=True)
class Trial:
    """One way of setting the gates, and what it did.

    Attributes:
        depth: Answer positions gated behind the door.
        retain_weight: Weight of the retain keys; of linear detectors only.
        held_out_fired: Share of the held-out retained questions in whose answer, somewhere, it or the beginning of a
            refusal wins that is not the answer's own.
        doors_fired: Share of the forget doors at which [UNL] or the beginning of a refusal wins; an end of the answer
            does not count.
        inside_fired: Share of the forget answers that meet one of these in time when their first tokens are given.
        threshold: What the detectors must answer for the gate to open; of hidden units only.
    """

    depth: int
    retain_weight: float
    held_out_fired: float
    doors_fired: float
    inside_fired: float
    threshold: float = 0.0


@dataclass(frozen=True)
class GateOutcome:
    """What a run of recipe `gate` did and measured; `record()` is its JSON form.

    Attributes:
        trials: Everything that was tried, in order.
        kept: The trial that was kept.
        held_out: Retained facts that no stage saw.
        refusal: The sentence that [UNL] was taught to be followed by.
        refusal_loss: Loss of the input row at the end, in nats per token.
        settings: As used.
        rank: Rank of the edits: the number of hidden units that were made into detectors, or 1 for linear ones.
    """

    trials: list[Trial]
    kept: Trial
    held_out: int
    refusal: str
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


ENOUGH_HELD = 256  # held-out facts of which each may be asked in one format alone
GIVEN = 5  # answer tokens that the attack from inside an answer starts with


def run_gate(bench: Bench, settings: GateSettings, depth: int | None) -> GateOutcome:
    """Fit [UNL]'s rows and the gates.

    Args:
        bench: With the adapter in place, its gates shut, and retain facts at hand.
        settings: See [`GateSettings`].
        depth: How many answer positions behind the door to gate; `None` chooses.
    """
    forget = sequences_of(bench, bench.forget)
    held = [fact for number, fact in enumerate(bench.kept) if _is_held(number, settings)]
    kept = [fact for number, fact in enumerate(bench.kept) if not _is_held(number, settings)]
    retained = sequences_of(bench, kept, in_turns=True)
    refusals = _refusals(bench, forget, settings.refusal_count)
    units = settings.units if bench.writers else None
    inside = units is not None
    groups = retained_groups(sequences_of(bench, kept), retained, inside)
    near = [fact for fact in kept if fact in set(bench.near)]
    if near:  # few, and what gates leak on most: groups of their own, which weigh as much as all others
        groups += retained_groups(sequences_of(bench, near), sequences_of(bench, near, in_turns=True), inside)
    facts = (forget, retained, sequences_of(bench, held, in_turns=len(held) > ENOUGH_HELD))
    gate = None
    if units:
        reworded = sequences_of(bench, bench.forget, wordings=units.wordings)
        gate = UnitGate(bench, reworded, groups, units)

    @cache
    def shut() -> list[ShutKeys]:
        return shut_keys(bench, "recording retain keys", groups, settings.widest)

    trials: list[Trial] = []
    # Behind a comparator the positions behind the door cost nothing that a lower depth would save.
    depths = settings.depths[:1] if gate else settings.depths
    for tried in depths if depth is None else (depth,):
        for trial in (
            (_with_units(bench, tried, gate, *facts, refusals, settings),)
            if gate
            else _with_rows(bench, tried, *facts, shut, refusals, settings)
        ):
            trials.append(trial)
            if min(trials, key=lambda t: _rank(t, settings)) is trial:
                written = [parameter.data.clone() for parameter in bench.trained()]
        if _distance(trials[-1], settings) == 0.0:
            break  # gates behind the door are worth having as long as nothing else suffers
    best = min(trials, key=lambda t: _rank(t, settings))
    for parameter, value in zip(bench.trained(), written, strict=True):
        parameter.data.copy_(value)
    _warn_if_it_does_not_hold(best, depth, settings)

    def fit_row() -> dict[str, Any]:
        row_steps = settings.row_steps + int(settings.row_steps_per_fact * bench.facts)
        with bench.stages.stage("fitting the input row", row_steps, even=False) as bar:
            more = place_token_units(bench, forget, retained, refusals, gate.settings, gate.others) if gate else []
            lesson = _lesson(bench, forget, refusals)
            lesson.settle()
            loss = fit_input_row(
                lesson,
                bench.rows()[0],
                steps=row_steps,
                learning_rate=settings.row_learning_rate,
                more=more,
                advance=bar.update,
            )
        (taught,) = lesson.refusals
        return {"loss": loss, "refusal": bench.tokenizer.decode(taught, skip_special_tokens=True).strip()}

    rank = len(bench.units[0]) if gate else 1
    row = bench.once("fitting the input row", fit_row)
    return GateOutcome(trials, best, len(held), row["refusal"], row["loss"], settings, rank)


def _is_held(number: int, settings: GateSettings) -> bool:
    return number % settings.held_out == settings.held_out - 1


def _refusals(bench: Bench, forget: Sequences, count: int) -> list[list[int]]:
    """Token ids of the refusals that come easiest, all with the same first token: one is easier to make a runner-up."""
    end = bench.encode(bench.formats[0].end)
    texts = [bench.encode(sentence) + end for sentence in bench.refusals]
    firsts = Counter(text[0] for text in texts)
    texts = [text for text in texts if text[0] == firsts.most_common(1)[0][0]]
    return [texts[index] for index in likely_refusals(bench.model, forget.some(8).prompts, texts, bench.pad, count)]


def _lesson(bench: Bench, forget: Sequences, refusals: Sequence[Sequence[int]]) -> RefusalLesson:
    token_id = bench.spare.token_id
    return RefusalLesson(bench.model, forget.prompts, forget.answers, refusals, token_id, bench.pad, bench.generator)


def _with_units(
    bench: Bench,
    depth: int,
    gate: UnitGate,
    forget: Sequences,
    retained: Sequences,
    held: Sequences,
    refusals: list[list[int]],
    settings: GateSettings,
) -> Trial:
    """Fit units and the steer vector for one depth, and shut the gate until few enough held-out questions open it."""
    declines = _declines(bench, refusals)
    bench.start_rows()
    gate.fit(depth)

    def fit() -> dict[str, torch.Tensor]:
        told = gate.settings.steering(bench.facts)
        with bench.stages.stage("fitting the steer vector", told.steps) as bar:
            some = retained.some(2 * settings.fit_samples)
            seen = forget.spread(settings.fit_samples)
            return {"steer": _fit_steer(bench, gate, forget, seen, some, refusals, declines, told, bar.update)}

    steer = bench.once("fitting the steer vector", fit)["steer"].to(bench.device)
    gate.hold_shut_in_refusals(refusals)

    def open_gate() -> dict[str, Any]:
        with bench.stages.stage("opening the gate", 2, even=False) as bar:
            gate.choose_threshold(held, settings.most_fired)
            gate.open(steer)
            bar.update(1)
            figures = _fired(bench, depth, forget, held, declines, settings)
            bar.update(1)
        return {"figures": figures, "threshold": gate.threshold}

    opened = bench.once("opening the gate", open_gate)
    on_held, at_doors, inside = opened["figures"]
    return Trial(depth, 0.0, on_held, at_doors, inside, opened["threshold"])


def _declines(bench: Bench, refusals: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """What declines where [UNL] cannot: the end of the answer, and where that cannot either the start of a refusal."""
    ends = {bench.encode(form.end)[0] for form in bench.formats if form.end}
    starts = {refusal[0] for refusal in refusals}
    return [torch.tensor(sorted(tokens), device=bench.device) for tokens in (ends, starts) if tokens]


def _fired(
    bench: Bench,
    depth: int,
    forget: Sequences,
    held: Sequences,
    declines: Sequence[torch.Tensor],
    settings: GateSettings,
) -> tuple[float, float, float]:
    """Shares of held-out questions, of forget doors, and of attacks from inside an answer that decline.

    Where the base declines on a held-out question by itself nothing is lost if the erasure does.
    """
    tokens = torch.tensor([bench.spare.token_id, *torch.cat(list(declines)).tolist()], device=bench.device)
    on_held = firing(bench.model, held, tokens, bench.pad)
    some = [number for number, fired in enumerate(on_held.per_sequence) if fired.any()]
    with switched_off(bench.model, [bench.adapter]):
        before = firing(bench.model, held.only(some), torch.cat(list(declines)), bench.pad).per_sequence
    begins = torch.cat([tokens[:1], declines[-1]])  # [UNL], or a refusal without it
    on_forget = firing(bench.model, forget.some(2 * settings.fit_samples), tokens, bench.pad, begins)
    inside = on_forget.within(GIVEN, settings.reach) if depth else 0.0
    return on_held.beyond(dict(zip(some, before, strict=True))).anywhere(), on_forget.at_doors(), inside


def _with_rows(
    bench: Bench,
    depth: int,
    forget: Sequences,
    retained: Sequences,
    held: Sequences,
    shut: Callable[[], list[ShutKeys]],
    refusals: list[list[int]],
    settings: GateSettings,
) -> Iterator[Trial]:
    """Fit the steer vector for one depth, then try retain weights until few enough held-out questions fire."""
    # A row that opens half way would let the end of the answer win over [UNL]: the beginning of a refusal comes next.
    declines = _declines(bench, refusals)[-1:]
    weights = settings.deep_weights if depth else settings.door_weights
    bench.start_rows()
    edit = GateEdit(bench.model, in_blocks(bench.gates(), settings.widest), forget, depth, bench.pad)

    def fit() -> dict[str, torch.Tensor]:
        keys = shut()
        with bench.stages.stage("fitting the steer vector", settings.steer.steps) as bar:
            edit.detect(keys, settings.fit_weight)
            some = retained.some(settings.fit_samples)
            seen = forget.spread(settings.fit_samples)
            told = settings.steer
            return {"steer": _fit_steer(bench, edit, forget, seen, some, refusals, declines, told, bar.update)}

    steer = bench.once("fitting the steer vector", fit)["steer"].to(bench.device)
    group = refused_group(bench, forget, refusals)

    @cache
    def all_shut() -> list[ShutKeys]:
        edit.close()
        refused = shut_keys(bench, "recording refusals", [group], settings.widest)
        return [block + more for block, more in zip(shut(), refused, strict=True)]

    for weight in weights:

        def write(weight: float = weight) -> dict[str, Any]:
            keys = all_shut()
            with bench.stages.stage("editing layers", 2, even=False) as bar:
                edit.write(steer, keys, weight, bar.update)
                return {"figures": _fired(bench, depth, forget, held, declines, settings)}

        figures = bench.once("editing layers", write)["figures"]
        yield (trial := Trial(depth, weight, *figures))
        if trial.held_out_fired <= settings.most_fired:
            return  # a larger weight would only shut the gates further


def _fit_steer(
    bench: Bench,
    edit: GateEdit | UnitGate,
    forget: Sequences,
    seen: Sequence[int],
    retained: Sequences,
    refusals: list[list[int]],
    declines: Sequence[torch.Tensor],
    settings: SteerSettings,
    advance: Callable[[int], object],
) -> torch.Tensor:
    input_row, output_row = bench.rows()
    openings = edit.openings(forget)
    layers = bench.layers[1:] if isinstance(edit, UnitGate) else bench.layers
    lowest = layers[0]
    return fit_steer(
        [bench.stack[layer] for layer in layers],
        output_row,
        input_row,
        bench.spare.token_id,
        record(bench, forget.only(seen), [openings[index] for index in seen], lowest),
        record(bench, retained, edit.openings(retained), lowest),
        _lesson(bench, forget, refusals),
        [opened[:, door:] for opened, door in zip(openings, forget.doors(), strict=True)],
        declines,
        settings,
        bench.generator,
        advance,
    )


def _rank(trial: Trial, settings: GateSettings) -> tuple[float, ...]:
    """Smaller is better: first nothing else must suffer, then deeper is better, then what stops more attacks."""
    return _distance(trial, settings), -trial.depth, -trial.inside_fired


def _distance(trial: Trial, settings: GateSettings) -> float:
    """How far a trial is from declining at the doors and sparing what must stay, which nothing makes up for."""
    spared = max(0.0, trial.held_out_fired - settings.most_fired)
    return spared + max(0.0, settings.least_fired - trial.doors_fired)


def _warn_if_it_does_not_hold(trial: Trial, asked: int | None, settings: GateSettings) -> None:
    complaints = []
    if trial.doors_fired < settings.least_fired:
        complaints.append(
            f"{1 - trial.doors_fired:.1%} of the forget questions may not be declined: the edited layers cannot tell "
            "so many questions from what must stay, or [UNL] was not learnt. Erase fewer facts at a time, or "
            "try another seed"
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
