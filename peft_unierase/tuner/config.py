"""What an erasure adapter is made of, as PEFT stores it in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from peft.config import PeftConfig
from peft.utils.other import get_pattern_key

from ..errors import InputError, shown
from .fields import MAX_RANK, OF_A_PART, OWN, wrong_values
from .peft_type import unierase_peft_type

if TYPE_CHECKING:
    from .guard import Inspection

OF_A_SOURCE = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")


@dataclass
class UniEraseConfig(PeftConfig):
    """Configuration of a [`UniEraseModel`] (UniErase, arXiv 2505.15674).

    An erasure is a low-rank update `B A` of some MLP projections and one vocabulary token, [UNL], with a row of its own
    in the input embedding and in the output head. `peft_unierase.erase` fills all of this in; build a config by hand
    only to train or to test the tuner itself.

    Args:
        r (`int`): Rank of each edit. `A` has shape `(r, d_in)`, `B` has shape `(d_out, r)`.
        rank_pattern (`dict[str, int]`): Other ranks of some modules, by (the end of) their names, as in `LoraConfig`.
        target_modules (`list[str]` or `str`, *optional*): The projections to edit: a list of (suffixes of) module names
            or a regular expression. `None` takes every decoder layer's down-projection, found by structure.
        exclude_modules (`list[str]` or `str`, *optional*): Names or a regular expression to leave out.
        layers_to_transform (`int` or `list[int]`, *optional*): Edit these layers only.
        layers_pattern (`str` or `list[str]`, *optional*): Name of the module list that holds the layers, where PEFT
            cannot tell.
        token_id (`int`, *optional*): Row of [UNL] in both matrices, an id the base never uses. `None` makes an adapter
            of edits alone.
        token (`str`): Text of [UNL] in the tokenizer saved beside the adapter.
        spare_tokens (`list`): Further rows that the base does not use, `[id, text]` each. [UNL] moves to the first free
            one where the adapter is loaded beside one on the same row.
        parts (`list[dict]`): Erasures that were fused into this one, each with its `name` and its own values of the
            fields that an erasure by itself has. Their factors are concatenated along the rank.
        token_modules (`list[str]`, *optional*): Names of the modules with [UNL]'s input row and output row. `None`
            takes the model's own input and output embeddings.
        modules_to_save (`list[str]`, *optional*): Other modules to train and save whole, as in every PEFT method.
        init_weights (`bool`): `True` starts as the identity (`B` is zero, the rows are the base's own), `False` at
            random.
        base_fingerprint (`str`, *optional*): Digest of the base tensors that the edit touches. Where it is given,
            another base is refused on loading.
        base_dtype (`str`, *optional*): Format in which these were loaded then, for instance `"float32"`.

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
    parts: list[dict] = field(default_factory=list, metadata={"help": "Erasures that were fused into this one."})
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
        self.inspection: Inspection | None = None  # what the guard found
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
        for part in self.parts:
            if unknown := sorted(part.keys() - {"name", *OF_A_PART}):
                raise InputError(
                    f"the part {part['name']!r} has {unknown[0]!r}, which is no field of an erasure by itself"
                )
            for name, wanted, value in wrong_values(part):
                raise InputError(f"{name} of the part {part['name']!r} must be {wanted}, got {shown(value)}")
            if missing := [key for key in OF_A_PART if key not in part]:
                raise InputError(f"the part {part['name']!r} has no {missing[0]!r}; each has values of its own")
        for item in fields(self):  # the order of a set differs from run to run, and the saved file should not
            if isinstance(value := getattr(self, item.name), set):
                setattr(self, item.name, sorted(value))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError("layers_to_transform does not go with a regular expression in target_modules; use a list")
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern needs layers_to_transform to be given too")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Read the config of an erasure that the guard passes; see `PeftConfig.from_pretrained`.

        PEFT calls it for whatever it loads, so that `PeftModel.from_pretrained` and `load_adapter` ask the guard too.

        Raises:
            GuardError: The guard refuses it.
            ValueError: There is no erasure.
        """
        if cls.trusted:
            return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        from .guard import passed

        told = {key: value for key, value in kwargs.items() if key in OF_A_SOURCE and value is not None}
        return passed(pretrained_model_name_or_path, subfolder=subfolder, **told).settings()

    def replaced(self, **changes: Any) -> UniEraseConfig:
        """A copy with other values of some fields, which was read from the same file."""
        copy = replace(self, **changes)
        copy.from_file, copy.trusted = self.from_file, self.trusted
        copy.inspection, copy.checked_on = self.inspection, self.checked_on
        return copy

    def split(self) -> list[UniEraseConfig]:
        """The erasures in it, each as a config of its own: itself, unless several were fused."""
        if not self.parts:
            return [self]
        return [
            self.replaced(parts=[], **{key: value for key, value in part.items() if key != "name"})
            for part in self.parts
        ]

    def rank_of(self, name: str) -> int:
        """Rank of the edit of one module, of which this erasure edits some."""
        return self.rank_pattern.get(get_pattern_key(self.rank_pattern, name), self.r)

    @property
    def tokens(self) -> list[tuple[int, str]]:
        """Id and text of its token, or of all where several erasures were fused."""
        return [(part.token_id, part.token) for part in self.split() if part.token_id is not None]
