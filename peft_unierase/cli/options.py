"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


LARGEST_SEED = 2**32 - 1

DeviceMapOption = Annotated[str | None, typer.Option(help="Passed on to transformers, for instance auto.")]
DtypeOption = Annotated[
    str, typer.Option(help="Load models as float32, bfloat16, float16, or auto (as they were saved).")
]
SeedOption = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same machine, same bytes.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="What stdout shows; auto is human on a terminal, json in a pipe.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load erasures that the guard refuses; see unierase inspect.")
]
SaltFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the secret, in hex, under which the record holds the facts; by default this user's.",
        show_default=False,
    ),
]
WaysOfDecliningOption = Annotated[
    Path | None,
    typer.Option(
        help="Ways of declining, one sentence a line, instead of the built-in ones; distill teaches the likeliest."
    ),
]
BaseOption = Annotated[str | None, typer.Option(help="The base; erasures name their own.", show_default=False)]
ErasuresArgument = Annotated[list[str], typer.Argument(help="Folders or Hub ids of erasures of one base.")]


@dataclass(frozen=True, kw_only=True)
class SamplesCache:
    """Where what a base asks itself is kept for further runs."""

    samples_cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what the base asks itself, for further runs on it; by default ~/.unierase/samples.",
            show_default=False,
        ),
    ] = None
    no_samples_cache: Annotated[
        bool, typer.Option("--no-samples-cache", help="Let the base ask itself anew, and keep nothing of it.")
    ] = False

    def folder(self) -> Path | bool:
        """Both together, as `erase` and `plan` take them."""
        return False if self.no_samples_cache else self.samples_cache or True


def check_arguments(arguments: Sequence[str]) -> None:
    """End with status 2 if an argument holds bytes that are no UTF-8, or NUL: no card and no record can hold them."""
    for argument in arguments:
        if "\0" in argument:
            fail(f"the argument {argument!r} holds a NUL character; leave it out")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            fail(f"the argument {argument!r} holds bytes that are not UTF-8; rename the file, or write it in UTF-8")
