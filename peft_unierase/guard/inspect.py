"""The guard: what a stranger's erasure touches, from its files alone, and whether it may be loaded.

It builds no model, runs none of what it reads and follows nothing out of the folder. It needs no base; with one it also
looks where that has its MLPs and how large its weights are. It shows that an erasure is what it declares to be, and not
that what it declares is well meant (docs/guides/security.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..adapter.config import AdapterConfig
from ..errors import InputError
from ..storage.names import CONFIG_NAME, RECORD_NAME, WEIGHTS_NAME
from ..storage.source import resolve
from .base import check_on_base
from .declared import check_config, listed_in, notes_on
from .files import MAX_CONFIG, Header, check_files, digest_of, read_header, read_json
from .findings import ANEW, Finding, GuardError, printable, refuse
from .lora import check_lora
from .other_files import check_record, check_tokenizer
from .weights import IN_A_LAYER, Edited, check_modules, check_values, edited_modules


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

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Findings for which it must not be loaded without trust."""
        return tuple(finding for finding in self.findings if finding.level == "refuse")

    def facts(self) -> dict[str, Any]:
        """What it is made of, as plain values for JSON."""
        config = self.config
        several = [part for part in listed_in(config.get("fused")) if isinstance(part, Mapping)] or [config]
        edits = {name: edited for name, edited in self.modules.items() if not edited.is_row}
        layers = {int(match[0].strip(".")) for name in edits if (match := IN_A_LAYER.search(name))}
        return {
            "base": {
                "name": config.get("base_model_name_or_path"),
                "revision": config.get("revision"),
                "fingerprints": [part.get("base_fingerprint") for part in several],
                "dtypes": [part.get("base_dtype") for part in several],
                "compared": sorted({str(name) for part in several for name in listed_in(part.get("target_modules"))}),
            },
            "tokens": [{"id": part.get("token_id"), "text": part.get("token")} for part in several],
            "spare_tokens": [len(listed_in(part.get("spare_tokens"))) for part in several],
            "fused": [part.get("name") for part in several if "name" in part],
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
    only: Mapping[str, str] | None = None,
) -> Inspection:
    """Look at an erasure without loading it.

    Args:
        folder: Where it is.
        listed: Files of its repository on the Hub that may not be there, with their sizes.
        base: The model that it is to be loaded on, if that is there.
        only: Files to look at, and no others, by name with their SHA-256.

    Raises:
        ValueError: There is no adapter in the folder, or one of another type.
    """
    folder, listed = Path(folder), listed or {}
    if not os.path.lexists(folder / CONFIG_NAME):
        raise InputError(f"{folder} is no adapter: neither a folder with {CONFIG_NAME} nor such a Hub id")
    files, findings = check_files(folder, listed, only)
    if CONFIG_NAME not in files:
        findings.append(refuse("a config that was not read", CONFIG_NAME, "it must be a plain file"))
        return Inspection(folder, tuple(findings), files=files)
    values, found = read_json(folder, CONFIG_NAME, MAX_CONFIG)
    findings += found
    if values is not None and values.get("peft_type") != "UNIERASE":
        raise InputError(f"{folder} is an adapter of type {printable(values.get('peft_type'))}, not an erasure")
    config = None
    if values is not None:
        config, found = check_config(values)
        findings += found + notes_on(values)
    header: Header | None = None
    modules: dict[str, Edited] = {}
    norms: dict[str, dict[str, float]] = {}
    if WEIGHTS_NAME not in files:
        if not any(finding.value.startswith(WEIGHTS_NAME) for finding in findings):
            findings.append(refuse("no weights", f"{WEIGHTS_NAME} is missing", ANEW))
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
    findings += check_tokenizer(folder, files)
    record, found = read_json(folder, RECORD_NAME) if RECORD_NAME in files else ({}, [])
    findings += found
    if record is not None:
        findings += check_record(folder, files, record, listed, only or {})
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
    )


def inspect(erasure: str | Path, base: nn.Module | None = None, **told: Any) -> Inspection:
    """Look at an erasure without loading it, whoever made it.

    Args:
        erasure: A folder or a Hub id.
        base: The model that it is to be loaded on, if that is there.
        **told: `revision`, `subfolder`, `token` and the like, for huggingface_hub.

    Returns:
        What was found. Its `refused` are the reasons for which `load` would refuse it.

    Raises:
        ValueError: There is no adapter, or one of another type.
        OSError: It cannot be read.

    Example:

        ```py
        >>> inspect("org/erase-xyz").refused
        ()
        ```
    """
    place = resolve(erasure, **told)
    return inspect_folder(place.folder, place.listed, base)


def passed(source: str | Path, **told: Any) -> Inspection:
    """What was found of an erasure that the guard passes; see [`resolve`] for `told`.

    Raises:
        GuardError: It refuses it.
        ValueError: There is no erasure.
    """
    try:
        inspection = inspect(source, **told)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error}") from error
    if inspection.refused:
        raise GuardError(str(source), inspection.refused)
    return inspection
