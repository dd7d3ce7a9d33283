"""`unierase stack`: several erasures in one folder, or one of them taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.whole import claimed
from .note import keep_promise, note, promise
from .output import Format, clear_endings, show, show_json


def run_stack(
    adapters: Sequence[str], output: Path, without: Sequence[str], base: str | None, style: Format, trust: bool = False
) -> None:
    """Write the folder, then the ledger; ends the process with status 2 on bad input.

    Killed between the two, the same command goes on.
    """
    with clear_endings(), claimed(output):
        command = {"erasures": list(adapters), "without": list(without), "base": base, "trust": trust}
        told = keep_promise("stack", output, command) or _stack(output, command)
    if style is Format.JSON:
        show_json({"output": str(output), "erasures": told["names"], "tokens": told["tokens"]})
    elif style is Format.HUMAN:
        show(f"Saved to {output}, with {', '.join(told['names'])} in it. Next:\n")
        show(f'    model = PeftModel.from_pretrained(base, "{output}")')


def _stack(output: Path, command: dict[str, Any]) -> dict[str, Any]:
    from ..records.record import file_digests
    from ..storage.output import check_new

    check_new(output)
    from ..hub.stack import stack
    from .base import prepare_libraries

    prepare_libraries()
    stacked = stack(*command["erasures"], base=command["base"], trust=command["trust"])
    for name in command["without"]:
        stacked -= name
    told: dict[str, Any] = {"erasures": command["erasures"], "without": command["without"], "names": stacked.names}
    told["tokens"] = [text for _, text in stacked.config.tokens]

    def written(place: Path) -> None:
        told["files"] = file_digests(place)
        promise("stack", output, command, **told)

    stacked.save(output, written)
    note("stack", output, **told)
    return told
