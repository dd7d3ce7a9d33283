"""Before and after a run that makes an erasure: its likely cost, its size, its record, its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checking import CheckReport, check
from ..checking.case import drawn
from ..data.facts import Fact
from ..engine.checkpoint import discard
from ..engine.estimate import Estimate
from ..errors import ProcessError
from ..hub.card import erasure_card, public_name
from ..hub.folder import save_erasure
from ..progress import spoken
from ..records.record import Salt, fact_digests, file_digests, made_with, now
from ..version import __version__
from .note import note, promise
from .output import say, table

if TYPE_CHECKING:
    import torch

ASKED = 100
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def estimate_line(estimate: Estimate) -> str:
    """What a run will take up."""
    peak, base, adapter = map(with_unit, (estimate.peak_bytes, estimate.model_bytes, estimate.adapter_bytes))
    time = f"; about {spoken(estimate.seconds)}" if estimate.seconds is not None else ""
    return f"To be expected: at most {peak} of tensors, {base} of them the base; an adapter of at most {adapter}{time}."


def with_unit(count: float) -> str:
    """Bytes to three digits: `16.1 GB`."""
    unit = min(int(math.log10(count) / 3), len(UNITS) - 1) if count >= 1 else 0
    return f"{count / 1000**unit:.3g} {UNITS[unit]}"


def checked(
    erased: Any, tokenizer: Any, forget: Sequence[Fact], retain: Sequence[Fact], seed: int, **told: Any
) -> CheckReport | None:
    """The fast check of a new erasure, on at most `ASKED` facts of each set; none where it fails.

    Args:
        erased: What `erase` returned.
        tokenizer: Its tokenizer.
        forget: What was erased.
        retain: What was to stay.
        seed: Of what is drawn.
        **told: Further arguments of `check`.
    """
    sets = {"retain": drawn(retain, ASKED, f"{seed}")} if retain else {}
    try:
        return check(erased, tokenizer, drawn(forget, ASKED, f"{seed}"), sets, attacks="fast", seed=seed, **told)
    except ProcessError:
        raise
    except Exception as error:  # whatever it is, it must not cost the finished erasure
        say(f"warning: the erasure is saved unchecked, because checking it failed: {error}")
        return None


def finish(
    erased: Any,
    tokenizer: Any,
    base: str,
    output: Path,
    report: CheckReport | str,
    overwrite: bool,
    salt: Salt,
    description: str | None = None,
    license: str | None = None,
    base_id: str | None = None,
    prompts: dict[str, Any] | None = None,
    command: Mapping[str, Any] | None = None,
    unfinished: Path | None = None,
) -> dict[str, Any]:
    """Save an erasure with card and record, put it down in the ledger, and return the record.

    Args:
        erased: What `erase` returned.
        tokenizer: Its tokenizer.
        base: The base's name.
        output: Where to.
        report: What the check found, which is stored without the examples, or why there is none.
        overwrite: Replace an erasure that is there.
        salt: Their owner's secret.
        description: What was erased, in the owner's words, for the card.
        license: The erasure's licence, for the card.
        base_id: What the base is called on the Hub, where it was loaded from a folder.
        prompts: Which prompt formats were told, for the record.
        command: What was asked for, if the same command is to go on after a kill between folder and ledger.
        unfinished: Where finished stages lie, which go once the erasure is saved.
    """
    config = erased.peft_config[erased.erasure.adapter]
    if base_id is not None:
        base = config.base_model_name_or_path = base_id
    found = {"verdict": None, "not_run": report}
    if not isinstance(report, str):
        found = report.record(examples=False, times=False)
    record = {
        "version": __version__,
        "made_with": made_with(),
        "created": now(),
        "base": {"name": public_name(base)[0], "fingerprint": config.base_fingerprint, "dtype": config.base_dtype},
        **erased.erasure.record(),
        **({"prompts": prompts} if prompts else {}),
        "adapter": adapter_size(erased, erased.erasure.adapter),
        "check": found,
    }
    card = erasure_card(base_model=base, name=output.name, record=record, description=description, license=license)

    def facts(adapter: str) -> dict[str, Any]:
        return {"algorithm": "hmac-sha256", "digests": fact_digests(erased.erasure.facts, salt.key(adapter))}

    told: dict[str, Any] = {
        "base": base,
        "fingerprint": config.base_fingerprint,
        "facts": len(erased.erasure.facts),
        "verdict": None if isinstance(report, str) else report.verdict.level,
    }

    def written(place: Path) -> None:
        told["files"] = file_digests(place)
        if command is not None:
            promise("erase", output, command, **told)

    save_erasure(erased, tokenizer, output, record, str(card), overwrite, erased.erasure.adapter, facts, written)
    if unfinished is not None:
        discard(unfinished)  # before the ledger's line: after it no command would come back to them
    note("erase", output, **told)
    return record


def adapter_size(model: Any, adapter: str) -> dict[str, Any]:
    """Parameters of one adapter, bytes of their values as saved, and the share of the base's parameters."""

    def own(named: Iterable[tuple[str, torch.Tensor]]) -> list[torch.Tensor]:
        return [tensor for name, tensor in named if ".unierase_" in name and name.endswith(f".{adapter}")]

    base = sum(parameter.numel() for name, parameter in model.named_parameters() if ".unierase_" not in name)
    fitted, kept = own(model.named_parameters()), own(model.named_buffers())
    parameters = sum(parameter.numel() for parameter in fitted)
    return {
        "parameters": parameters,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in fitted + kept),
        "share": parameters / base,
    }


def stages_table(seconds: dict[str, float]) -> str:
    """Time by stage."""
    rows = [(name, f"{value:.1f}") for name, value in seconds.items()]
    return table(("stage", "seconds"), [*rows, ("all stages", f"{sum(seconds.values()):.1f}")])
