"""`unierase stack`: several erasures in one folder, or one of them taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..storage.whole import claimed
from .note import note
from .output import Format, clear_endings, show, show_json


def run_stack(
    adapters: Sequence[str], output: Path, without: Sequence[str], base: str | None, style: Format, trust: bool = False
) -> None:
    """Write the folder; ends the process with status 2 on bad input."""
    with clear_endings(), claimed(output):
        from ..storage.output import check_new

        check_new(output)
        from ..hub.stack import stack
        from .base import prepare_libraries

        prepare_libraries()
        stacked = stack(*adapters, base=base, trust=trust)
        for name in without:
            stacked -= name
        stacked.save(output)
    note("stack", output, erasures=list(adapters), without=list(without))
    if style is Format.JSON:
        show_json(
            {"output": str(output), "erasures": stacked.names, "tokens": [text for _, text in stacked.config.tokens]}
        )
    elif style is Format.HUMAN:
        show(f"Saved to {output}, with {', '.join(stacked.names)} in it. Next:\n")
        show(f'    model = PeftModel.from_pretrained(base, "{output}")')
