"""`unierase push`: an erasure's folder to a repository on the Hub."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from .note import note
from .output import Format, clear_endings, fail, say, show, show_json


@dataclass(frozen=True)
class PushPlan:
    """What the command line asked for; see the options of `unierase push`."""

    folder: Path
    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    token: str | None
    message: str | None
    overwrite_card: bool


def run_push(plan: PushPlan, style: Format) -> None:
    """Run the command; ends the process with status 2 on bad input and where the Hub refuses or cannot be reached."""
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    with clear_endings():
        from ..hub.push import check_folder, left_out, push_erasure

        names = check_folder(plan.folder)
        left = left_out(plan.folder, names)
        if left and style is not Format.QUIET:
            say(f"Not pushed, because they are no part of an erasure: {', '.join(left)}")
        try:
            commit = push_erasure(
                plan.folder,
                plan.repo_id,
                private=plan.private,
                revision=plan.revision,
                create_pr=plan.create_pr,
                token=plan.token,
                commit_message=plan.message,
                overwrite_card=plan.overwrite_card,
            )
        except ConnectionError as error:
            fail(f"{error}")
    repo_id = commit.repo_url.repo_id
    note("push", plan.folder, repo=repo_id, commit=commit.oid, url=commit.pr_url or commit.commit_url)
    if style is Format.JSON:
        told = {"repo": repo_id, "commit": commit.oid, "url": commit.commit_url, "pull_request": commit.pr_url}
        show_json({**told, "files": names, "left_out": left})
    elif style is Format.HUMAN:
        revision = commit.pr_revision or plan.revision
        pinned = f', revision="{revision}"' if revision else ""
        show(f"Pushed {len(names)} files to {repo_id}: {commit.pr_url or commit.commit_url}. To load it:\n")
        show("    import peft_unierase; from peft import PeftModel")
        show(f'    model = PeftModel.from_pretrained(base, "{repo_id}"{pinned})')
        show(f"\nNext, where the base is withheld:\n\n    unierase merge {repo_id} -o merged")
    else:
        show(commit.pr_url or commit.commit_url)
