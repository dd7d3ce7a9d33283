"""The files of an erasure, looked at without trust: what they are called, where they are, and what their heads say.

Nothing is followed out of the folder, nothing is unpickled, and nothing large is read before its size is known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from ..storage.digests import sha256
from ..storage.names import LORA_NAME, MAX_BYTES, NAMES, SUFFIXES, is_allowed
from ..storage.plain import open_plain, parse_json, read_bytes
from ..storage.values import is_line
from .findings import ANEW, Finding, note, refuse

MAX_FILES = 1000
MAX_DEPTH = 4
MAX_CONFIG = 4 << 20
MAX_JSON = 16 << 20
MAX_HEADER = 1 << 20
MAX_PARAMETERS = 1 << 28
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Of git and of downloads into a folder; nothing that loads an adapter reads them.
SKIPPED = (".git", ".cache")
PICKLED = "adapter_model.bin"  # which PEFT takes if there are no safetensors


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


def check_files(
    folder: Path, listed: Mapping[str, int | None], only: Collection[str] | None = None
) -> tuple[dict[str, int], list[Finding]]:
    """The regular files below a folder with their sizes, and what is wrong with these and with all that is no file.

    Args:
        folder: Where they are.
        listed: Files of its repository on the Hub that may not be there, with their sizes.
        only: Files to look at, and no others.
    """
    files, folders, findings = _found(folder)
    if only is not None:
        files, findings = {name: size for name, size in files.items() if name in only}, []
    absent = {name: size or 0 for name, size in listed.items() if name not in files}
    findings += _check_names([*files, *absent], folders)
    findings += _check_sizes({**files, **absent})
    if any(PurePosixPath(name).parts[0] == LORA_NAME for name in absent):
        findings.append(note("not looked at", f"{LORA_NAME}/", "download the repository and inspect its folder"))
    return files, findings


def _found(folder: Path) -> tuple[dict[str, int], list[str], list[Finding]]:
    """The regular files below a folder with their sizes, the folders, and what is wrong with everything else."""
    files: dict[str, int] = {}
    folders: list[str] = []
    findings: list[Finding] = []
    for entry, name in _walk(folder, ""):
        if len(files) + len(folders) + len(findings) > MAX_FILES:
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
        elif not stat.S_ISDIR(status.st_mode):
            findings.append(refuse("neither a file nor a folder", name, "take it out"))
        elif name.count("/") < MAX_DEPTH:
            folders.append(name)
        else:
            findings.append(refuse(f"folders that are nested more than {MAX_DEPTH} deep", name, "take them out"))
    return files, folders, findings


def _check_names(names: Sequence[str], folders: Iterable[str]) -> list[Finding]:
    """What is wrong with the names of files and of the folders that they are in, there or on the Hub."""
    findings = [refuse("a file whose name is no text", name, "rename it") for name in names if not is_line(name)]
    kinds = f"{', '.join(sorted(SUFFIXES))} and {', '.join(sorted(NAMES))}"
    for name in names:
        if not is_allowed(name) and PurePosixPath(name).parts[0] not in SKIPPED:
            advice = f"an erasure is made of {kinds}; take it out"
            findings.append(refuse("a file of a kind that may run code", name, advice))
    inner = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in sorted({*folders, *inner}):
        if (is_allowed(name) or PurePosixPath(name).name == PICKLED) and PurePosixPath(name).parts[0] not in SKIPPED:
            findings.append(refuse("a folder with the name of a file", name, "take it out"))
    return findings


def _check_sizes(sizes: Mapping[str, int]) -> list[Finding]:
    """Refuse files that are larger than all of an erasure may be, by themselves or together."""
    large = [f"{name} with {size:,} bytes" for name, size in sizes.items() if size > MAX_BYTES]
    what = f"a file larger than {MAX_BYTES:,} bytes"
    if not large and (total := sum(sizes.values())) > MAX_BYTES:
        what, large = f"files that together are larger than {MAX_BYTES:,} bytes", [f"{total:,} bytes"]
    return [refuse(what, value, "no erasure needs that") for value in large]


def foreign_links(folder: Path) -> list[str]:
    """Links below a folder that lead elsewhere than to the blobs of huggingface_hub's cache."""
    return [name for entry, name in _walk(folder, "") if entry.is_symlink() and not _is_cached(folder, entry)]


def _walk(folder: Path, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """All that is below a folder, folders before what is in them, and none that is nested too deep."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{prefix}{entry.name}"
            if not entry.is_dir(follow_symlinks=False):
                yield entry, name
            elif prefix or entry.name not in SKIPPED:
                yield entry, name
                if prefix.count("/") < MAX_DEPTH:
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
        return None, [refuse(f"{name} is no JSON", f"{error}", ANEW)]
    if not isinstance(value, dict):
        return None, [refuse(f"{name} holds no JSON object", value, ANEW)]
    return value, []


def read_header(file: Path, name: str) -> tuple[Header | None, list[Finding]]:
    """The head of a safetensors file, checked before any value is read; `None` where it is refused."""
    size = file.stat().st_size
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
        return None, [refuse(f"{name} has no header of safetensors", f"{type(error).__name__}: {error}", ANEW)]
    if odd := {key: dtype for key, (dtype, _) in tensors.items() if dtype not in ITEM_BYTES}:
        key, dtype = next(iter(odd.items()))
        return None, [refuse(f"{name} holds numbers of a type that no erasure has", f"{dtype} in {key}", ANEW)]
    header = Header(tensors)
    if header.bytes > MAX_BYTES:
        what = f"the tensors of {name} are larger than {MAX_BYTES:,} bytes"
        return None, [refuse(what, f"{header.bytes:,} bytes", "no erasure needs that")]
    if header.parameters > MAX_PARAMETERS:
        what = f"more than {MAX_PARAMETERS:,} parameters in {name}"
        return None, [refuse(what, f"{header.parameters:,}", "no erasure needs that")]
    if 8 + length + header.bytes != size:
        what = f"{name} is not as long as its header says"
        return None, [refuse(what, f"{size:,} bytes instead of {8 + length + header.bytes:,}", ANEW)]
    return header, []


def _product(shape: Iterable[int]) -> int:
    product = 1
    for number in shape:
        product *= number
    return product


def digest_of(folder: Path, name: str, files: Mapping[str, int]) -> str | None:
    """SHA-256 of one of a folder's files in hexadecimal; `None` if these are together too large for an erasure."""
    return None if sum(files.values()) > MAX_BYTES else sha256(folder / name)
