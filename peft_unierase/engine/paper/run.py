"""Recipe `paper` in its order: the published method, both stages (UniErase, arXiv 2505.15674, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...data.facts import Fact
from ...errors import InputError
from ...lm.batches import batches
from ..bench import Bench
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


@dataclass(frozen=True)
class PaperOutcome:
    """What a run of recipe `paper` did and measured; `record()` is its JSON form.

    Attributes:
        rank: Rank of all edits; smaller ones are padded with zeros.
        layers: What became of each edited layer, lowest first.
        refusal_loss: Loss of stage I in the end, in nats per token.
        target_loss: Mean of `-log p([UNL])` at the forget doors with the targets put in place, in nats.
        targets_fired: Share of forget doors at which [UNL] wins with the targets put in place.
        fired: The same after the edit, with the formats by turns.
        retained_fired: Share of some 200 retained doors at which [UNL] wins after the edit.
        without_subject: Facts edited at the door, because no subject was found.
        settings: As used.
    """

    rank: int
    layers: list[EditedLayer]
    refusal_loss: float
    target_loss: float
    targets_fired: float
    fired: float
    retained_fired: float
    without_subject: int
    settings: PaperSettings

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return asdict(self)


def run_paper(bench: Bench, settings: PaperSettings) -> PaperOutcome:
    """Train [UNL]'s rows and write the edits; `config.r` follows their rank.

    Args:
        bench: With the adapter in place, its edits zero, and retain facts at hand.
        settings: See [`PaperSettings`].

    Raises:
        ValueError: The weights are quantised and cannot be perturbed, or there are no retain facts.
    """
    if not bench.kept:
        raise InputError("recipe 'paper' edits in the null space of what must stay and has no retain facts; give some")
    marks, without_subject = find_marks(bench)
    bench.start_rows()
    learnt = bench.once("learning to decline", lambda: {"loss": learn_refusals(bench, settings)})

    prompts = bench.prompts(bench.forget)
    spaces, silence = _null_spaces(bench, settings.null_threshold)
    common = bench.once(
        "fitting the output row", lambda: {"change": fit_common(bench, settings, prompts, marks, silence())}
    )["change"].to(bench.device)
    targets = bench.once("finding targets", lambda: vars(_targets(bench, settings, prompts, marks, common)))
    vectors = targets["vectors"].to(bench.device)
    edited = bench.once("editing layers", lambda: _edit(bench, settings, prompts, marks, vectors, spaces))["layers"]
    layers = [EditedLayer(**layer) for layer in edited]
    rank = max(layer.rank for layer in layers)
    bench.model.peft_config[bench.adapter].r = rank
    fired = bench.once("counting what fires", lambda: _count(bench))
    return PaperOutcome(
        rank=rank,
        layers=layers,
        refusal_loss=learnt["loss"],
        target_loss=targets["loss"],
        targets_fired=targets["fired"],
        fired=fired["forget"],
        retained_fired=fired["retain"],
        without_subject=without_subject,
        settings=settings,
    )


def _null_spaces(bench: Bench, threshold: float) -> tuple[list[NullSpace], Callable[[], Silence]]:
    """The null spaces of the retained keys, and what gives the states that are recorded on the way."""
    found: list[Silence] = []

    def work() -> dict[str, Any]:
        moments, silence = record_kept(bench)
        found.append(silence)
        spaces = find_null_spaces(bench, moments, threshold)
        bases = {f"basis.{number}": space.basis for number, space in enumerate(spaces)}
        return {"spaces": [(space.spans_null, space.dimension) for space in spaces], **bases}

    kept = bench.once("finding the null space", work)
    spaces = [NullSpace(kept[f"basis.{number}"].to(bench.device), *told) for number, told in enumerate(kept["spaces"])]
    return spaces, lambda: found[0] if found else record_kept(bench)[1]


def _targets(
    bench: Bench,
    settings: PaperSettings,
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    common: torch.Tensor,
) -> Targets:
    with bench.stages.stage("finding targets", settings.target_steps) as bar:
        count = len(bench.formats)
        facts = torch.arange(len(prompts), device=bench.device) // count
        tails = [_tails(bench, prompts, marks, range(form, len(prompts), count)) for form in range(count)]
        return find_targets(tails, facts, common, bench.spare.token_id, settings, bar.update)


def _edit(
    bench: Bench,
    settings: PaperSettings,
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    vectors: torch.Tensor,
    spaces: Sequence[NullSpace],
) -> dict[str, Any]:
    projections = bench.projections()
    with bench.stages.stage("editing layers", len(projections)) as bar:
        edited = edit_layers(
            bench.model,
            projections,
            bench.stack[bench.layers[-1] + 1],
            bench.adapter,
            prompts,
            marks,
            vectors,
            spaces,
            settings.ridge,
            settings.truncate,
            bench.pad,
            bar.update,
        )
    return {"layers": [asdict(layer) for layer in edited]}


def _count(bench: Bench) -> dict[str, float]:
    """Shares of the forget doors, and of some 200 retained ones, at which [UNL] wins."""
    with bench.stages.stage("counting what fires", 2, even=False) as bar:
        fired = _fired(bench, bench.forget)
        bar.update(1)
        retained_fired = _fired(bench, bench.kept[:: max(1, len(bench.kept) // 200)])
        bar.update(1)
    return {"forget": fired, "retain": retained_fired}


def fit_common(
    bench: Bench, settings: PaperSettings, prompts: Sequence[Sequence[int]], marks: Sequence[int], silence: Silence
) -> torch.Tensor:
    """Fit the output row on a sample of the forget facts; the change `(d,)` of the stream that it reads."""
    count, formats = len(bench.forget), len(bench.formats)
    sample = min(count, settings.output_facts)
    chosen = [number * count // sample * formats + form for number in range(sample) for form in range(formats)]
    refusals = draw_refusals(bench, len(chosen))
    sequences = [[*prompts[index], *refusal] for index, refusal in zip(chosen, refusals, strict=True)]
    tails = _tails(bench, sequences, [marks[index] for index in chosen], range(len(chosen)))
    with bench.stages.stage("fitting the output row", settings.output_steps) as bar:
        behind = [len(refusal) for refusal in refusals]
        return fit_output_row(tails, behind, bench.rows()[1], silence, settings, bar.update)


def _tails(bench: Bench, prompts: Sequence[Sequence[int]], marks: Sequence[int], some: Sequence[int]) -> list[Tail]:
    """Some of the prompts, recorded batch by batch."""
    return [
        Tail(bench.model, bench.stack, bench.layers[-1], batch, columns)
        for batch, columns in tail_batches(prompts, marks, some, bench.pad, bench.device)
    ]


@torch.no_grad()
def _fired(bench: Bench, facts: Sequence[Fact]) -> float:
    """Share of questions after which [UNL] is likeliest, in one of the formats by turns."""
    prompts, hits = bench.prompts(facts), 0
    prompts = [prompts[n * len(bench.formats) + n % len(bench.formats)] for n in range(len(facts))]
    for batch in batches(prompts, bench.pad, bench.device):
        logits = bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]
        hits += int((logits.argmax(dim=-1) == bench.spare.token_id).sum())
    return hits / len(prompts)
