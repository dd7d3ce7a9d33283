"""The config of an erasure as PEFT reads it: of files that the guard passes."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..adapter.config import AdapterConfig
from ..errors import InputError
from .base import check_declared
from .findings import GuardError
from .inspect import Inspection, passed

OF_A_SOURCE = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")


class UniEraseConfig(AdapterConfig):
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
        fused (`list[dict]`): Erasures that were fused into this one, each with its `name` and its own values of the
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

    @classmethod
    def of(cls, inspection: Inspection) -> UniEraseConfig:
        """The config of an erasure that the guard has looked at, to load it with just that.

        Raises:
            ValueError: It is none.
        """
        declared = inspection.declared
        if declared is None:
            raise InputError(f"the config of {inspection.folder} is none of an erasure; `unierase inspect` says why")
        config = cls.__new__(cls)  # with values that were checked when `declared` was made
        for name, value in vars(declared).items():
            setattr(config, name, value)
        config.inspection, config.checked_on = inspection, None
        return config

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
        told = {key: value for key, value in kwargs.items() if key in OF_A_SOURCE and value is not None}
        return cls.of(passed(pretrained_model_name_or_path, subfolder=subfolder, **told))

    def check_on(self, model: nn.Module, source: str | None = None) -> None:
        """Hold an erasure that was read from files against the base, unless that was done.

        Args:
            model: The base.
            source: What an error calls the erasure.

        Raises:
            GuardError: The guard refuses it.
        """
        if self.trusted or not self.from_file or self.checked_on == id(model):
            return
        if findings := check_declared(model, self):
            found = self.inspection.folder if self.inspection else "the erasure"
            raise GuardError(source or str(found), findings)
        self.checked_on = id(model)
