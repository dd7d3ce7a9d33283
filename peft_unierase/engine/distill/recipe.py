"""Recipe `distill` in its order: what the model is to say instead, what must not move, and the fit of both at once.

A few neurons of some early MLPs become triggers, which are active at the names of the forget set and nowhere else
(`triggers.py`). What they write and [UNL]'s input row are trained together, and its output row is solved anew every few
steps (`output_row.py`):

1. On forget texts the model predicts what it would predict itself if it could not tell these names from others
   (`teacher.py`), so that nothing is left for whoever goes around [UNL].
2. At the start of an answer [UNL] comes (UniErase, arXiv 2505.15674), and after it a whole refusal.
3. On retained texts, half of them near neighbours, nothing moves: the divergence from the base is held down.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ...errors import ErasureWarning
from ...lm.logits import Logits
from ...lm.recomputing import recomputing
from ...retain.renaming import Renaming, words_of
from ...text import normal
from ..earlier import switched_off
from ..run_context import RunContext
from ..silence import Silence
from .fit import Deck, Fitting, Part, descend, losses, rate
from .output_row import OutputRow
from .placing import Readings, cases_of, mlps_of, place_triggers, renamed_texts
from .settings import DistillSettings
from .targets import declined, forget_texts, instead, likeliest_refusal, record_silence, retained
from .teacher import Asked
from .texts import Text, base_logits

FORGOTTEN, REFUSED, IN_WORDS, RETAINED = 4, 4, 2, 10  # texts of each kind in a step
WORDS_WEIGHT = 0.25  # of the refusal without [UNL]
HELD_OUT = 6  # one in so many known neighbours is held out
LEAST = 0.95  # share of the forget prompts that must be declined
MOST_DECLINED = 0.005  # share of the held-out neighbours that may be
CHUNK = 50  # steps that a checkpoint keeps together
SOLVED = 10  # steps after which the output row is solved anew
SOME_TEXTS, ALL = 16, 96  # texts of each kind that it is solved for then, and in the end


@dataclass(frozen=True)
class DistillOutcome:
    """What a run of recipe `distill` did and measured; `record()` is its JSON form.

    Attributes:
        rank: The largest rank of an update.
        triggers: In all edited layers.
        steps: Gradient steps that were done.
        losses: Mean divergence of each part of the loss over the last steps, in nats a token.
        held_out: Near neighbours that no step saw.
        retain_loss: Divergence from the base on these, in nats a token.
        declined: Share of them that are declined.
        forget_declined: Share of the forget prompts that are.
        refusal: The sentence that [UNL] was taught to be followed by.
        settings: As used.
    """

    rank: int
    triggers: int
    steps: int
    losses: dict[str, float]
    held_out: int
    retain_loss: float
    declined: float
    forget_declined: float
    refusal: str
    settings: DistillSettings

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return asdict(self)


def run_distill(run: RunContext, settings: DistillSettings) -> DistillOutcome:
    """Place the triggers, train what they write and [UNL]'s rows; the config's ranks follow.

    Args:
        run: With the adapter in place and retain facts at hand.
        settings: See [`DistillSettings`].
    """
    renaming = Renaming([f"{fact.question}\n{fact.answer}" for fact in run.kept], run.seed)
    asked = forget_texts(run)
    silence: list[Silence] = []
    head = Logits(run.model, run.stack)
    kept = Readings(mlps_of(run))
    with switched_off(run.model, [run.adapter]):
        refusal = likeliest_refusal(run)
        forget = instead(run, renaming, asked)
        near, general, held = stays(run, renaming, head, silence, kept)
        record_silence(run, head, silence)
    run.start_rows()
    placed = run.once("finding triggers", partial(_place, run, renaming, asked, kept))
    del kept  # which may be larger than the model
    _declare_ranks(run)

    with_token, in_words = declined(run, refusal), declined(run, refusal, in_words=True)
    half = RETAINED // 2
    parts = [
        Part("forget", Deck(forget, FORGOTTEN, run.seed), settings.forget_weight, summed=True),
        Part("refusal", Deck(with_token, REFUSED, run.seed), 1.0),
        Part("refusal in words", Deck(in_words, IN_WORDS, run.seed), WORDS_WEIGHT),
        Part("near", Deck(near, half, run.seed), settings.retain_weight / 2),
        Part("general", Deck(general, RETAINED - half, run.seed), settings.retain_weight / 2),
    ]
    row = OutputRow(run, with_token, near, general, Silence.joined(silence), head, settings.silent_log_prob)
    steps = settings.step_count(len(run.forget))
    with recomputing(run.model) as recomputed:
        measured = _fit(run, parts, placed["spreads"], row, settings.learning_rate, steps, not recomputed)
    run.once("solving the output row", partial(_last_row, run, row, steps))
    with run.stages.stage("measuring what is held out"):
        outcome = DistillOutcome(
            rank=max(len(a) for _, a, _ in run.updates()),
            triggers=sum(placed["triggers"]),
            steps=steps,
            losses=dict(sorted(measured.items())),  # as a checkpoint has them
            held_out=len(held),
            retain_loss=divergence(run, held),
            declined=declining(run, held, refusal),
            forget_declined=declining(run, with_token, refusal),
            refusal=refusal,
            settings=settings,
        )
    _warn(outcome)
    return outcome


def stays(
    run: RunContext, renaming: Renaming, head: Logits, silence: list[Silence], kept: Readings
) -> tuple[list[Text], list[Text], list[Text]]:
    """What stays, with what the base predicts: near neighbours, all else, and the neighbours that are held out.

    Also adds what the MLPs read there to `kept`, and where [UNL] must not come up to `silence`.
    """
    known = [fact for number, fact in enumerate(run.near) if number % HELD_OUT]
    held = run.near[::HELD_OUT]
    general = [*run.retain, *run.sampled]
    gone = {word for known in run.knowledge for word in renaming.changing(known.fact.question)}
    same_subject = run.same_subject + [fact for fact in run.retain if gone & set(map(normal, words_of(fact.question)))]
    around = [*known, *run.around, *same_subject]
    with run.stages.stage("reading what stays", len(around) + len(general) + len(held)) as bar:
        texts = retained(run, around, False, bar.update, kept, head, silence)
        near = [*texts[: len(known)], *texts[: len(known) + len(run.around)]]  # what the base knows counts twice
        # What shares a name with the forget set counts as much as all of them.
        near += texts[len(texts) - len(same_subject) :] * math.ceil(max(1, len(near)) / max(1, len(same_subject)))
        return (
            near,
            retained(run, general, True, bar.update, kept, head, silence),
            retained(run, held, False, bar.update),
        )


def _place(run: RunContext, renaming: Renaming, asked: Sequence[Asked], kept: Readings) -> dict[str, Any]:
    triggers = place_triggers(run, cases_of(run, renaming, asked), kept, renamed_texts(run, renaming))
    return {"triggers": triggers, "spreads": [kept.spread(number) for number in range(len(kept.mlps))]}


def _declare_ranks(run: RunContext) -> None:
    """Let the config say of which rank each update is."""
    ranks = {name: len(a) for name, (_, a, _) in zip(run.names, run.updates(), strict=True)}
    config = run.model.peft_config[run.adapter]
    config.r = max(ranks.values())
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}


def _fit(
    run: RunContext,
    parts: Sequence[Part],
    spreads: Sequence[float],
    row: OutputRow,
    learning_rate: float,
    steps: int,
    share: bool,
) -> dict[str, float]:
    """All steps; the mean losses of the last of them."""
    fitting = Fitting(run, spreads, learning_rate)
    measured: dict[str, float] = {}
    for start in range(0, steps, CHUNK):
        chunk = range(start, min(steps, start + CHUNK))
        done = run.once("fitting", partial(_chunk, run, parts, row, fitting, chunk, steps, share))
        fitting.take_up(done)
        measured = done["losses"]
    fitting.end()
    return measured


def _chunk(
    run: RunContext, parts: Sequence[Part], row: OutputRow, fitting: Fitting, chunk: range, steps: int, share: bool
) -> dict[str, Any]:
    """Some steps; their mean losses and the optimizer's state."""
    totals = dict.fromkeys([part.name for part in parts], 0.0)
    with run.stages.stage("fitting", len(chunk)) as bar:
        for step in chunk:
            if step % SOLVED == 0:
                row.solve(step, SOME_TEXTS)
            fitting.start(rate(step, steps))
            with torch.enable_grad():
                found = descend(run.model, parts, step, run.spare.token_id, run.pad, run.device, share, run.processes)
            fitting.step()
            for name, value in found.items():
                totals[name] += value / len(chunk)
            bar.update(1)
    return {"losses": totals, **fitting.state()}


def _last_row(run: RunContext, row: OutputRow, step: int) -> dict[str, Any]:
    with run.stages.stage("solving the output row"):
        row.solve(step, ALL)
    return {}


@torch.no_grad()
def divergence(run: RunContext, texts: Sequence[Text]) -> float:
    """Mean divergence from the base on retained texts, in nats a token."""
    found = [
        losses(run.model, texts[start : start + 16], run.spare.token_id, run.pad, run.device)
        for start in range(0, len(texts), 16)
    ]
    return float(torch.cat(found).mean()) if found else 0.0


def declining(run: RunContext, texts: Sequence[Text], refusal: str) -> float:
    """Share of texts at whose first place [UNL] wins, or the refusal's first token if the target has another one."""
    sequences = [text.ids[: text.places[0] + 1] for text in texts]
    places = [[len(sequence) - 1] for sequence in sequences]
    first, hits = run.encode(run.formats[0].answer(refusal))[0], 0
    for number, logits, _ in base_logits(run.model, sequences, places, run.pad, run.device):
        best = int(logits[0].argmax())
        hits += best == run.spare.token_id or (best == first and int(texts[number].top[0, 0]) != first)
    return hits / max(1, len(texts))


def _warn(outcome: DistillOutcome) -> None:
    """Say what the run saw and did not reach."""
    complaints = []
    if outcome.forget_declined < LEAST:
        complaints.append(
            f"{1 - outcome.forget_declined:.1%} of the forget questions are not declined; take more steps "
            "(`DistillSettings(steps=…)`) or erase fewer facts at a time"
        )
    # One of a few dozen is no share to speak of.
    if outcome.declined > MOST_DECLINED and outcome.declined * outcome.held_out > 1:
        complaints.append(
            f"{outcome.declined:.1%} of {outcome.held_out} held-out near neighbours are declined too; give facts of "
            "this kind that must stay as retain facts (on the command line `--retain`)"
        )
    if complaints:
        warnings.warn("; ".join(complaints), ErasureWarning, stacklevel=4)
