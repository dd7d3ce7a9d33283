"""The files of an erasure, looked at without trust: what they are called, where they are, and what their heads say.

Nothing is followed out of the folder, nothing is unpickled, and nothing large is read before its size is known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, shown
from ..storage.digests import sha256
from ..storage.names import MAX_BYTES, NAMES, SUFFIXES, is_allowed
from ..storage.plain import open_plain, parse_json, read_bytes
from ..storage.values import is_line

MAX_FILES = 1000
MAX_DEPTH = 4
MAX_CONFIG = 4 << 20
MAX_JSON = 16 << 20
MAX_HEADER = 1 << 20
MAX_PARAMETERS = 1 << 28
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Of git and of downloads into a folder; nothing that loads an adapter reads them.
SKIPPED = (".git", ".cache")
SHOWN = 120


@dataclass(frozen=True)
class Finding:
    """Something about an erasure that whoever loads it has to know.

    Attributes:
        level: `"refuse"`, or `"note"` where it is harmless by itself.
        what: What is wrong, in a sentence.
        value: Where or with what value.
        advice: What to do.
    """

    level: str
    what: str
    value: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.advice})"


@dataclass(frozen=True)
class Header:
    """What the head of a safetensors file says: dtype and shape of each tensor."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def bytes(self) -> int:
        return sum(ITEM_BYTES[dtype] * _product(shape) for dtype, shape in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(_product(shape) for _, shape in self.tensors.values())


def refuse(what: str, value: Any, advice: str) -> Finding:
    return Finding("refuse", what, printable(value), advice)


def note(what: str, value: Any, advice: str) -> Finding:
    return Finding("note", what, printable(value), advice)


def too_large(name: str, size: int) -> Finding:
    return refuse(f"a file larger than {MAX_BYTES:,} bytes", f"{name} with {size:,} bytes", "no erasure needs that")


def printable(value: Any) -> str:
    """A short text of a foreign value that does nothing to a terminal."""
    text = value if isinstance(value, str) and value.isprintable() else shown(value, SHOWN)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def check_names(names: Iterable[str]) -> list[Finding]:
    """What is wrong with the names of files, whether they are there or on the Hub."""
    names = list(names)
    odd = [refuse("a file whose name is no text", name, "rename it") for name in names if not is_line(name)]
    return odd + [
        refuse(
            "a file of a kind that may run code",
            name,
            f"an erasure is made of {', '.join(sorted(SUFFIXES))} and {', '.join(sorted(NAMES))}; take it out",
        )
        for name in names
        if not is_allowed(name) and PurePosixPath(name).parts[0] not in SKIPPED
    ]


def check_files(folder: Path) -> tuple[dict[str, int], list[Finding]]:
    """The regular files below a folder with their sizes, and what is wrong with the others."""
    files: dict[str, int] = {}
    findings: list[Finding] = []
    for entry, name in _walk(folder, ""):
        if len(files) + len(findings) > MAX_FILES:
            findings.append(refuse(f"more than {MAX_FILES} files", folder, "an erasure has a dozen; look at them"))
            break
        if entry.is_symlink():
            if not _is_cached(folder, entry):
                target = os.readlink(entry.path)
                findings.append(
                    refuse("a symbolic link", f"{name} -> {target}", "put the file itself there, or take it out")
                )
                continue
            status = os.stat(entry.path)
        else:
            status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            files[name] = status.st_size
            if status.st_size > MAX_BYTES:
                findings.append(too_large(name, status.st_size))
        elif stat.S_ISDIR(status.st_mode):
            findings.append(refuse(f"folders that are nested more than {MAX_DEPTH} deep", name, "take them out"))
        else:
            findings.append(refuse("neither a file nor a folder", name, "take it out"))
    return files, findings + check_names(files)


def foreign_links(folder: Path) -> list[str]:
    """Links below a folder that lead elsewhere than to the blobs of huggingface_hub's cache."""
    return [name for entry, name in _walk(folder, "") if entry.is_symlink() and not _is_cached(folder, entry)]


def _walk(folder: Path, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{prefix}{entry.name}"
            if not entry.is_dir(follow_symlinks=False) or prefix.count("/") == MAX_DEPTH:
                yield entry, name
            elif prefix or entry.name not in SKIPPED:
                yield from _walk(Path(entry.path), f"{name}/")


def _is_cached(folder: Path, entry: os.DirEntry[str]) -> bool:
    """Whether a link is one of huggingface_hub's, which keeps what it downloads in a folder of blobs beside the
    snapshots, or in one that all repositories of a cache share."""
    blob = Path(os.path.realpath(entry.path))
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.parent.name == "snapshots":
            repository = place.parent.parent
            stores = ((repository / "blobs", blob.parent), (repository.parent / "blobs", blob.parent.parent))
            return any(not store.is_symlink() and found == store.resolve() for store, found in stores)
    return False


def read_json(folder: Path, name: str, most: int = MAX_JSON) -> tuple[Any, list[Finding]]:
    """What a JSON file holds, `None` where it cannot be read; it must have been found by [`check_files`]."""
    file = folder / name
    if (size := file.stat().st_size) > most:
        return None, [refuse(f"{name} is larger than {most:,} bytes", f"{size:,} bytes", "it should hold settings")]
    try:
        value = parse_json(read_bytes(file, most).decode("utf-8"))
    except ValueError as error:
        return None, [refuse(f"{name} is no JSON", f"{error}", "get the file anew from where it came from")]
    if not isinstance(value, dict):
        return None, [refuse(f"{name} holds no JSON object", value, "get the file anew from where it came from")]
    return value, []


def read_header(file: Path, name: str) -> tuple[Header | None, list[Finding]]:
    """The head of a safetensors file, checked before any value is read; `None` where it is refused."""
    size = file.stat().st_size
    anew = "get the file anew from where it came from"
    if size > MAX_BYTES:
        return None, []  # which `check_files` has said
    with open_plain(file) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            what = f"the header of {name} is larger than {MAX_HEADER:,} bytes"
            return None, [refuse(what, f"{length:,} bytes", "it should name a few hundred tensors at the most")]
        head = opened.read(length)
    try:
        described = parse_json(head.decode("utf-8"))
        described.pop("__metadata__", None)
        tensors = {key: (told["dtype"], tuple(told["shape"])) for key, told in described.items()}
        sizes = [told["data_offsets"][1] for told in described.values()]
        if not all(type(number) is int and number >= 0 for _, shape in tensors.values() for number in (*shape, *sizes)):
            raise InputError("a shape is no list of whole numbers")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return None, [refuse(f"{name} has no header of safetensors", f"{type(error).__name__}: {error}", anew)]
    if odd := {key: dtype for key, (dtype, _) in tensors.items() if dtype not in ITEM_BYTES}:
        key, dtype = next(iter(odd.items()))
        return None, [refuse(f"{name} holds numbers of a type that no erasure has", f"{dtype} in {key}", anew)]
    header = Header(tensors)
    if header.bytes > MAX_BYTES:
        what = f"the tensors of {name} are larger than {MAX_BYTES:,} bytes"
        return None, [refuse(what, f"{header.bytes:,} bytes", "no erasure needs that")]
    if header.parameters > MAX_PARAMETERS:
        what = f"more than {MAX_PARAMETERS:,} parameters in {name}"
        return None, [refuse(what, f"{header.parameters:,}", "no erasure needs that")]
    if 8 + length + header.bytes != size:
        what = f"{name} is not as long as its header says"
        return None, [refuse(what, f"{size:,} bytes instead of {8 + length + header.bytes:,}", anew)]
    return header, []


def _product(shape: Iterable[int]) -> int:
    product = 1
    for number in shape:
        product *= number
    return product


def digest_of(folder: Path, name: str, files: Mapping[str, int]) -> str | None:
    """SHA-256 of one of a folder's files in hexadecimal; `None` if these are together too large for an erasure."""
    return None if sum(files.values()) > MAX_BYTES else sha256(folder / name)
