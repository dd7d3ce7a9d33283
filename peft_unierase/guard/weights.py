"""The weights of an erasure: nothing but what its config declares, only where an erasure may be, in sound numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open

from ..adapter.config import AdapterConfig
from ..adapter.norms import MAX_NORM, largest_norm
from ..lm.structure import ATTENTION
from ..storage.values import MAX_RANK
from .files import Header
from .findings import ANEW, Finding, refuse

MAX_MODULES = 1024
ROWS_AT_ONCE = 512
KEY = re.compile(r"base_model\.model\.(?P<module>[\w.-]+)\.unierase_(?P<kind>A|B|row)")
IN_A_LAYER = re.compile(r"(^|\.)[0-9]{1,5}\.")
OUTSIDE = "an edit outside the MLPs of the layers"


@dataclass(frozen=True)
class Edited:
    """What an erasure has for one module.

    Attributes:
        shapes: Of its tensors, by kind: `A`, `B` or `row`.
        dtypes: Likewise.
        keys: Their names in the file, likewise.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    keys: Mapping[str, str]

    @property
    def is_row(self) -> bool:
        return "row" in self.shapes

    @property
    def rank(self) -> int:
        return self.shapes.get("A", (0,))[0]


def edited_modules(header: Header) -> tuple[dict[str, Edited], list[Finding]]:
    """What a file has for each module, and the tensors in it that are no part of an erasure."""
    found: dict[str, dict[str, str]] = {}
    findings = []
    for key in header.tensors:
        if match := KEY.fullmatch(key):
            found.setdefault(match["module"], {})[match["kind"]] = key
        else:
            findings.append(refuse("a tensor that is no part of an erasure", key, ANEW))
    modules = {
        module: Edited(
            {kind: header.tensors[key][1] for kind, key in keys.items()},
            {kind: header.tensors[key][0] for kind, key in keys.items()},
            keys,
        )
        for module, keys in sorted(found.items())
    }
    return modules, findings


def check_modules(config: AdapterConfig, modules: Mapping[str, Edited]) -> list[Finding]:
    """Hold the modules that a file has tensors for against those that a config declares: they must be the same."""
    if len(modules) > MAX_MODULES:
        what = f"more than {MAX_MODULES} edited modules"
        return [refuse(what, len(modules), "an erasure edits a few MLPs")]
    parts = config.split()
    findings = [finding for name, edited in modules.items() for finding in _check_module(config, parts, name, edited)]
    declared = dict.fromkeys(name for part in parts for name in part.target_modules or ())
    for name in declared:
        if name not in modules or modules[name].is_row:
            ends = next((each for each in modules if each.endswith(f".{name}")), None)
            findings.append(
                refuse("the end of a module's name", name, f"name each by its full name, for instance {ends}")
                if ends
                else refuse("a declared module without weights", name, ANEW)
            )
    if config.fused and set(config.target_modules or ()) != set(declared):
        odd = sorted(set(config.target_modules or ()) ^ set(declared))
        findings.append(refuse("target_modules that are not those of the fused erasures", ", ".join(odd), ANEW))
    if config.token_id is not None:
        missing = [name for name in config.token_modules or () if name not in modules]
        findings += [refuse("a declared token module without a row", name, ANEW) for name in missing]
    findings += _check_tokens(config, parts)
    return findings or _check_width(modules)


def _check_tokens(config: AdapterConfig, parts: Sequence[AdapterConfig]) -> Iterator[Finding]:
    ids = [part.token_id for part in parts]
    if any((each is None) != (config.token_id is None) for each in ids):
        yield refuse("a token that some parts have and others have not", f"token_id {ids}", ANEW)
    elif config.token_id is not None and len(set(ids)) < len(ids):
        yield refuse("two tokens on one row", f"token_id {ids}", ANEW)
    if config.token_id is not None and not config.token_modules:
        yield refuse("a token without modules for its rows", f"token_modules {config.token_modules}", ANEW)


def _check_module(
    config: AdapterConfig, parts: Sequence[AdapterConfig], name: str, edited: Edited
) -> Iterator[Finding]:
    shapes = edited.shapes
    flat = {kind: shape for kind, shape in shapes.items() if (len(shape) != 2 and kind != "row") or 0 in shape}
    if flat:
        yield refuse("a tensor of a shape that no erasure has", f"{name}: {flat}", ANEW)
        return
    if edited.is_row:
        yield from _check_row(config, name, edited)
        return
    if IN_A_LAYER.search(name) is None or ATTENTION.search(name):
        yield refuse(OUTSIDE, name, "an erasure edits projections of MLPs; leave this one alone")
        return
    holders = holders_of(parts, name)
    if not holders:
        yield refuse("weights for a module that the config does not declare", name, ANEW)
        return
    rank = sum(part.rank_of(name) for part in holders)
    found = {kind: shape[0] if kind == "A" else shape[1] for kind, shape in sorted(shapes.items())}
    if found != {"A": rank, "B": rank}:
        value = f"{name} has {', '.join(f'{kind} {each}' for kind, each in found.items())}, declared is {rank}"
        yield refuse("another rank than the config declares", value, ANEW)
    elif rank > len(holders) * min(shapes["A"][1], shapes["B"][0]):
        value = f"{name}: {rank} for {shapes['A'][1]} inputs and {shapes['B'][0]} outputs"
        yield refuse("a rank beyond the width of the module", value, "it makes the adapter large and adds nothing")


def holders_of(parts: Sequence[AdapterConfig], name: str) -> list[AdapterConfig]:
    """The erasures that declare an edit of a module."""
    declaring = [part for part in parts if name in (part.target_modules or ())]
    return [part for part in declaring if check_target_module_exists(part, name)]


def _check_row(config: AdapterConfig, name: str, edited: Edited) -> Iterator[Finding]:
    tokens = config.tokens
    if len(edited.shapes) > 1:
        yield refuse(OUTSIDE, name, "of embedding and head an erasure has rows alone")
    if not tokens or name not in (config.token_modules or ()):
        yield refuse("a token's row for a module that the config does not declare", name, ANEW)
    elif IN_A_LAYER.search(name):
        yield refuse("a token's row inside a layer", name, "rows belong to the embedding and the head")
    else:
        shape = edited.shapes["row"]
        wanted = (len(tokens), *shape[1:]) if config.fused else shape[:1]
        if shape != wanted or len(shape) != (2 if config.fused else 1):
            rows = shape[0] if len(shape) == 2 else 1
            value = f"{name} has {rows} of shape {shape}, declared are {len(tokens)} tokens"
            yield refuse("another number of token rows than the config declares", value, ANEW)


def _check_width(modules: Mapping[str, Edited]) -> list[Finding]:
    """Refuse edits that cannot be of the MLPs of one model, all of which have the residual stream at one end, and rows
    that are not as wide as that. Some models have narrower embeddings, of which the stream's width is a multiple."""
    rows = {edited.shapes["row"][-1] for edited in modules.values() if edited.is_row}
    if len(rows) > 1:
        return [refuse("token rows of different widths", sorted(rows), ANEW)]
    widths: set[int] | None = None
    for name, edited in modules.items():
        if not edited.is_row:
            own = {edited.shapes["A"][1], edited.shapes["B"][0]}
            if widths is not None and widths.isdisjoint(own):
                value = f"{name} has {sorted(own)}, others have {sorted(widths)}"
                return [refuse("edits that do not belong to the MLPs of one model", value, ANEW)]
            widths = own if widths is None else widths & own
    if widths is not None and not all(any(width % row == 0 for width in widths) for row in rows):
        return [refuse("token rows of another width than the edits", f"{sorted(rows)} beside {sorted(widths)}", ANEW)]
    return []


def check_values(file: Path, modules: Mapping[str, Edited]) -> tuple[dict[str, dict[str, float]], list[Finding]]:
    """Norms, and values that are not finite or huge. No more than a slice of a tensor is held as double precision.

    Returns:
        For each module the largest norm of a row of `A`, of a column of `B` and of a token's row, and that of the edit,
        `BA` (Frobenius); and what is wrong.
    """
    norms: dict[str, dict[str, float]] = {}
    findings = []
    try:
        opened = safe_open(file, framework="pt")
    except SafetensorError as error:
        return norms, [refuse("weights that cannot be read", f"{error}", ANEW)]
    with opened:
        for name, edited in modules.items():
            sound: dict[str, torch.Tensor] = {}
            for kind, key in edited.keys.items():
                tensor = opened.get_tensor(key)  # mapped from the file, not read
                if not tensor.numel() or tensor.dim() not in (1, 2):
                    continue  # of a shape that was found to be wrong
                largest = largest_norm(tensor, columns=kind == "B")
                if largest is None:
                    findings.append(refuse("values that are not finite", key, "such an adapter is broken; " + ANEW))
                    continue
                norms.setdefault(name, {})[kind] = largest
                sound[kind] = tensor
                if largest > MAX_NORM:
                    value = f"{key} with a norm of {largest:.3g}, {MAX_NORM:g} at the most"
                    findings.append(refuse("huge values", value, ANEW))
            if _fit(sound):
                norms[name]["BA"] = _norm_of_product(sound["A"], sound["B"])
    return norms, findings


def _fit(factors: Mapping[str, torch.Tensor]) -> bool:
    """Whether there are two factors of one edit, of a rank that some model could have."""
    a, b = (factors.get(kind, torch.zeros(0)) for kind in "AB")
    return a.dim() == b.dim() == 2 and len(a) == b.shape[1] <= MAX_RANK


def _norm_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frobenius norm of `B A` from the Gram matrices of the factors, blocks of them at a time."""
    exact = torch.float64 if len(a) <= ROWS_AT_ONCE else torch.float32  # many rows would take minutes
    blocks = list(zip(a.split(ROWS_AT_ONCE), b.T.split(ROWS_AT_ONCE), strict=True))
    squared = 0.0
    for number, (left, right) in enumerate(blocks):
        left, right = left.to(exact), right.to(exact)
        for place, (other, other_right) in enumerate(blocks[: number + 1]):
            part = float(((left @ other.to(exact).T) * (right @ other_right.to(exact).T)).sum(dtype=torch.float64))
            squared += part if place == number else 2 * part
    return max(squared, 0.0) ** 0.5
