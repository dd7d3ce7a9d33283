"""The guard: what a stranger's erasure touches, from its files alone, and whether it may be loaded.

It builds no model, runs none of what it reads and follows nothing out of the folder. It needs no base; with one it also
looks where that has its MLPs and how large its weights are. It shows that an erasure is what it declares to be, and not
that what it declares is well meant (docs/guides/security.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from ..adapter.config import AdapterConfig
from ..adapter.fields import MAX_RANK, OF_A_PART, wrong_values
from ..errors import InputError
from ..lm.structure import projection_shape
from ..storage.digests import recorded_digests
from ..storage.schema import Statement, checked
from ..storage.source import CONFIG_NAME, LORA_NAME, MAX_BYTES, RECORD_NAME, WEIGHTS_NAME, resolve
from .base import check_on_base, own_module
from .files import (
    MAX_CONFIG,
    Finding,
    Header,
    check_files,
    check_names,
    digest_of,
    note,
    printable,
    read_header,
    read_json,
    refuse,
    too_large,
)
from .lora import check_lora
from .weights import IN_A_LAYER, MAX_MODULES, Edited, check_modules, check_values, edited_modules, holders_of

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
MODULE = re.compile(r"[\w-]+(\.[\w-]+)*")
DTYPE = re.compile(r"[a-z0-9_]{1,32}")
REMOTE_CODE = "auto_map"
WHOLE_MODULES = "modules that are replaced as a whole"
MAX_PARTS = 256
MAX_SPARE = 1024
TOLD = 20
TOKENIZER_CONFIG = "tokenizer_config.json"


class GuardError(InputError):
    """An erasure that the guard refuses; `findings` are the reasons."""

    def __init__(self, source: str, findings: Collection[Finding]) -> None:
        self.findings = tuple(findings)
        told = [f"  - {finding}" for finding in self.findings[:TOLD]]
        if (more := len(self.findings) - TOLD) > 0:
            told.append(f"  - and {more} more, which `unierase inspect` tells")
        lines = "\n".join(told)
        super().__init__(
            f"{source} is not loaded, because it is not what an erasure should be:\n{lines}\n"
            "If you trust whoever made it, use `peft_unierase.load` with trust=True (on the command line --trust)"
        )


@dataclass(frozen=True)
class Inspection:
    """What the guard found.

    Attributes:
        folder: What it looked at.
        findings: What is wrong or worth knowing.
        config: The config as it is in the file, as far as it could be read.
        record: Likewise `erasure.json`; empty where there is none.
        files: Sizes of the files.
        modules: What the weights have for each module.
        norms: For each the largest norm of a row of `A`, a column of `B` and a token's row, and that of the edit `BA`.
        parameters, bytes: Of the weights.
        declared: The config, if nothing is wrong with it by itself.
        base: The base that it was held against.
    """

    folder: Path
    findings: tuple[Finding, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, Edited] = field(default_factory=dict)
    norms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parameters: int = 0
    bytes: int = 0
    declared: AdapterConfig | None = None
    base: nn.Module | None = None

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Findings for which it must not be loaded without trust."""
        return tuple(finding for finding in self.findings if finding.level == "refuse")

    def facts(self) -> dict[str, Any]:
        """What it is made of, as plain values for JSON."""
        config = self.config
        several = [part for part in _listed(config.get("parts")) if isinstance(part, Mapping)] or [config]
        edits = {name: edited for name, edited in self.modules.items() if not edited.is_row}
        layers = {int(match[0].strip(".")) for name in edits if (match := IN_A_LAYER.search(name))}
        return {
            "base": {
                "name": config.get("base_model_name_or_path"),
                "revision": config.get("revision"),
                "fingerprints": [part.get("base_fingerprint") for part in several],
                "dtypes": [part.get("base_dtype") for part in several],
                "compared": sorted({str(name) for part in several for name in _listed(part.get("target_modules"))}),
            },
            "tokens": [{"id": part.get("token_id"), "text": part.get("token")} for part in several],
            "spare_tokens": [len(_listed(part.get("spare_tokens"))) for part in several],
            "parts": [part.get("name") for part in several if "name" in part],
            "layers": sorted(layers),
            "rank": max((edited.rank for edited in edits.values()), default=0),
            "modules": {
                name: {
                    "edits": "a token's row" if edited.is_row else f"rank {edited.rank}",
                    "shapes": {kind: list(shape) for kind, shape in edited.shapes.items()},
                    "dtypes": dict(edited.dtypes),
                    "norms": dict(self.norms.get(name, {})),
                }
                for name, edited in self.modules.items()
            },
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": sorted({dtype for edited in self.modules.values() for dtype in edited.dtypes.values()}),
            "files": {
                name: {"bytes": size, "sha256": digest_of(self.folder, name, self.files)}
                for name, size in self.files.items()
            },
        }


def inspect_folder(
    folder: str | Path,
    listed: Mapping[str, int | None] | None = None,
    base: nn.Module | None = None,
    only: Collection[str] | None = None,
) -> Inspection:
    """Look at an erasure without loading it.

    Args:
        folder: Where it is.
        listed: Files of its repository on the Hub that may not be there, with their sizes.
        base: The model that it is to be loaded on, if that is there.
        only: Files to look at, and no others.

    Raises:
        ValueError: There is no adapter in the folder, or one of another type.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id")
    files, findings = check_files(folder)
    if only is not None:
        files, findings = {name: size for name, size in files.items() if name in only}, []
    findings += _check_size(files, listed or {})
    findings += _check_listed(listed or {}, files)
    if not os.path.lexists(folder / CONFIG_NAME):
        raise InputError(f"{folder} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id")
    if CONFIG_NAME not in files:
        findings.append(refuse("a config that was not read", CONFIG_NAME, "it must be a plain file"))
        return Inspection(folder, tuple(findings), files=files)
    values, found = read_json(folder, CONFIG_NAME, MAX_CONFIG)
    findings += found
    if values is not None and values.get("peft_type") != "UNIERASE":
        raise InputError(f"{folder} is an adapter of type {printable(values.get('peft_type'))}, not an erasure")
    config, found = _check_config(values) if values is not None else (None, [])
    if values is not None:
        found += _notes(values)
    findings += found
    header: Header | None = None
    modules: dict[str, Edited] = {}
    norms: dict[str, dict[str, float]] = {}
    if WEIGHTS_NAME not in files:
        if not any(finding.value.startswith(WEIGHTS_NAME) for finding in findings):
            findings.append(refuse("no weights", f"{WEIGHTS_NAME} is missing", "get the folder anew"))
    else:
        header, found = read_header(folder / WEIGHTS_NAME, WEIGHTS_NAME)
        findings += found
    if header:
        modules, found = edited_modules(header)
        findings += found + (check_modules(config, modules) if config else [])
        norms, found = check_values(folder / WEIGHTS_NAME, modules)
        findings += found
        # What is refused already need not fit the base, and is not compared with its LoRA form.
        if config and not any(finding.level == "refuse" for finding in findings):
            if base is not None:
                findings += check_on_base(base, config.split(), modules, norms)
            findings += check_lora(folder, files, config, modules, base)
    findings += _check_tokenizer(folder, files)
    record, found = read_json(folder, RECORD_NAME) if RECORD_NAME in files else ({}, [])
    findings += found
    if record is not None:
        findings += _check_record(folder, files, record, listed or {})
    return Inspection(
        folder,
        tuple(findings),
        values or {},
        record or {},
        files,
        modules,
        norms,
        header.parameters if header else 0,
        header.bytes if header else 0,
        config,
        base,
    )


def guarded(source: str | Path, base: nn.Module | None = None, **told: Any) -> Path:
    """The folder of an erasure that the guard passes; see [`passed`]."""
    return passed(source, base, **told).folder


def passed(source: str | Path, base: nn.Module | None = None, **told: Any) -> Inspection:
    """What was found of an erasure that the guard passes; see [`inspect_folder`] for `base`, [`resolve`] for `told`.

    Raises:
        GuardError: It refuses it.
        ValueError: There is no erasure.
    """
    place = resolve(source, **told)
    try:
        inspection = inspect_folder(place.folder, place.listed, base)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error}") from error
    if inspection.refused:
        raise GuardError(str(source), inspection.refused)
    return inspection


def check_declared(base: nn.Module, config: AdapterConfig) -> list[Finding]:
    """What is wrong with an erasure on a base, from its config and what was found in its files.

    PEFT has ways of its own to read a config. If one of those was taken the files were not looked at, and what the
    config declares is held against the base as if they had just that.
    """
    inspection = config.inspection
    if inspection is None:
        parts, modules = config.split(), {}
        findings = _check_policy(vars(config)) + [each for part in config.parts for each in _check_policy(part)]
        if config.modules_to_save:
            findings.append(
                refuse(WHOLE_MODULES, f"modules_to_save {config.modules_to_save!r}", "no erasure needs that")
            )
        if findings:
            return findings
        declared = dict.fromkeys(name for part in parts for name in part.target_modules or ())
        for name in [*declared, *(config.token_modules or ())]:
            if own_module(base, name) is None:
                advice = "name each by its full name, or take the base that the erasure was made for"
                findings.append(refuse("a module that the base does not have", name, advice))
        if findings:
            return findings
        for name in declared:
            rank = sum(part.rank_of(name) for part in holders_of(parts, name))
            inputs, outputs = projection_shape(own_module(base, name)) or (0, 0)
            modules[name] = Edited({"A": (rank, inputs), "B": (outputs, rank)}, {}, {})
        rows = [None for part in parts if part.token_id is not None]
        for name in config.token_modules or () if rows else ():
            weight = getattr(own_module(base, name), "weight", torch.zeros(0, 0))
            shape = (len(rows), weight.shape[-1]) if config.parts else (weight.shape[-1],)
            modules[name] = Edited({"row": shape}, {}, {})
        return check_modules(config, modules) or check_on_base(base, parts, modules, {})
    return check_on_base(base, config.split(), inspection.modules, inspection.norms)


def _check_size(files: Mapping[str, int], listed: Mapping[str, int | None]) -> list[Finding]:
    """Refuse files that are together larger than one may be."""
    total = sum(files.values()) + sum(size or 0 for name, size in listed.items() if name not in files)
    if total <= MAX_BYTES or any(size > MAX_BYTES for size in files.values()):
        return []
    what = f"files that together are larger than {MAX_BYTES:,} bytes"
    return [refuse(what, f"{total:,} bytes", "no erasure needs that")]


def _check_listed(listed: Mapping[str, int | None], files: Mapping[str, int]) -> list[Finding]:
    absent = [name for name in listed if name not in files]
    findings = check_names(absent)
    findings += [too_large(name, size) for name in absent if (size := listed[name] or 0) > MAX_BYTES]
    if any(PurePosixPath(name).parts[0] == LORA_NAME for name in absent):
        findings.append(note("not looked at", f"{LORA_NAME}/", "download the repository and inspect its folder"))
    return findings


def _check_config(values: Mapping[str, Any]) -> tuple[AdapterConfig | None, list[Finding]]:
    """The config of these values, or what is wrong with them."""
    findings = []
    known = {each.name for each in fields(AdapterConfig)}
    for name in sorted(values.keys() - known):
        findings.append(refuse("a key that no config of an erasure has", name, "take it out, or update this package"))
    wrong = wrong_values(values)
    parts = [part for part in _listed(values.get("parts")) if isinstance(part, Mapping)]
    if len(parts) > MAX_PARTS:
        return None, [*findings, refuse(f"more than {MAX_PARTS} parts", len(parts), "load them one beside the other")]
    for part in parts:
        wrong += [(f"parts: {name}", wanted, value) for name, wanted, value in wrong_values(part)]
        for name in sorted(part.keys() - {"name", *OF_A_PART}, key=str):
            findings.append(refuse("a key that no part of an erasure has", name, "take it out"))
    for name, wanted, value in wrong:
        findings.append(refuse(f"a wrong value of {name}", repr(value), f"it must be {wanted}"))
    for each in (values, *parts):
        findings += _check_policy(each)
    if values.get("modules_to_save"):
        findings.append(
            refuse(WHOLE_MODULES, f"modules_to_save {values['modules_to_save']!r}", "no erasure needs that")
        )
    mapping = values.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
    if mapping is not None and (not isinstance(library, str) or library.partition(".")[0] != "transformers"):
        what = "an auto_mapping that imports something else than transformers"
        findings.append(refuse(what, mapping, "take it out; no erasure needs it"))
    if findings:
        return None, findings
    try:
        config = AdapterConfig(**values)
        config.split()
    except (TypeError, ValueError) as error:
        return None, [refuse("a config that cannot be", f"{error}", "get it anew from where it came from")]
    return config, []


def _check_policy(values: Mapping[str, Any]) -> list[Finding]:
    """What a config may hold in principle and a stranger's must not."""
    findings = []
    pattern = values.get("rank_pattern")
    pattern = pattern if isinstance(pattern, Mapping) else {}
    ranks = [rank for rank in (values.get("r"), *pattern.values()) if isinstance(rank, int) and rank > MAX_RANK]
    if ranks:
        findings.append(refuse("a rank beyond the width of any model", max(ranks), f"at most {MAX_RANK} makes sense"))
    if isinstance(spare := values.get("spare_tokens"), list) and len(spare) > MAX_SPARE:
        findings.append(refuse(f"more than {MAX_SPARE} spare tokens", len(spare), "an erasure has a few dozen"))
    targets = values.get("target_modules", [])
    if not isinstance(targets, list):
        what = "modules that are not named one by one"
        findings.append(refuse(what, f"target_modules {targets!r}", "no expressions; list the names"))
    if isinstance(values.get("exclude_modules"), str):
        what = "modules that are not named one by one"
        findings.append(
            refuse(what, f"exclude_modules {values['exclude_modules']!r}", "no expressions; list the names")
        )
    named: list[Any] = []
    for key in ("target_modules", "exclude_modules", "layers_pattern", "token_modules"):
        named += _listed(values.get(key)) if not isinstance(values.get(key), str) else [values[key]]
    named += pattern
    if len(named) > 5 * MAX_MODULES:
        return [
            *findings,
            refuse(f"names of more than {MAX_MODULES} modules", len(named), "an erasure edits a few MLPs"),
        ]
    # PEFT reads some of these as expressions, of which one can be made that takes forever.
    odd = [name for name in named if isinstance(name, str) and name and not MODULE.fullmatch(name)]
    for name in dict.fromkeys(odd):
        if name not in (targets, values.get("exclude_modules")):
            findings.append(refuse("a name that is no module's", name, "names are letters, digits, _ - and dots"))
    if len(_listed(values.get("token_modules"))) > 2:
        what = "more than two modules with rows of a token"
        findings.append(refuse(what, values["token_modules"], "there are the embedding and the head"))
    fingerprint = values.get("base_fingerprint")
    if isinstance(fingerprint, str) and not FINGERPRINT.fullmatch(fingerprint):
        what = "a fingerprint of the base that is none"
        findings.append(refuse(what, fingerprint, "it is sha256: and 64 hexadecimal digits"))
    if isinstance(dtype := values.get("base_dtype"), str) and not DTYPE.fullmatch(dtype):
        findings.append(refuse("a dtype of the base that is none", dtype, "it is a name such as float32"))
    return findings


def _notes(values: Mapping[str, Any]) -> list[Finding]:
    findings = []
    parts = [part for part in _listed(values.get("parts")) if isinstance(part, Mapping)] or [values]
    if not all(part.get("base_fingerprint") for part in parts):
        advice = "loading cannot tell another base from the right one"
        findings.append(note("no fingerprint of the base", "base_fingerprint is empty", advice))
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and (base[:1] in "/.~" or "\\" in base or base.count("/") > 1):
        findings.append(note("a base that is named by a path", base, "give your own copy of the base when you load it"))
    return findings


def _check_tokenizer(folder: Path, files: Mapping[str, int]) -> list[Finding]:
    if TOKENIZER_CONFIG not in files:
        return []
    values, findings = read_json(folder, TOKENIZER_CONFIG)
    if values and values.get(REMOTE_CODE):
        what = "a tokenizer that asks for code from elsewhere"
        findings.append(refuse(what, f"{REMOTE_CODE} {values[REMOTE_CODE]!r}", "no erasure needs that"))
    return findings


def _check_record(
    folder: Path, files: Mapping[str, int], record: Mapping[str, Any], listed: Mapping[str, int | None]
) -> list[Finding]:
    findings = []
    if record:
        try:
            checked(Statement, record, f"{RECORD_NAME} is no Statement")
        except ValueError as error:
            findings.append(refuse("a record that is none", f"{error}", "get it anew from where it came from"))
    else:
        findings.append(note("no record", f"{RECORD_NAME} is missing", "nothing says how it was made and measured"))
    for name, digest in recorded_digests(record).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            findings.append(refuse("a record that points out of the folder", name, "get the files anew"))
        elif name in files:
            found = digest_of(folder, name, files)
            if found and found != digest.lower():
                value = f"{name} has {found[:16]}…, recorded is {digest[:16]}…"
                advice = "file or record was changed since; get both anew from where they came from"
                findings.append(refuse("a file that is not the recorded one", value, advice))
        elif name not in listed and name != RECORD_NAME:
            findings.append(note("a recorded file that is not there", name, "loading may not need it"))
    return findings


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
