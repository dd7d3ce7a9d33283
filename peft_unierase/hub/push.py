"""`push_erasure`: an erasure's folder, checked, as one commit to a repository on the Hub.

Files go up that an erasure is known to consist of, and no others. Files of an earlier push that the folder no longer
has go away in the same commit; whatever else the owner put into the repository stays. `upload_folder` is not used: it
chooses files by patterns and may make several commits, and a list of operations is one, on top of a known one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from ..errors import InputError
from ..records.compare import FAILS, verify_files
from ..records.read import read_record, read_statement
from ..records.sign import UNSIGNED, signed_digests
from ..storage.digests import sha256
from ..storage.names import (
    CARD_NAME,
    CONFIG_NAME,
    FILES,
    RECORD_NAME,
    REPORT_NAME,
    SIGNATURE_NAME,
    is_ours,
    is_pushed,
    is_recorded,
)
from ..storage.output import holds_erasure
from ..storage.plain import MOST_JSON, check_plain_folder, read_json, read_text
from ..version import __version__
from .card import public_name
from .errors import check_repo_id, patiently, plain_errors
from .repo_card import empty_sections, repo_card
from .results import eval_results


def push_erasure(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    overwrite_card: bool = False,
    checked: Callable[[Mapping[str, str]], None] | None = None,
) -> CommitInfo:
    """Push a saved erasure to the Hub, as one commit, to a repository that is made if it is not there.

    What is in the folder is checked first, and nothing is pushed where a file is not what it should be. A base that is
    named by a path is named by the path's last part in the repository. Sections of the card that were edited in the
    repository stay as they are there.

    Args:
        folder: Where the erasure was saved, with its record, card and tokenizer.
        repo_id: The repository, `"owner/name"`, or a name alone for one of the token's owner.
        private: Make a new repository private; the default is the owner's. One that is there and public is refused.
        revision: A branch, which is made from the main one if it is not there.
        create_pr: Open a pull request against the main branch instead.
        token: The Hub's token, instead of the one that was logged in with or that `HF_TOKEN` holds.
        commit_message: The commit's first line.
        overwrite_card: Give up what was edited in the repository's card.
        checked: Called with the SHA-256 of the files that go up, by name, before anything is asked of the Hub.

    Returns:
        The commit's URL, with `oid`, `pr_url` and more as attributes. Where nothing has changed it is the last commit.

    Raises:
        ValueError: The folder holds no whole erasure, the repository's id is none, or the Hub refused.
        ConnectionError: The Hub could not be reached, also not after a few tries.

    Example:

        ```py
        >>> push_erasure("erase-xyz", "org/erase-xyz", private=True)
        ```
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise InputError(f"a pull request goes to the main branch, so leave out either it or the revision {revision!r}")
    names = check_folder(folder)
    if checked is not None:
        checked(names)
    text, results = read_text(folder / CARD_NAME, most=MOST_JSON), eval_results(read_record(folder))
    message = commit_message or f"Push an erasure with peft-unierase {__version__}"
    api = HfApi(token=token, library_name="peft-unierase", library_version=__version__)

    def commit() -> CommitInfo:
        # Anew on each try: if only the answer to the last one was lost, nothing is left to be done.
        now = api.model_info(repo_id, revision=revision)
        there = [file.rfilename for file in now.siblings or []]
        if private and not now.private:
            raise InputError(
                f"{repo_id} is there already and is public; make it private in its settings and push again"
            )
        old = None
        if CARD_NAME in there and not overwrite_card:
            old = read_text(api.hf_hub_download(repo_id, CARD_NAME, revision=now.sha), most=MOST_JSON)
        card = repo_card(text, repo_id, results, old)
        gone = [name for name in there if name not in names and is_ours(name)]
        return api.create_commit(
            repo_id,
            [*_additions(folder, names, card), *(CommitOperationDelete(name, is_folder=False) for name in gone)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=now.sha,
        )

    with plain_errors(repo_id, token):
        patiently(lambda: _validate(repo_card(text, repo_id, results)))
        repo_id = patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None and not revision.startswith("refs/"):
            patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        # A second try might open a second pull request.
        return patiently(commit, waits=()) if create_pr else patiently(commit)


def check_folder(folder: Path) -> dict[str, str]:
    """Check the files of a saved erasure, and return the SHA-256 of those that a push takes, by name.

    Raises:
        ValueError: There is no erasure, part of it is missing, or a file is not what it should be.
    """
    from ..guard.inspect import inspect_folder

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one that `unierase erase` or `unierase stack` wrote")
    check_plain_folder(folder)
    if not holds_erasure(folder):
        raise InputError(f"{folder} holds no erasure: it has no {CONFIG_NAME} of type UNIERASE; name one that does")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    names = [name for name, path in found.items() if is_pushed(name) and not path.is_dir()]
    if missing := [file.name for file in FILES if file.needed and file.name not in names]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; `unierase erase` and `unierase stack` write whole folders, and what "
            "`save_pretrained` writes is only a part"
        )
    for name, path in found.items():
        if path.is_symlink() and (name in names or any(file.name.startswith(f"{name}/") for file in FILES)):
            raise InputError(f"{path} is a link; put the file itself there")
    for name in names:
        if name.endswith(".json"):
            _read_json(found[name])
    if REPORT_NAME in names and _read_json(found[REPORT_NAME]).get("examples"):
        raise InputError(
            f"{found[REPORT_NAME]} holds questions and answers of the forget set; leave them out with "
            "`report.save_json(path, examples=False)` (on the command line `unierase check --no-examples`), or take "
            "the report out of the folder"
        )
    _check_card(found[CARD_NAME])
    digests = {name: sha256(found[name]) for name in names}
    recorded = {name: digest for name, digest in digests.items() if is_recorded(name)}
    compared = verify_files(folder, read_statement(folder) or {}, recorded)
    if failing := [each.what for each in compared if each.outcome == FAILS and is_ours(each.what)]:
        raise InputError(
            f"{folder} is not what its record says: {', '.join(failing)} changed since (`unierase verify {folder}` "
            "says more); save the erasure again"
        )
    if refused := inspect_folder(folder, only=digests).refused:
        reasons = "\n".join(f"  - {finding}" for finding in refused)
        raise InputError(f"{folder} is not pushed, because it is not what an erasure should be:\n{reasons}")
    if SIGNATURE_NAME in names:
        _check_signature(folder, digests)
    return digests


def left_out(folder: Path, names: Iterable[str]) -> list[str]:
    """Files of a folder that a push does not take."""
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [name for name in files if name not in set(names)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); save the erasure again") from error
    if not isinstance(read, dict):
        raise InputError(f"{path} is no JSON object; save the erasure again")
    return read


def _check_card(path: Path) -> None:
    try:
        empty = empty_sections(read_text(path, most=MOST_JSON))
    except Exception as error:  # PyYAML has errors of its own
        raise InputError(f"the metadata of {path} cannot be read ({error}); correct it") from error
    if empty:
        raise InputError(f"{path} says nothing under {', '.join(empty)}; fill that in, or take the heading out")


def _check_signature(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse a signature that would not hold in the repository, whoever's it is."""
    if _without_paths(folder, digests):
        raise InputError(
            f"{folder} is signed, and its base is named by a path, which does not go to the Hub: the signature would "
            "not hold there. Name the base with `unierase erase --base-id`, sign that and push it"
        )
    signed = signed_digests(folder)
    pushed = {name: digest for name, digest in digests.items() if name not in UNSIGNED}
    if differing := sorted(name for name, _ in signed.items() ^ pushed.items()):
        raise InputError(
            f"{folder} is signed, and what was signed is not what goes up, so the signature would not hold there: "
            f"{', '.join(dict.fromkeys(differing))}. Take out what is no part of an erasure and sign again"
        )


def _validate(card: str) -> None:
    """Let the Hub check a card's metadata.

    Raises:
        ValueError: It found something.
    """
    try:
        ModelCard(card).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        try:
            told = "; ".join(each["message"] for each in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            told = str(error)
        raise InputError(
            f"the Hub does not accept the metadata of {CARD_NAME} ({told}); correct it, and push again"
        ) from None


def _additions(folder: Path, names: Iterable[str], card: str) -> list[CommitOperationAdd]:
    """Files as they are, but the card as the repository's, and configs without the base's path, of which the record
    then has the new digests.
    """
    contents: dict[str, bytes | Path] = {name: folder / name for name in names}
    contents[CARD_NAME] = card.encode()
    changed = _without_paths(folder, names)
    contents.update(changed)
    if changed:
        record = _read_json(folder / RECORD_NAME)
        for entry in record["subject"]:
            if entry["name"] in changed:
                entry["digest"]["sha256"] = hashlib.sha256(changed[entry["name"]]).hexdigest()
        contents[RECORD_NAME] = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]


def _without_paths(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Configs that name the base by a path, with the path's last part instead."""
    changed = {}
    for name in names:
        if name.endswith(CONFIG_NAME):
            config = _read_json(folder / name)
            base, is_local = public_name(config.get("base_model_name_or_path") or "")
            if is_local and config.get("base_model_name_or_path"):
                config["base_model_name_or_path"] = base
                changed[name] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return changed
