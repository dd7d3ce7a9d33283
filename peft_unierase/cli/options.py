"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .output import Format, fail

MOST = 1_000_000  # of what a base is asked for: more than anybody waits for


def number(value: float) -> float:
    """Refuse what is no number; typer's bounds let it pass."""
    if value != value:
        raise typer.BadParameter(f"{value} is no number")
    return value


DeviceMapOption = Annotated[str | None, typer.Option(help="Passed on to transformers, for instance auto.")]
QuestionColumnOption = Annotated[
    str | None,
    typer.Option(help="Column of the questions, where it is not found by itself; a.b is in an object a."),
]
AnswerColumnOption = Annotated[
    str | None, typer.Option(help="Column of the answers, for instance requested_rewrite.target_true.str.")
]
SplitOption = Annotated[str, typer.Option(help="Split of Hub data sets.")]
RetainQuestionColumnOption = Annotated[
    str | None,
    typer.Option(help="The same of the retain set; by default --question-column.", show_default=False),
]
RetainAnswerColumnOption = Annotated[
    str | None,
    typer.Option(help="The same of the retain set; by default --answer-column.", show_default=False),
]
RetainSplitOption = Annotated[
    str | None, typer.Option(help="The same of the retain set; by default --split.", show_default=False)
]
StripMarkupOption = Annotated[
    bool,
    typer.Option(
        "--strip-markup", help="Take special tokens, marks of chat templates and thinking blocks out of the facts."
    ),
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="What stdout shows; auto is human on a terminal, json in a pipe.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load erasures that the guard refuses; see unierase inspect.")
]
SamplesCacheOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps what the base asks itself, for further runs on it; by default ~/.unierase/samples.",
        show_default=False,
    ),
]
NoSamplesCacheOption = Annotated[
    bool, typer.Option("--no-samples-cache", help="Let the base ask itself anew, and keep nothing of it.")
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


def samples_cache_of(folder: Path | None, none: bool) -> Path | bool:
    """Both options together, as `erase` and `plan` take them."""
    return False if none else folder or True


def check_arguments(arguments: Sequence[str]) -> None:
    """End with status 2 if an argument holds bytes that are no UTF-8, or NUL: no card and no record can hold them."""
    for argument in arguments:
        if "\0" in argument:
            fail(f"the argument {argument!r} holds a NUL character; leave it out")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            fail(f"the argument {argument!r} holds bytes that are not UTF-8; rename the file, or write it in UTF-8")
