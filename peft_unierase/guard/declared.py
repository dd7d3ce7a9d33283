"""What the config of an erasure declares: whether it is a config, and whether a stranger's may say that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..adapter.config import OF_A_PART, AdapterConfig, wrong_values
from ..adapter.vocabulary import is_of_turns
from ..storage.values import MAX_RANK
from .findings import ANEW, Finding, note, refuse
from .weights import MAX_MODULES

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
MODULE = re.compile(r"[\w-]+(\.[\w-]+)*")
DTYPE = re.compile(r"[a-z0-9_]{1,32}")
MAX_PARTS = 256
MAX_SPARE = 1024


def check_config(values: Mapping[str, Any]) -> tuple[AdapterConfig | None, list[Finding]]:
    """The config of these values, or what is wrong with them."""
    findings = []
    known = {each.name for each in fields(AdapterConfig)}
    for name in sorted(values.keys() - known):
        findings.append(refuse("a key that no config of an erasure has", name, "take it out, or update this package"))
    wrong = wrong_values(values)
    parts = [part for part in listed_in(values.get("fused")) if isinstance(part, Mapping)]
    if len(parts) > MAX_PARTS:
        return None, [
            *findings,
            refuse(f"more than {MAX_PARTS} fused erasures", len(parts), "load them one beside the other"),
        ]
    for part in parts:
        wrong += [(f"fused: {name}", wanted, value) for name, wanted, value in wrong_values(part)]
        for name in sorted(part.keys() - {"name", *OF_A_PART}, key=str):
            findings.append(refuse("a key that no part of an erasure has", name, "take it out"))
    for name, wanted, value in wrong:
        findings.append(refuse(f"a wrong value of {name}", repr(value), f"it must be {wanted}"))
    for each in (values, *parts):
        findings += check_policy(each)
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
        return None, [refuse("a config that cannot be", f"{error}", ANEW)]
    return config, []


def check_policy(values: Mapping[str, Any]) -> list[Finding]:
    """What a config, or a part of one, may hold in principle and a stranger's must not."""
    findings = []
    if whole := values.get("modules_to_save"):
        what = "modules that are replaced as a whole"
        findings.append(refuse(what, f"modules_to_save {whole!r}", "no erasure needs that"))
    pattern = values.get("rank_pattern")
    pattern = pattern if isinstance(pattern, Mapping) else {}
    ranks = [rank for rank in (values.get("r"), *pattern.values()) if isinstance(rank, int) and rank > MAX_RANK]
    if ranks:
        findings.append(refuse("a rank beyond the width of any model", max(ranks), f"at most {MAX_RANK} makes sense"))
    if isinstance(spare := values.get("spare_tokens"), list) and len(spare) > MAX_SPARE:
        findings.append(refuse(f"more than {MAX_SPARE} spare tokens", len(spare), "an erasure has a few dozen"))
    pairs = [pair for pair in listed_in(spare)[:MAX_SPARE] if isinstance(pair, list | tuple) and len(pair) == 2]
    for text in dict.fromkeys(str(text) for text in (values.get("token"), *(pair[1] for pair in pairs))):
        if is_of_turns(text):
            what = "a token that prompts are made of"
            findings.append(refuse(what, text, "it would no longer mean what it does; an erasure has one of its own"))
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
        named += listed_in(values.get(key)) if not isinstance(values.get(key), str) else [values[key]]
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
    if len(listed_in(values.get("token_modules"))) > 2:
        what = "more than two modules with rows of a token"
        findings.append(refuse(what, values["token_modules"], "there are the embedding and the head"))
    fingerprint = values.get("base_fingerprint")
    if isinstance(fingerprint, str) and not FINGERPRINT.fullmatch(fingerprint):
        what = "a fingerprint of the base that is none"
        findings.append(refuse(what, fingerprint, "it is sha256: and 64 hexadecimal digits"))
    if isinstance(dtype := values.get("base_dtype"), str) and not DTYPE.fullmatch(dtype):
        findings.append(refuse("a dtype of the base that is none", dtype, "it is a name such as float32"))
    return findings


def notes_on(values: Mapping[str, Any]) -> list[Finding]:
    findings = []
    parts = [part for part in listed_in(values.get("fused")) if isinstance(part, Mapping)] or [values]
    if not all(part.get("base_fingerprint") for part in parts):
        advice = "loading cannot tell another base from the right one"
        findings.append(note("no fingerprint of the base", "base_fingerprint is empty", advice))
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and (base[:1] in "/.~" or "\\" in base or base.count("/") > 1):
        findings.append(note("a base that is named by a path", base, "give your own copy of the base when you load it"))
    return findings


def listed_in(value: Any) -> list[Any]:
    """A foreign value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
