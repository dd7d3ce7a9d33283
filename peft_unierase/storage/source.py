"""Where an erasure lies: which files it may be made of, and a folder on this machine for what is on the Hub.

Knows names and sizes of files and nothing of what is in them. Needs no torch, and huggingface_hub for Hub ids alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from .names import CONFIG_NAME, MAX_BYTES, NAMES, SUFFIXES


@dataclass(frozen=True)
class Place:
    """An erasure's folder.

    Attributes:
        folder: Where it is on this machine.
        listed: Files of its repository on the Hub with their sizes, also those that were not downloaded; empty for a
            folder, and where the Hub cannot be asked.
    """

    folder: Path
    listed: Mapping[str, int | None] = field(default_factory=dict)


def resolve(
    source: str | Path, revision: str | None = None, subfolder: str | None = None, entire: bool = False, **hub: Any
) -> Place:
    """The folder of an erasure. Of a Hub repository it downloads what may be part of an erasure and no more: neither
    other kinds of files, nor too large ones, nor folders (such as `lora/`) other than `subfolder`.

    Args:
        source: A folder or a Hub id.
        revision: Of the repository.
        subfolder: Where in the folder or repository the erasure lies.
        entire: Download other folders too.
        **hub: `token`, `cache_dir` and the like, for huggingface_hub.

    Raises:
        ValueError: There is no such folder or repository, or `subfolder` leads out of it.
    """
    inner = PurePosixPath(subfolder or "")
    if inner.is_absolute() or ".." in inner.parts or "\\" in str(inner):
        raise InputError(f"subfolder {subfolder!r} leads out of {source}; name one inside it")
    if Path(source).is_dir():
        return Place(Path(source) / inner)
    try:
        folder, listed = _download(str(source), revision, inner, entire, hub)
    except Exception as error:  # names that are no ids, missing or gated repositories, no network
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
        raise InputError(
            f"{source} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id ({reason})"
        ) from error
    start = "" if inner == PurePosixPath() else f"{inner}/"
    return Place(folder / inner, {name[len(start) :]: size for name, size in listed.items() if name.startswith(start)})


def commit_of(source: str | Path, revision: str | None = None) -> str | None:
    """The commit at which a Hub repository is now, so that everything that is read of it is of one.

    It is `revision` as it is if `source` is a folder, or if the Hub cannot be asked: then what is in the cache does not
    change either.
    """
    if Path(source).exists():
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(str(source), revision=revision).sha or revision
    except Exception:  # whoever reads the repository says what is wrong with it
        return revision


def hub_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """One file of a Hub repository, downloaded; `None` if it has no such file, or if the Hub cannot be asked."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception:  # whoever reads the repository says what is wrong with it
        return None


def _download(
    source: str, revision: str | None, inner: PurePosixPath, entire: bool, hub: dict[str, Any]
) -> tuple[Path, dict[str, int | None]]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    listed: dict[str, int | None] = {}
    if not hub.get("local_files_only"):
        token: Any = hub.get("token")
        try:
            info = HfApi().model_info(source, revision=revision, files_metadata=True, token=token)
            revision = info.sha or revision  # so that what was listed is what is downloaded
            listed = {file.rfilename: file.size for file in info.siblings or ()}
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:  # no network, by whichever client: what was downloaded before will do
            listed = {}
    start = "" if inner == PurePosixPath() else f"{inner}/"
    too_large = [name for name, size in listed.items() if (size or 0) > MAX_BYTES]
    if sum(listed[name] or 0 for name in listed if name not in too_large) > MAX_BYTES:
        too_large = [name for name in listed if name.endswith(".safetensors")]  # the guard refuses the sum
    folder = snapshot_download(
        source,
        revision=revision,
        allow_patterns=[*(f"{start}*{suffix}" for suffix in SUFFIXES), *(f"{start}{name}" for name in NAMES)],
        ignore_patterns=[*([] if entire else [f"{start}*/*"]), *too_large],
        **hub,
    )
    return Path(folder), listed
