"""Recipe `paper` in its order: the published method, both stages (UniErase, arXiv 2505.15674, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...data.facts import Fact
from ...errors import InputError
from ...lm.batches import last_logits
from ..run_context import RunContext
from ..silence import Silence
from .edit import EditedLayer, edit_layers
from .kept import find_null_spaces, record_kept
from .marks import find_marks
from .null_space import NullSpace
from .output_row import fit_output_row
from .settings import PaperSettings
from .tail import Tail, tail_batches
from .targets import Targets, find_targets
from .token import draw_refusals, learn_refusals

OUTPUT_FACTS = 64  # forget facts that the output row is fitted on, at the most


@dataclass(frozen=True)
class PaperOutcome:
    """What a run of recipe `paper` did and measured; `record()` is its JSON form.

    Attributes:
        rank: Rank of all edits; smaller ones are padded with zeros.
        layers: What became of each edited layer, lowest first.
        refusal_loss: Loss of stage I in the end, in nats per token.
        target_loss: Mean of `-log p([UNL])` at the forget answer starts with the targets put in place, in nats.
        targets_refusal_rate: Share of forget answer starts at which [UNL] wins with the targets put in place.
        refusal_rate: The same after the edit, each question in the next of the formats.
        retained_refusal_rate: Share of some 200 retained answer starts at which [UNL] wins after the edit.
        without_subject: Facts edited at the answer start, because no subject was found.
        settings: As used.
    """

    rank: int
    layers: list[EditedLayer]
    refusal_loss: float
    target_loss: float
    targets_refusal_rate: float
    refusal_rate: float
    retained_refusal_rate: float
    without_subject: int
    settings: PaperSettings

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return asdict(self)


def run_paper(run: RunContext, settings: PaperSettings) -> PaperOutcome:
    """Train [UNL]'s rows and write the edits; `config.r` follows their rank.

    Args:
        run: With the adapter in place, its edits zero, and retain facts at hand.
        settings: See [`PaperSettings`].

    Raises:
        ValueError: The weights are quantised and cannot be perturbed, or there are no retain facts.
    """
    if not run.kept:
        raise InputError("recipe 'paper' edits in the null space of what must stay and has no retain facts; give some")
    marks, without_subject = find_marks(run)
    run.start_rows()
    learnt = run.once("learning to decline", lambda: {"loss": learn_refusals(run, settings)})

    prompts = run.prompts(run.forget)
    spaces, silence = _null_spaces(run, settings.null_threshold)
    common = run.once(
        "fitting the output row", lambda: {"change": fit_common(run, settings, prompts, marks, silence())}
    )["change"].to(run.device)
    targets = run.once("finding targets", lambda: vars(_targets(run, settings, prompts, marks, common)))
    vectors = targets["vectors"].to(run.device)
    edited = run.once("editing layers", lambda: _edit(run, settings, prompts, marks, vectors, spaces))["layers"]
    layers = [EditedLayer(**layer) for layer in edited]
    rank = max(layer.rank for layer in layers)
    run.model.peft_config[run.adapter].r = rank
    rates = run.once("counting refusals", lambda: _count(run))
    return PaperOutcome(
        rank=rank,
        layers=layers,
        refusal_loss=learnt["loss"],
        target_loss=targets["loss"],
        targets_refusal_rate=targets["refusal_rate"],
        refusal_rate=rates["forget"],
        retained_refusal_rate=rates["retain"],
        without_subject=without_subject,
        settings=settings,
    )


def _null_spaces(run: RunContext, threshold: float) -> tuple[list[NullSpace], Callable[[], Silence]]:
    """The null spaces of the retained keys, and what gives the states that are recorded on the way."""
    found: list[Silence] = []

    def work() -> dict[str, Any]:
        moments, silence = record_kept(run)
        found.append(silence)
        spaces = find_null_spaces(run, moments, threshold)
        bases = {f"basis.{number}": space.basis for number, space in enumerate(spaces)}
        return {"spaces": [(space.spans_null, space.dimension) for space in spaces], **bases}

    kept = run.once("finding the null space", work)
    spaces = [NullSpace(kept[f"basis.{number}"].to(run.device), *told) for number, told in enumerate(kept["spaces"])]
    return spaces, lambda: found[0] if found else record_kept(run)[1]


def _targets(
    run: RunContext,
    settings: PaperSettings,
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    common: torch.Tensor,
) -> Targets:
    with run.stages.stage("finding targets", settings.target_steps) as bar:
        count = len(run.formats)
        facts = torch.arange(len(prompts), device=run.device) // count
        tails = [_tails(run, prompts, marks, range(form, len(prompts), count)) for form in range(count)]
        return find_targets(tails, facts, common, run.spare.token_id, settings.target_steps, bar.update)


def _edit(
    run: RunContext,
    settings: PaperSettings,
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    vectors: torch.Tensor,
    spaces: Sequence[NullSpace],
) -> dict[str, Any]:
    projections = run.projections()
    with run.stages.stage("editing layers", len(projections)) as bar:
        edited = edit_layers(
            run.model,
            projections,
            run.stack[run.layers[-1] + 1],
            run.adapter,
            prompts,
            marks,
            vectors,
            spaces,
            settings.truncate,
            run.pad,
            bar.update,
        )
    return {"layers": [asdict(layer) for layer in edited]}


def _count(run: RunContext) -> dict[str, float]:
    """Shares of the forget answer starts, and of some 200 retained ones, at which [UNL] wins."""
    with run.stages.stage("counting refusals", 2, even=False) as bar:
        forget_refusal_rate = _refusal_rate(run, run.forget)
        bar.update(1)
        retained_refusal_rate = _refusal_rate(run, run.kept[:: max(1, len(run.kept) // 200)])
        bar.update(1)
    return {"forget": forget_refusal_rate, "retain": retained_refusal_rate}


def fit_common(
    run: RunContext, settings: PaperSettings, prompts: Sequence[Sequence[int]], marks: Sequence[int], silence: Silence
) -> torch.Tensor:
    """Fit the output row on a sample of the forget facts; the change `(d,)` of the stream that it reads."""
    count, formats = len(run.forget), len(run.formats)
    sample = min(count, OUTPUT_FACTS)
    chosen = [number * count // sample * formats + form for number in range(sample) for form in range(formats)]
    refusals = draw_refusals(run, len(chosen))
    sequences = [[*prompts[index], *refusal] for index, refusal in zip(chosen, refusals, strict=True)]
    tails = _tails(run, sequences, [marks[index] for index in chosen], range(len(chosen)))
    with run.stages.stage("fitting the output row", settings.output_steps) as bar:
        behind = [len(refusal) for refusal in refusals]
        return fit_output_row(tails, behind, run.rows()[1], silence, settings.output_steps, bar.update)


def _tails(run: RunContext, prompts: Sequence[Sequence[int]], marks: Sequence[int], some: Sequence[int]) -> list[Tail]:
    """Some of the prompts, recorded batch by batch."""
    return [
        Tail(run.model, run.stack, run.layers[-1], batch, columns)
        for batch, columns in tail_batches(prompts, marks, some, run.pad, run.device)
    ]


def _refusal_rate(run: RunContext, facts: Sequence[Fact]) -> float:
    """Share of questions after which [UNL] is likeliest, each in the next of the formats."""
    prompts = run.prompts(facts)
    prompts = [prompts[n * len(run.formats) + n % len(run.formats)] for n in range(len(facts))]
    likeliest = [logits[-1].argmax() for _, logits in last_logits(run.model, prompts, [1] * len(prompts), run.pad)]
    return int((torch.stack(likeliest) == run.spare.token_id).sum()) / len(prompts)  # the device is waited for once
