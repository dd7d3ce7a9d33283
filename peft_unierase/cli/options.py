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
PromptFormatOption = Annotated[
    str | None,
    typer.Option(
        help="Prompt formats: chat, plain, or a file with a chat template (FILE.jinja) that takes the place of the "
        "tokenizer's in this run; by default chat and plain.",
        show_default=False,
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option(help="The system prompt that the model is used with; chats with it come first.", show_default=False),
]
