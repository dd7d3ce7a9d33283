"""`unierase merge` and `unierase export`: erasures in forms that need nothing of this package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .note import note
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
    """Write the merged model; ends the process with status 2 on bad input."""
    with clear_endings():
        from ..hub.folder import check_new, write_folder

        check_new(plan.output)
        from ..hub.card import merged_card
        from ..tuner.undo import Before

        model, tokenizer, base = load_stack(plan)
        names = list(model.peft_config)
        before = Before(model.get_base_model()) if plan.with_undo else None
        merged = model.merge_and_unload(safe_merge=True)

        def write(place: Path) -> None:
            merged.save_pretrained(place)
            tokenizer.save_pretrained(place)
            merged_card(base_model=base, name=plan.output.name, erasures=plan.adapters).save(place / "README.md")

        write_folder(plan.output, write)
        undo = None
        if before is not None:
            undo = plan.undo or undo_file(plan.output)
            undo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            before.save(merged, undo, base=base)
            undo.chmod(0o600)
    kept = str(undo.absolute()) if undo else None
    note("merge", plan.output, base=base, erasures=list(plan.adapters), undo=kept)
    told = {"output": str(plan.output), "base": base, "merged": names, "undo": kept}
    if style is Format.JSON:
        show_json(told)
    elif style is Format.HUMAN:
        show(f"Merged {', '.join(names)} into {base} and saved it to {plan.output}. Plain transformers loads it:\n")
        show(f'    model = AutoModelForCausalLM.from_pretrained("{plan.output}")')
        if kept:
            show(f"\nThe way back is in {kept}. It brings back what was erased, so keep it to yourself.")


def undo_file(folder: Path) -> Path:
    """Where the way back from a merged model lies, by what the model is."""
    from ..hub.record import file_digests
    from ..source import home

    weights = [digest for name, digest in file_digests(folder).items() if name.endswith(".safetensors")]
    return home() / "undo" / f"{hashlib.sha256(' '.join(weights).encode()).hexdigest()[:32]}.safetensors"


def run_export(plan: ShipPlan, style: Format) -> None:
    """Write the stock LoRA form; ends the process with status 2 on bad input."""
    with clear_endings():
        from ..hub.folder import check_new, write_folder

        check_new(plan.output)
        from ..tuner.lora import default_layout, save_lora

        model, tokenizer, base = load_stack(plan)
        layout, rank = plan.layout or default_layout(model), 0

        def write(place: Path) -> None:
            nonlocal rank
            rank = save_lora(model, place, layout=layout).r
            tokenizer.save_pretrained(place)

        write_folder(plan.output, write)
    note("export", plan.output, base=base, erasures=list(plan.adapters), layout=layout)
    if style is Format.JSON:
        show_json({"output": str(plan.output), "base": base, "layout": layout, "rank": rank})
    elif style is Format.HUMAN:
        show(f"Saved to {plan.output}: a LoRA of rank {rank} in layout {layout} for {base}. Plain peft loads it:\n")
        show(f'    model = PeftModel.from_pretrained(base, "{plan.output}")')


def load_stack(plan: ShipPlan) -> tuple[Any, Any, str]:
    """The base with all of the erasures on, the tokenizer with their tokens, and the base's name.

    Raises:
        ValueError: One is no erasure, the guard refuses one, they name different bases, or something cannot be loaded.
    """
    from ..hub.read import local_folder, read_config
    from ..tuner import align_tokenizer, guarded, load
    from .base import load_base, prepare_libraries, resized_for

    prepare_libraries()
    # Each is found once: what is looked at is what is loaded, whatever its owner pushes meanwhile.
    places = {name: local_folder(name) if plan.trust else guarded(name) for name in plan.adapters}
    configs = [read_config(str(place)) for place in places.values()]
    named = {config.base_model_name_or_path for config in configs}
    if plan.base is None and (len(named) > 1 or None in named or "" in named):
        raise ValueError("the erasures do not name one base that they all belong to; name it with --base")
    base = plan.base or named.pop()
    model, tokenizer = load_base(base, plan.dtype, plan.device_map)
    resized_for(model, configs)
    stacked = load(model, list(places.values()), names=list(places), trust=plan.trust)
    align_tokenizer(tokenizer, stacked)
    return stacked, tokenizer, base
