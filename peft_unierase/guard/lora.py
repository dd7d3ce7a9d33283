"""The LoRA form of an erasure, `lora/`: it must be what `unierase export` makes of the erasure beside it.

It is what people load who do not have this package, so nothing of it may say anything else. From the files alone two
things stay open, and are compared if the base is at hand: whether its projections are `Conv1D`, and in layout L the
base's own row, from which [UNL]'s is the difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..adapter.config import AdapterConfig
from ..adapter.norms import is_sound
from ..lm.weights import is_plain
from ..storage.names import CONFIG_NAME, LORA_NAME, WEIGHTS_NAME
from ..storage.plain import plain
from .files import MAX_CONFIG, read_header, read_json
from .findings import Finding, refuse
from .weights import Edited

PREFIX = "base_model.model."
TOKENS = ".token_adapter.trainable_tokens_delta"
# Both forms are fp32 as a rule, and then equal to the bit; a native one in bf16 is exported exactly too.
TOLERANCE = 1e-4
ROUNDED = 2**-7  # between a base in the format that an erasure was made in and the same in bf16
ANEW = "make it anew with `unierase export`, or take the folder out"
LAYOUT = "make it anew with `unierase export`, in layout T unless the base has one matrix as embedding and head"
# Whatever these say, they do not change what the tensors mean.
FREE = ("peft_version", "revision", "task_type", "inference_mode", "peft_type")
KINDS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}


def check_lora(
    folder: Path,
    files: Mapping[str, int],
    config: AdapterConfig,
    modules: Mapping[str, Edited],
    base: nn.Module | None = None,
) -> list[Finding]:
    """Hold the LoRA form in a folder against the erasure there.

    Args:
        folder: Where the erasure lies.
        files: What lies there.
        config: Its config.
        modules: What its weights have for each module; they fit the config.
        base: The model that it is to be loaded on, if that is there.
    """
    names = [name for name in files if name.startswith(f"{LORA_NAME}/")]
    if not names:
        return []
    wanted = [f"{LORA_NAME}/{CONFIG_NAME}", f"{LORA_NAME}/{WEIGHTS_NAME}"]
    if missing := [name for name in wanted if name not in names]:
        return [refuse("a LoRA form that is not whole", f"{missing[0]} is missing", ANEW)]
    values, findings = read_json(folder, wanted[0], MAX_CONFIG)
    header, found = read_header(folder / wanted[1], wanted[1])
    findings += found
    if values is None or header is None:
        return findings
    form = _Form(config, modules, header.tensors, base)
    findings += form.check_names()
    if not findings:
        findings += form.check_config(values)
        try:
            with (
                safe_open(plain(folder / WEIGHTS_NAME), framework="pt") as native,
                safe_open(plain(folder / wanted[1]), framework="pt") as lora,
            ):
                findings += form.check_values(native, lora)
        except SafetensorError as error:
            findings.append(refuse("a LoRA form that cannot be read", f"{error}", ANEW))
    return findings


class _Form:
    """The form that an erasure's export has.

    Args:
        config: The erasure's config.
        modules: What its weights have for each module.
        tensors: Dtype and shape of each tensor in the LoRA form.
        base: The base, if it is there.
    """

    def __init__(
        self,
        config: AdapterConfig,
        modules: Mapping[str, Edited],
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        base: nn.Module | None,
    ) -> None:
        self.config, self.modules, self.tensors, self.base = config, modules, tensors, base
        self.edits = {name: edited for name, edited in modules.items() if not edited.is_row}
        self.rows = [name for name, edited in modules.items() if edited.is_row]
        self.ids = [part.token_id for part in config.split() if part.token_id is not None]
        self.layout = "T" if any(key.endswith(TOKENS) for key in tensors) or not self.rows else "L"
        self.pairs = list(self.edits) + (self.rows if self.layout == "L" else [])
        ranks = [edited.rank for edited in self.edits.values()]
        self.rank = max([*ranks, *([len(self.ids)] if self.layout == "L" else [])], default=1)
        self.keys: dict[str, dict[str, str]] = {}
        for key in tensors:
            for end, kind in KINDS.items():
                if key.startswith(PREFIX) and key.endswith(f".{end}"):
                    name = key.removeprefix(PREFIX).removesuffix(f".{end}")
                    if name in self.rows or not end.startswith("lora_embedding"):
                        self.keys.setdefault(name, {})[kind] = key
            if key.startswith(PREFIX) and key.endswith(TOKENS):
                self.keys.setdefault(key.removeprefix(PREFIX).removesuffix(TOKENS), {})["row"] = key

    def check_names(self) -> list[Finding]:
        """What it has tensors for, and of what shapes."""
        known = {key for keys in self.keys.values() for key in keys.values()}
        if odd := [key for key in self.tensors if key not in known]:
            return [refuse("a LoRA form with a tensor that is none of an erasure's", odd[0], ANEW)]
        if extra := sorted(self.keys.keys() - self.modules.keys()):
            return [refuse("a LoRA form that edits what the erasure does not", ", ".join(extra), ANEW)]
        if missing := sorted(self.modules.keys() - self.keys.keys()):
            return [refuse("a LoRA form that lacks what the erasure edits", ", ".join(missing), ANEW)]
        findings = []
        for name, keys in self.keys.items():
            found = {kind: self.tensors[key][1] for kind, key in keys.items()}
            if not self._fits(name, found):
                value = f"{name} has {', '.join(f'{kind} {shape}' for kind, shape in sorted(found.items()))}"
                findings.append(refuse("a LoRA form of other shapes than the erasure's", value, ANEW))
        return findings

    def _fits(self, name: str, found: Mapping[str, tuple[int, ...]]) -> bool:
        if name in self.edits:
            own = self.edits[name].shapes
            return found == {"A": (self.rank, own["A"][1]), "B": (own["B"][0], self.rank)}
        width = self.modules[name].shapes["row"][-1]
        if self.layout == "T":
            return found == {"row": (len(self.ids), width)}
        if found.keys() != {"A", "B"} or len(found["A"]) != 2 or len(found["B"]) != 2:
            return False
        (rank, inputs), (outputs, other) = found["A"], found["B"]
        vocabulary, across = (inputs, outputs) if self._is_embedding(name) else (outputs, inputs)
        kinds = {"lora_embedding" in key for key in self.keys[name].values()}
        return rank == other == self.rank and across == width and vocabulary > max(self.ids) and len(kinds) == 1

    def _is_embedding(self, name: str) -> bool:
        return "lora_embedding" in self.keys[name]["A"]

    def check_config(self, values: Mapping[str, Any]) -> list[Finding]:
        """Its config must be the one of an export, but for what changes nothing."""
        if values.get("peft_type") != "LORA":
            return [refuse("a LoRA form of another type", values.get("peft_type"), ANEW)]
        indices = {name: sorted(self.ids) for name in self.rows} if self.layout == "T" and self.rows else None
        expected: dict[str, Any] = {
            "r": self.rank,
            "lora_alpha": self.rank,
            "target_modules": sorted(self.pairs),
            "trainable_token_indices": indices,
            "base_model_name_or_path": self.config.base_model_name_or_path,
        }
        usual = {each.name: _default(each) for each in dataclasses.fields(LoraConfig)}
        findings = []
        for key, value in sorted(values.items()):
            if key in FREE:
                continue
            if key == "fan_in_fan_out":
                right = value is self._transposed() if self.base is not None else isinstance(value, bool)
            elif key == "target_modules":
                right = isinstance(value, list) and sorted(value, key=str) == expected[key]
            elif key in expected:
                right = type(value) is type(expected[key]) and value == expected[key]
            else:  # a newer PEFT may have settings that this one has not, unset
                right = value == usual[key] if key in usual else not value
            if not right:
                findings.append(refuse("a LoRA form with another setting than an export's", f"{key} {value!r}", ANEW))
        missing = [key for key in expected if key not in values and expected[key] is not None]
        return findings + [refuse("a LoRA form without a setting", key, ANEW) for key in missing]

    def _transposed(self) -> bool:
        return any(isinstance(self._module(name), Conv1D) for name in self.edits)

    def _module(self, name: str) -> Any:
        module: Any = self.base.get_submodule(name) if self.base is not None else None
        return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module

    def check_values(self, native: Any, lora: Any) -> Iterator[Finding]:
        """Its tensors, each beside the erasure's own.

        Args:
            native: The erasure's file, opened.
            lora: That of the LoRA form.
        """
        differences: dict[str, torch.Tensor] = {}
        for name, keys in self.keys.items():
            found = {kind: lora.get_tensor(key) for kind, key in keys.items()}
            own = {kind: native.get_tensor(key) for kind, key in self.modules[name].keys.items()}
            # What is the same as the erasure's own values, which are sound, is sound.
            if name in self.edits:
                same = _padded(found["A"], own["A"]) and _padded(found["B"].T, own["B"].T)
            elif self.layout == "T":
                same = _same(found["row"], own["row"].reshape(len(self.ids), -1)[self._order()])
            else:
                change = self._change(name, found)
                same = change is not None and is_sound(change)
                if change is not None:
                    differences[name] = own["row"].reshape(len(self.ids), -1).float() - change
            if not same:
                if odd := [keys[kind] for kind in keys if not is_sound(found[kind], columns=kind == "B")]:
                    yield refuse("a LoRA form with values that are not finite or huge", odd[0], ANEW)
                    return
                yield refuse("a LoRA form with other values than the erasure", name, ANEW)
        yield from self._check_rows(differences)

    def _order(self) -> list[int]:
        """Places of the tokens by their ids, in which order layout T has them."""
        return sorted(range(len(self.ids)), key=lambda place: self.ids[place])

    def _change(self, name: str, found: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """How far a LoRA on embedding or head moves the tokens' rows, `(tokens, d)`; `None` if it moves others too."""
        where, moved = (found["A"], found["B"].T) if self._is_embedding(name) else (found["B"].T, found["A"])
        count = len(self.ids)
        places = torch.tensor(self.ids)
        ones = where[torch.arange(count), places]
        if int(torch.count_nonzero(where)) != count or not bool((ones == 1).all()) or bool(moved[count:].any()):
            return None
        return moved[:count].float()

    def _check_rows(self, rows: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
        """The base's own rows, as layout L implies them: the same in both matrices, which are tied where it is used."""
        if len(rows) == 2 and [self._is_embedding(name) for name in rows].count(True) != 1:
            yield refuse("a LoRA form without one embedding and one head", ", ".join(rows), ANEW)
            return
        for name, row in rows.items():
            first = next(iter(rows.values()))
            if not _close(row, first, TOLERANCE):
                yield refuse("a LoRA form whose rows do not belong together", ", ".join(rows), LAYOUT)
                return
            weight = getattr(self._module(name), "weight", None)
            if weight is None or weight.is_meta or not is_plain(weight):
                continue
            if max(self.ids) < len(weight) and not _close(row, weight.detach()[self.ids].cpu(), ROUNDED):
                yield refuse("a LoRA form for another base", f"{name}, rows {self.ids}", ANEW)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING:
        return None
    value = field.default_factory()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _padded(found: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether `found` has the rows of `own`, and zeros after them."""
    return _same(found[: len(own)], own) and not bool(found[len(own) :].any())


def _same(found: torch.Tensor, own: torch.Tensor) -> bool:
    if found.shape != own.shape:
        return False
    if found.dtype == own.dtype and torch.equal(found, own):
        return True
    return _close(found, own, TOLERANCE)


def _close(found: torch.Tensor, own: torch.Tensor, tolerance: float) -> bool:
    own = own.float()
    return bool((found.float() - own).abs().max() <= tolerance * own.abs().max())
