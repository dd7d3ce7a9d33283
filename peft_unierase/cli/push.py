"""`unierase push`: an erasure's folder to a repository on the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .loading import loading_lines, needs
from .note import note
from .options import FormatOption
from .output import Format, clear_endings, fail, say, show, show_json

EXAMPLES = (
    "Examples:\n\nunierase push erase-xyz org/erase-xyz --private\n\n"
    'unierase push erase-xyz org/erase-xyz --create-pr --message "Check repeated"'
)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What the command line asks for."""

    folder: Annotated[Path, typer.Argument(help="Folder that erase or stack wrote.")]
    repo_id: Annotated[str, typer.Argument(help="The repository, OWNER/NAME; it is made if it is not there.")]
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Of a new repository; by default as its owner has set.", show_default=False
        ),
    ] = None
    revision: Annotated[
        str | None, typer.Option(help="A branch; it is made if it is not there.", show_default=False)
    ] = None
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False
    token: Annotated[
        str | None,
        typer.Option(
            help="The Hub's token. HF_TOKEN or `hf auth login` keep it out of the list of processes.",
            show_default=False,
        ),
    ] = None
    message: Annotated[str | None, typer.Option(help="The commit's first line.", show_default=False)] = None
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Give up what was edited in the repository's card.")
    ] = False


def push(options: PushOptions, format: FormatOption = Format.AUTO) -> None:
    """Check an erasure's folder and push it to the Hub as one commit: adapter, LoRA, tokenizer, card and record."""
    style = format.resolved()
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    with clear_endings():
        from ..hub.push import left_out, push_erasure

        digests: dict[str, str] = {}
        left: list[str] = []

        def checked(found: Mapping[str, str]) -> None:
            digests.update(found)
            left.extend(left_out(options.folder, found))
            if left and style is not Format.QUIET:
                say(f"Not pushed, because they are no part of an erasure: {', '.join(left)}")

        try:
            commit = push_erasure(
                options.folder,
                options.repo_id,
                private=options.private,
                revision=options.revision,
                create_pr=options.create_pr,
                token=options.token,
                commit_message=options.message,
                overwrite_card=options.overwrite_card,
                checked=checked,
            )
        except ConnectionError as error:
            fail(f"{error}")
    repo_id = commit.repo_url.repo_id
    url = commit.pr_url or commit.commit_url
    note("push", options.folder, files=digests, repo=repo_id, commit=commit.oid, url=url)
    if style is Format.JSON:
        told = {"repo": repo_id, "commit": commit.oid, "url": commit.commit_url, "pull_request": commit.pr_url}
        show_json({**told, "files": list(digests), "left_out": left})
    elif style is Format.HUMAN:
        revision = commit.pr_revision or options.revision
        show(f"Pushed {len(digests)} files to {repo_id}: {url}. To load it:\n")
        show(loading_lines(repo_id, revision=revision, **needs([options.folder])))
        show(f"\nNext, where the base is withheld:\n\n    unierase merge {repo_id} -o merged")
    else:
        show(url)
