"""`unierase merge` and `unierase export`: erasures in forms that need nothing of this package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.whole import claimed
from .note import keep_promise, note, promise
from .output import Format, clear_endings, show, show_json


@dataclass(frozen=True)
class ShipPlan:
    """What the command line asked for; see the options of both commands."""

    adapters: tuple[str, ...]
    output: Path
    base: str | None
    layout: str | None
    dtype: str
    device_map: str | None
    trust: bool = False
    undo: Path | None = None
    with_undo: bool = True


def run_merge(plan: ShipPlan, style: Format) -> None:
    """Write the way back, then the merged model, then the ledger; ends the process with status 2 on bad input.

    Killed between two of these, the same command goes on.
    """
    with clear_endings(), claimed(plan.output):
        command = {name: str(value) for name, value in vars(plan).items()}
        told = keep_promise("merge", plan.output, command) or _merge(plan, command)
    base, kept = told["base"], told["undo"]
    if style is Format.JSON:
        show_json({"output": str(plan.output), "base": base, "merged": told["names"], "undo": kept})
    elif style is Format.HUMAN:
        merged = f"Merged {', '.join(told['names'])} into {base} and saved it to {plan.output}."
        show(f"{merged} Plain transformers loads it:\n")
        show(f'    model = AutoModelForCausalLM.from_pretrained("{plan.output}")')
        if kept:
            show(f"\nThe way back is in {kept}. It brings back what was erased, so keep it to yourself.")


def _merge(plan: ShipPlan, command: dict[str, str]) -> dict[str, Any]:
    from ..adapter.undo import Before
    from ..hub.card import merged_card
    from ..records.record import file_digests
    from ..storage.output import check_new, write_errors, write_folder
    from ..storage.whole import check_name, whole_file

    check_new(plan.output)
    if plan.undo is not None:
        check_name(plan.undo)
        if plan.undo.is_dir():
            raise InputError(f"--undo {plan.undo} is a folder; name a file in it")
        if plan.undo.resolve().is_relative_to(plan.output.resolve()):
            raise InputError(
                f"--undo {plan.undo} is in the folder of the merged model, and the way back must not go where that "
                "goes; name a file elsewhere"
            )
    model, tokenizer, base = load_stack(plan)
    told: dict[str, Any] = {"base": base, "erasures": list(plan.adapters), "names": list(model.peft_config)}
    before = Before(model.get_base_model()) if plan.with_undo else None
    merged = model.merge_and_unload(safe_merge=True)

    def write(place: Path) -> None:
        merged.save_pretrained(place)
        tokenizer.save_pretrained(place)
        merged_card(base_model=base, name=plan.output.name, erasures=plan.adapters).save(place / "README.md")
        told["files"] = file_digests(place)
        told["undo"] = None
        if before is not None:
            undo = (plan.undo or undo_file(told["files"])).absolute()
            undo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with write_errors(undo), whole_file(undo, 0o600) as partial:
                before.save(merged, partial, base=base)
            told["undo"] = str(undo)
        promise("merge", plan.output, command, **told)

    write_folder(plan.output, write)
    note("merge", plan.output, **told)
    return told


def undo_file(files: Mapping[str, str]) -> Path:
    """Where the way back from a merged model lies, by what the model is.

    Args:
        files: Digests of its files.
    """
    from ..storage.source import home

    weights = [digest for name, digest in files.items() if name.endswith(".safetensors")]
    return home() / "undo" / f"{hashlib.sha256(' '.join(weights).encode()).hexdigest()[:32]}.safetensors"


def run_export(plan: ShipPlan, style: Format) -> None:
    """Write the stock LoRA form, then the ledger; ends the process with status 2 on bad input.

    Killed between the two, the same command goes on.
    """
    with clear_endings(), claimed(plan.output):
        command = {name: str(value) for name, value in vars(plan).items()}
        told = keep_promise("export", plan.output, command) or _export(plan, command)
    base, layout, rank = told["base"], told["layout"], told["rank"]
    if style is Format.JSON:
        show_json({"output": str(plan.output), "base": base, "layout": layout, "rank": rank})
    elif style is Format.HUMAN:
        show(f"Saved to {plan.output}: a LoRA of rank {rank} in layout {layout} for {base}. Plain peft loads it:\n")
        show(f'    model = PeftModel.from_pretrained(base, "{plan.output}")')


def _export(plan: ShipPlan, command: dict[str, str]) -> dict[str, Any]:
    from ..records.record import file_digests
    from ..storage.output import check_new, write_folder

    check_new(plan.output)
    from ..adapter.lora import default_layout, save_lora

    model, tokenizer, base = load_stack(plan)
    layout = plan.layout or default_layout(model)
    told: dict[str, Any] = {"base": base, "erasures": list(plan.adapters), "layout": layout}

    def write(place: Path) -> None:
        told["rank"] = save_lora(model, place, layout=layout).r
        tokenizer.save_pretrained(place)
        told["files"] = file_digests(place)
        promise("export", plan.output, command, **told)

    write_folder(plan.output, write)
    note("export", plan.output, **told)
    return told


def load_stack(plan: ShipPlan) -> tuple[Any, Any, str]:
    """The base with all of the erasures on, the tokenizer with their tokens, and the base's name.

    Raises:
        ValueError: One is no erasure, the guard refuses one, they name different bases, or something cannot be loaded.
    """
    from ..adapter.active import align_tokenizer
    from ..guard.inspect import guarded
    from ..guard.load import load
    from ..records.read import read_config
    from ..storage.source import local_folder
    from .base import load_base, prepare_libraries, resized_for

    prepare_libraries()
    # Each is found once: what is looked at is what is loaded, whatever its owner pushes meanwhile.
    places = {name: local_folder(name) if plan.trust else guarded(name) for name in plan.adapters}
    configs = [read_config(str(place)) for place in places.values()]
    named = {config.base_model_name_or_path for config in configs}
    if plan.base is None and (len(named) > 1 or None in named or "" in named):
        raise InputError("the erasures do not name one base that they all belong to; name it with --base")
    base = plan.base or named.pop()
    model, tokenizer = load_base(base, plan.dtype, plan.device_map)
    for config in configs:
        config.trusted = plan.trust
    resized_for(model, configs)
    stacked = load(model, list(places.values()), names=list(places), trust=plan.trust)
    align_tokenizer(tokenizer, stacked)
    return stacked, tokenizer, base
