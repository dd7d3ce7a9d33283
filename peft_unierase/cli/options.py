"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import Format

DeviceMapOption = Annotated[str | None, typer.Option(help="Passed on to transformers, for instance auto.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="What stdout shows; auto is human on a terminal, json in a pipe.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load erasures that the guard refuses; see unierase inspect.")
]
