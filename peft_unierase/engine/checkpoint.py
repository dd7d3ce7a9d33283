"""Finished stages of a run in a folder, so that a run that was interrupted goes on behind the last of them.

One safetensors file a stage, `01-asking-the-base.safetensors` and so on, written under another name and renamed when it
is whole. Its metadata hold what is no tensor, as JSON, a checksum, and the digest of the run, which is of everything
that decides its result. A file of another digest is never read, and once a stage had to be done none behind it is
either.

No text of the forget set is written, but what is computed from the set is: `SECURITY.md` says what lies there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..lm.weights import hash_tensors
from ..storage.plain import parse_json, plain

KIND = "unierase stage"
VERSION = 1
FIELDS = {"stage", "digest", "values", "checksum"}
NAME = re.compile(r"\d\d-[a-z-]+\.safetensors(\.\d+\.part)?")


class _DamagedError(InputError):
    """A file that is not what was written."""


def digest_of(decisive: Mapping[str, Any]) -> str:
    """SHA-256 of plain values; what JSON does not know counts by its text."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


class Checkpoint:
    """The finished stages of one run.

    Args:
        folder: Where they lie. It is made when there is something to write; one run at a time uses it.
        digest: Of everything that decides what the run gives.
        tell: Called with a line of text if there is something to go on from, or something that will be replaced.

    Raises:
        ValueError: `folder` is a file.
    """

    def __init__(self, folder: Path, digest: str, tell: Callable[[str], object] = lambda text: None) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the finished stages")
        self.folder, self.digest = folder, digest
        self.number = 0
        self.resuming = self.writing = True
        own = self._finished()
        if own:
            tell(f"resuming after stage {len(own)}, {own[-1]!r}, from {folder}")
        elif any(stages_in(folder)):
            tell(f"{folder} holds stages of another run (other facts, settings or base), which will be replaced")

    def load(self, name: str) -> dict[str, Any] | None:
        """What the next stage, `name`, gave in an earlier run; `None` if it has to be done.

        Warns if its file is damaged.
        """
        self.number += 1
        if not self.resuming:
            return None
        path = self._path(name)
        try:
            found = read_stage(path, self.digest) if os.path.lexists(path) else None
        except _DamagedError as error:
            warnings.warn(f"{path} is damaged ({error}), so its stage is done again", stacklevel=3)
            found = None
        self.resuming = found is not None
        return found

    def save(self, name: str, result: Mapping[str, Any]) -> None:
        """Write what the stage that `load` was asked for gave: tensors and JSON values.

        Where that cannot be done the run goes on, with a warning.
        """
        if not self.writing:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_stage(self._path(name), name, self.digest, result)
            for path in stages_in(self.folder):
                if path != self._path(name) and int(path.name[:2]) >= self.number:
                    path.unlink(missing_ok=True)  # what was computed before this one was done again
        except OSError as error:
            self.writing = False
            warnings.warn(f"the run goes on but could not be resumed from here: {error}", stacklevel=3)

    def _path(self, name: str, number: int | None = None) -> Path:
        return self.folder / f"{number or self.number:02d}-{name.replace(' ', '-')}.safetensors"

    def _finished(self) -> list[str]:
        """Names of the stages of this run that lie there, without a gap."""
        names: list[str] = []
        for path in sorted(stages_in(self.folder)):
            with suppress(_DamagedError):
                told = _metadata(path)
                if told["digest"] == self.digest and path == self._path(told["stage"], len(names) + 1):
                    names.append(told["stage"])
        return names


def stages_in(folder: Path) -> list[Path]:
    """The files of stages in a folder, also ones that were not finished."""
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


def discard(folder: Path) -> None:
    """Remove the stages in a folder, and the folder if nothing else is in it."""
    for path in stages_in(folder):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def write_stage(path: Path, name: str, digest: str, result: Mapping[str, Any]) -> None:
    """Write a file that `read_stage` reads, whole or not at all.

    Raises:
        OSError: It could not be written.
    """
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in result.items()
        if isinstance(value, torch.Tensor)
    }
    values = json.dumps({key: value for key, value in result.items() if key not in tensors}, sort_keys=True)
    told = {"kind": KIND, "version": str(VERSION), "stage": name, "digest": digest, "values": values}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, {**told, "checksum": _checksum(told, tensors)})
        os.replace(part, path)
    except SafetensorError as error:  # what it makes of every error of the system
        raise OSError(f"{path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_stage(path: Path, digest: str) -> dict[str, Any] | None:
    """The tensors and values of a file; `None` if it is of another run.

    Raises:
        _DamagedError: It is not what was written.
    """
    told = _metadata(path)
    if told["digest"] != digest:
        return None
    checksum = told.pop("checksum")
    try:
        with safe_open(plain(path), "pt") as file:
            # Copies, because sums may depend in their last bit on where in memory their terms begin.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise _DamagedError(str(error)) from error
    if _checksum(told, tensors) != checksum:
        raise _DamagedError("its checksum is another")
    return {**tensors, **parse_json(told["values"])}


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(plain(path), "pt") as file:
            told = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _DamagedError(str(error)) from error
    if told.get("kind") != KIND or told.get("version") != str(VERSION) or not told.keys() >= FIELDS:
        raise _DamagedError("it holds no stage")
    return told


def _checksum(told: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over all of a file but the checksum itself."""
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    hash_tensors(found, ((f"{key} {tuple(each.shape)} {each.dtype}\n", each) for key, each in sorted(tensors.items())))
    return found.hexdigest()
