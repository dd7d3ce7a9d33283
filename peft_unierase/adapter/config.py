"""What an erasure adapter is made of, as PEFT stores it in `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from peft.config import PeftConfig
from peft.utils.other import get_pattern_key

from ..errors import InputError, shown
from ..storage.schema import ConfigOfPeft, ErasureConfig, OwnFields
from ..storage.values import MAX_RANK, wrong_fields
from .peft_type import unierase_peft_type

# What each must be, in words.
OWN = {name: str(field.description) for name, field in ErasureConfig.model_fields.items()}
OF_PEFT = {name: str(field.description) for name, field in ConfigOfPeft.model_fields.items()}
# What an erasure that was fused into another has values of its own for.
OF_A_PART = tuple(OwnFields.model_fields)


@dataclass
class AdapterConfig(PeftConfig):
    """The fields of an erasure and what they say; [`UniEraseConfig`](../guard/config.py) documents them.

    Raises:
        ValueError: A field holds what it must not, or a rank is beyond the width of any model.
    """

    # No fields, because none of them is saved. PEFT's own ways of reading a config, for instance that of
    # `AutoPeftModelForCausalLM`, end in `__init__` with a type that is plain text, and pass by `from_pretrained`.
    from_file = False  # read from a file, so that what it puts on is loaded and never drawn
    trusted = False  # whoever loads it answers for it, and the guard is not asked
    r: int = field(default=1, metadata={"help": "Rank of each edit."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Other ranks of some modules."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or regular expression of the projections to edit. None finds all down-projections."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or regular expression of modules to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the decoder layers to edit."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that holds the decoder layers."}
    )
    token_id: int | None = field(default=None, metadata={"help": "Row of [UNL] in embedding and head."})
    token: str = field(default="[UNL]", metadata={"help": "Text of [UNL] in the tokenizer."})
    spare_tokens: list[list] = field(
        default_factory=list, metadata={"help": "Further rows that the base does not use, [id, text] each."}
    )
    fused: list[dict] = field(default_factory=list, metadata={"help": "Erasures that were fused into this one."})
    token_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that hold [UNL]'s rows. None takes embedding and head."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and to save whole."}
    )
    init_weights: bool = field(default=True, metadata={"help": "True: identity at the start; False: random."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Digest of the base tensors that the edit touches."}
    )
    base_dtype: str | None = field(default=None, metadata={"help": "Format in which these were loaded."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.from_file = type(vars(self).get("peft_type")) is str
        self.inspection: Any = None  # what the guard found
        self.exactly: frozenset[str] | None = None  # full names of the modules that it may be put on
        self.checked_on: int | None = None  # `id` of the base that the guard has held it against already
        # From a JSON file the type arrives as a string; PEFT's look-ups need the member.
        self.peft_type = unierase_peft_type()
        own = {name: getattr(self, name) for name in OWN}
        for name, wanted, value in wrong_values(own):
            raise InputError(f"{name} must be {wanted}, got {shown(value)}")
        for name, rank in {"r": self.r, **self.rank_pattern}.items():
            if rank > MAX_RANK:
                raise InputError(f"the rank {name!r} must be at most {MAX_RANK}, a model's largest width, got {rank}")
        for part in self.fused:
            if unknown := sorted(part.keys() - {"name", *OF_A_PART}):
                raise InputError(
                    f"the fused erasure {part['name']!r} has {unknown[0]!r}, which is no field of an erasure by itself"
                )
            for name, wanted, value in wrong_values(part):
                raise InputError(f"{name} of the fused erasure {part['name']!r} must be {wanted}, got {shown(value)}")
            if missing := [key for key in OF_A_PART if key not in part]:
                raise InputError(
                    f"the fused erasure {part['name']!r} has no {missing[0]!r}; each has values of its own"
                )
        for item in fields(self):  # the order of a set differs from run to run, and the saved file should not
            if isinstance(value := getattr(self, item.name), set):
                setattr(self, item.name, sorted(value))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError("layers_to_transform does not go with a regular expression in target_modules; use a list")
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern needs layers_to_transform to be given too")

    def check_on(self, model: Any) -> None:
        """Called with the base before this is put on it; a config whose files are not known has nothing to add."""

    def replaced(self, **changes: Any) -> AdapterConfig:
        """A copy with other values of some fields, which was read from the same file."""
        if not changes:  # of which everything has been checked
            same = copy(self)
            same.exactly = None
            return same
        changed = replace(self, **changes)
        changed.from_file, changed.trusted = self.from_file, self.trusted
        changed.inspection, changed.checked_on = self.inspection, self.checked_on
        return changed

    def split(self) -> list[AdapterConfig]:
        """The erasures in it, each as a config of its own: itself, unless several were fused."""
        if not self.fused:
            return [self]
        return [
            self.replaced(fused=[], **{key: value for key, value in part.items() if key != "name"})
            for part in self.fused
        ]

    def rank_of(self, name: str) -> int:
        """Rank of the edit of one module, of which this erasure edits some."""
        return self.rank_pattern.get(get_pattern_key(self.rank_pattern, name), self.r)

    @property
    def tokens(self) -> list[tuple[int, str]]:
        """Id and text of its token, or of all where several erasures were fused."""
        return [(part.token_id, part.token) for part in self.split() if part.token_id is not None]


def wrong_values(values: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The fields among `values` that hold what they must not, each with what it must be and the value."""
    wanted = {**OWN, **OF_PEFT}
    wrong = {*wrong_fields(ErasureConfig, values), *wrong_fields(ConfigOfPeft, values)}
    return [(name, wanted[name], values[name]) for name in values if name in wrong]
