"""What is known of a run before it is started, in the numbers that its cost depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...facts import Fact
from ...prompts import PromptFormat, default_formats, encode
from ...refusals import DEFAULT_REFUSALS
from ...tuner.structure import projection_shape
from ..gate import GateSettings
from ..gate.places import choose_places
from .work import Work


def expected_work(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact] = (),
    *,
    settings: GateSettings | None = None,
    depth: int | str | None = None,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    refusals: Sequence[str] | None = None,
    formats: Sequence[PromptFormat] | None = None,
) -> Work:
    """What `erase` will have to do with the same arguments and recipe `gate`.

    Lengths are means over the forget set, each fact in the wordings in which it is asked. How many trials linear
    gates take is not known; the default is taken.

    Raises:
        ValueError: There are no such layers or modules.
    """
    settings = settings or GateSettings()
    formats, sentences = list(formats or default_formats(tokenizer)), list(refusals or DEFAULT_REFUSALS)
    _, indices, names, writers = choose_places(model, settings, len(forget), layers, target_modules)
    detecting: dict[str, Any] = {}
    if writers and settings.units:
        width, _ = projection_shape(model.get_submodule(names[0])) or (0, 0)
        detecting = {
            "units": settings.units.count(len(forget), width),
            "unit_steps": settings.units.steps,
            "unit_steps_per_fact": settings.units.steps_per_fact,
            "reworded": sum(min(settings.units.wordings - 1, len(form.variants)) for form in formats),
        }
    steer = settings.units.steer if writers and settings.units else settings.steer

    def mean(texts: Sequence[str]) -> int:
        return max(1, round(sum(len(encode(tokenizer, text)) for text in texts) / len(texts)))

    # Rows on the keys meet one wording of a format alone.
    wordings = [(form.turn(n if detecting else 0), fact) for n, fact in enumerate(forget) for form in formats]
    answer = mean([form.answer(fact.answer) for form, fact in wordings])
    return Work(
        facts=len(forget),
        retain=len(retain),
        samples=settings.sample_count(len(forget)),
        formats=len(formats),
        layers=tuple(indices),
        question=mean([form.prompt(fact.question) for form, fact in wordings]),
        answer=answer,
        refusals=min(settings.refusal_count, len(sentences)),
        refusal=mean([sentence + formats[0].end for sentence in sentences]),
        depth=depth if isinstance(depth, int) else answer if depth == "all" else settings.depths[0],
        widest=settings.widest,
        held_out=settings.held_out,
        fit_samples=settings.fit_samples,
        steer_steps=steer.steps,
        retain_every=steer.retain_every,
        row_steps=settings.row_steps,
        row_steps_per_fact=settings.row_steps_per_fact,
        **detecting,
    )
