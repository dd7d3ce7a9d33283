"""`unierase erase`: read, check, erase, measure, save."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .output import Format, clear_endings, say, show, show_json, table

MEASURED = 200


@dataclass(frozen=True)
class ErasePlan:
    """What the command line asked for; see the options of `unierase erase`."""

    model: str
    forget: str
    output: Path
    retain: str | None
    question_column: str | None
    answer_column: str | None
    split: str
    refusals: Path | None
    recipe: str
    depth: int
    layers: str | None
    target_modules: str | None
    samples: int
    seed: int
    dtype: str
    device_map: str | None
    revision: str | None
    allow_resize: bool
    overwrite: bool
    figures: bool


def parse_layers(text: str | None) -> list[int] | None:
    """`2,3` or `4-8` as indices.

    Raises:
        ValueError: It is neither.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"--layers {text!r} is not a list of layers; write it like 2,3 or 4-8")
        layers.extend(range(int(first), int(last or first) + 1))
    return layers


def read_refusals(path: Path | None) -> list[str] | None:
    """The sentences of a file, one a line.

    Raises:
        ValueError: The file is missing or empty.
    """
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"no such file: {path} (--refusals wants a text file with one sentence a line)")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no sentence in it; write one way of declining a line")
    return lines


def run_erase(plan: ErasePlan, style: Format) -> None:
    """Run the command; ends the process with status 2 on bad input and 130 on Ctrl-C."""
    with clear_endings():
        _run(plan, style)


def _run(plan: ErasePlan, style: Format) -> None:
    from ..facts import check_facts, read_facts
    from ..hub.folder import check_output

    # Everything that can be refused without a model is refused first.
    layers, refusals = parse_layers(plan.layers), read_refusals(plan.refusals)
    columns = {"question": plan.question_column, "answer": plan.answer_column, "split": plan.split}
    forget = read_facts(plan.forget, **columns, role="forget")
    retain = read_facts(plan.retain, **columns, role="retain") if plan.retain else []
    for warning in check_facts(forget, retain):
        say(f"warning: {warning}")
    check_output(plan.output, plan.overwrite)
    if plan.figures:
        from ..check import recall_scorer

        recall_scorer()

    from transformers.utils import logging as transformers_logging

    from .. import tuner
    from ..engine import GateSettings, erase
    from ..hub.card import erasure_card
    from ..hub.folder import save_erasure
    from ..prompts import default_formats
    from ..version import __version__
    from .base import load_base
    from .measure import ask, figures_record, figures_table, some

    tuner.register()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    transformers_logging.disable_progress_bar()
    model, tokenizer = load_base(plan.model, plan.dtype, plan.device_map, plan.revision)
    erased = erase(
        model,
        tokenizer,
        forget,
        retain,
        recipe=plan.recipe,
        depth=plan.depth,
        layers=layers,
        target_modules=plan.target_modules.split(",") if plan.target_modules else None,
        refusals=refusals,
        settings=GateSettings(samples=plan.samples),
        allow_resize=plan.allow_resize,
        seed=plan.seed,
        progress=style is not Format.QUIET,
    )
    erasure = erased.erasure
    rows = []
    if plan.figures:
        form, token_id = default_formats(tokenizer)[0], erasure.token.token_id
        from ..check import figures

        for name, facts in (("forget", some(forget, MEASURED, plan.seed)), ("retain", some(retain, MEASURED, plan.seed))):
            if facts:
                with erased.disable_adapter():
                    before = figures(ask(erased, tokenizer, facts, form, None, f"asking the base ({name})"))
                after = figures(ask(erased, tokenizer, facts, form, token_id, f"asking again ({name})"))
                rows.append((name, before, after))
    record = {
        "version": __version__,
        **erasure.record(),
        "adapter": adapter_size(erased),
        "figures": figures_record(rows) if rows else None,
    }
    name = plan.output.name
    save_erasure(
        erased,
        tokenizer,
        plan.output,
        record,
        str(erasure_card(base_model=plan.model, name=name, record=record)),
        plan.overwrite,
    )
    if style is Format.JSON:
        show_json({"output": str(plan.output), **record, "seconds": erasure.seconds})
    elif style is Format.HUMAN:
        if rows:
            show(figures_table(rows))
            show()
        show(stages_table(erasure.seconds))
        show()
        size = record["adapter"]
        show(f"Saved to {plan.output}: {size['bytes']:,} bytes of weights, {size['share']:.3%} of the parameters.")
        show("Next, in Python:")
        show("    import peft_unierase; from peft import PeftModel")
        show(f'    model = PeftModel.from_pretrained(base, "{plan.output}")')


def adapter_size(model: Any) -> dict[str, Any]:
    """Parameters, bytes of their values as saved, and the share of the base's parameters."""
    own = [p for name, p in model.named_parameters() if "unierase_" in name]
    base = sum(p.numel() for name, p in model.named_parameters() if "unierase_" not in name)
    parameters = sum(p.numel() for p in own)
    return {
        "parameters": parameters,
        "bytes": sum(p.numel() * p.element_size() for p in own),
        "share": parameters / base,
    }


def stages_table(seconds: dict[str, float]) -> str:
    """Time by stage."""
    rows = [(name, f"{value:.1f}") for name, value in seconds.items()]
    return table(("stage", "seconds"), [*rows, ("all stages", f"{sum(seconds.values()):.1f}")])
