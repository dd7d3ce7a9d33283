"""What goes wrong between here and the Hub: tried again where that may help, and said in words that lead on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError

WAITS = (1.0, 4.0, 10.0)
Result = TypeVar("Result")


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` for what cannot be the id of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository id; write owner/name, for instance org/erase-xyz") from error


def patiently(action: Callable[[], Result], waits: Sequence[float] = WAITS) -> Result:
    """Do something that asks the Hub, and again where the connection broke or the Hub was out of order.

    huggingface_hub itself tries again to upload files, and neither to create a repository nor to commit.

    Args:
        action: What to do. It may have been done although the connection broke.
        waits: Seconds to wait before each further try.
    """
    for wait in waits:
        try:
            return action()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            warnings.warn(f"the Hub did not answer ({_first_line(error)}); next try in {wait:g} s", stacklevel=2)
            time.sleep(wait)
    return action()


@contextmanager
def plain_errors(repo_id: str, token: str | bool | None) -> Iterator[None]:
    """Errors of the Hub as a `ValueError`, and of the connection as a `ConnectionError`, that say what to do next."""
    try:
        yield
    except HfHubHTTPError as error:
        raise InputError(_advice(error, repo_id, token)) from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError("HF_HUB_OFFLINE is set, and pushing needs the Hub; unset it and push again") from error
    except ConnectionError as error:  # of hf_xet, which tries again by itself
        raise ConnectionError(
            f"uploading to {repo_id} broke ({_first_line(error)}); push again, with HF_HUB_DISABLE_XET=1 in the "
            f"environment if {constants.ENDPOINT} does not know Xet"
        ) from error
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # the one that an upload ended with
        if isinstance(cause, HfHubHTTPError):
            raise InputError(_advice(cause, repo_id, token)) from error
        if not isinstance(cause, HTTPError):
            raise
        raise ConnectionError(
            f"the connection to {constants.ENDPOINT} broke ({_first_line(cause)}); look at {repo_id} there, and push "
            "again if the commit has not arrived"
        ) from error


def _advice(error: HfHubHTTPError, repo_id: str, token: str | bool | None) -> str:
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or _first_line(error)
    if status == 401:
        has_one = get_token() if token is None else token
        found = "does not accept the token" if has_one else "wants a token, and there is none"
        return f"{constants.ENDPOINT} {found} ({said}); run `hf auth login`, set HF_TOKEN or pass another token"
    if status == 403:
        return (
            f"the token may not write to {repo_id} ({said}); check the owner's name, and that the token has write "
            "access there, or open a pull request instead: `create_pr=True` "
            "(on the command line --create-pr)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has no repository {repo_id} that this token may see; check its name and the token"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision ({said}); name a branch that is there, or one to be made"
    if status in (409, 412):
        return f"somebody else has changed {repo_id} meanwhile ({said}); push again"
    return f"{constants.ENDPOINT} refused with status {status}: {said}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
