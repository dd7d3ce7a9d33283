"""The tuner: puts edits and token rows into a model, and is to PEFT what `LoraModel` is for LoRA."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import InputError, StateError
from ..lm.structure import find_token_modules
from .config import AdapterConfig
from .edit import EditLayer
from .fingerprint import check_base
from .stacked import free_tokens, taken_tokens
from .swap import SwappingLayer, off_while_named
from .switch import Switch
from .take_back import check_loaded, parameters_of, take_back, take_off
from .targets import PREFIX, check_adapter_name, check_targets, check_unwrapped, default_targets, is_target, layer_class
from .undo import MERGED_TOKENS, merged_tokens

BASE = "__base__"  # what PEFT calls a row of a mixed batch without an adapter


def _off_elsewhere(other: threading.Thread) -> str:
    return (
        f"thread {other.name!r} has switched the adapters off, which holds for all threads until it switches them on "
        f"again; to ask the base from several threads, give `adapter_names=[{BASE!r}, …]`, which holds for one call"
    )


class UniEraseModel(BaseTuner):
    """A model with UniErase adapters (arXiv 2505.15674).

    Args:
        model ([`~transformers.PreTrainedModel`]): The model to erase from.
        config ([`UniEraseConfig`]): Configuration of the first adapter.
        adapter_name (`str`): Its name.
        low_cpu_mem_usage (`bool`, *optional*): Make empty adapter weights on the meta device, for faster loading.

    Example:

        ```py
        >>> import peft_unierase
        >>> from peft import PeftModel
        >>> from transformers import AutoModelForCausalLM

        >>> base = AutoModelForCausalLM.from_pretrained("org/base")
        >>> model = PeftModel.from_pretrained(base, "org/erase-xyz")
        >>> with model.disable_adapter():  # the base, to the bit
        ...     logits = model(**inputs).logits
        ```
    """

    prefix = PREFIX
    tuner_layer_cls = SwappingLayer
    _check_target_module_exists = staticmethod(is_target)
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (as in the base class)

    def __init__(
        self, model: nn.Module, config: Any, adapter_name: str, low_cpu_mem_usage: bool = False, **told: Any
    ) -> None:
        check_unwrapped(model)  # here, because what follows writes into the configurations of a wrapped model
        layers = (module for module in model.modules() if isinstance(module, SwappingLayer))
        self.switch = next((layer.switch for layer in layers), Switch())
        super().__init__(model, config, adapter_name, low_cpu_mem_usage, **told)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; see `BaseTuner.inject_adapter`. What can be refused is refused before it is changed."""
        check_adapter_name(adapter_name)
        config = self.peft_config[adapter_name]
        config.exactly = None
        if config.target_modules is None:
            config.target_modules = default_targets(model, config)
        if config.token_id is not None and config.token_modules is None:
            config.token_modules = find_token_modules(model)
        config = _maybe_include_all_linear_layers(config, model)
        config.check_on(model)
        before = {module for module in model.modules() if isinstance(module, SwappingLayer)}
        config = free_tokens(config, taken_tokens(before))
        named = check_targets(model, config)
        check_base(model, config)
        if not isinstance(config.target_modules, str) and {*config.target_modules} != {*named}:
            # Each by its full name: of an end of a name nobody can tell from the files what it puts an edit on.
            config.target_modules = named
        self.peft_config[adapter_name] = config
        config.exactly, config.inspection = frozenset(named), None
        targets = config.target_modules
        with self.switch.change(own=True):
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            except BaseException:
                take_back(model, adapter_name, before)
                self.peft_config.pop(adapter_name, None)
                raise
            self.switch.watch(model)
        config.target_modules = targets  # PEFT shortens a long list to ends of names, of which no base can be told

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that are on; none while all are switched off."""
        if self.is_off() and not self.switch.own_change:
            return []
        return self._chosen()

    def _chosen(self) -> list[str]:
        """Those that are on, or would be if not all were switched off."""
        return [self.active_adapter] if isinstance(self.active_adapter, str) else list(self.active_adapter)

    def is_off(self) -> bool:
        """Whether all adapters are switched off, whichever were on."""
        return self.switch.first is not None and self.switch.first.disable_adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Switch on these adapters and no other; see `BaseTuner.set_adapter`. An empty list gives the base.

        Raises:
            ValueError: There is none of a name, two cannot be on together, or all adapters are switched off, so that
                those that are named would not be on.
            RuntimeError: Adapters are merged, and another thread is in a forward pass of the model.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        layers = self._layers()
        with self.switch.change("switch merged adapters" if any(layer.merged for layer in layers) else ""):
            if missing := [name for name in names if name not in self.peft_config]:
                there = ", ".join(map(repr, self.peft_config))
                raise InputError(f"the model has no adapter {missing[0]!r}; it has {there}")
            if names and self.is_off() and not self.switch.own_change:
                raise InputError(off_while_named(names))
            for layer in layers:
                layer.check_together(names)
            if names:
                super().set_adapter(adapter_name, inference_mode)
            else:  # which PEFT's own function refuses where modules are saved whole
                for module in self.model.modules():
                    if isinstance(module, SwappingLayer) and module.merged:
                        module.unmerge()
                    if isinstance(module, SwappingLayer | AuxiliaryTrainingWrapper):
                        module.set_adapter([], inference_mode=inference_mode)
            self.active_adapter = adapter_name if names else []

    def enable_adapter_layers(self) -> None:
        """Switch on the adapters that were on before `disable_adapter_layers`.

        Raises:
            RuntimeError: Another thread has switched them off, and this one was refused when it tried that too. PEFT's
                `disable_adapter()` switches on what it saw on when it began, even if it was refused then.
        """
        with self.switch.change():
            other = self._switched_off_elsewhere()
            if other is not None and get_ident() in self.switch.refused:
                self.switch.refused.discard(get_ident())
                raise StateError(_off_elsewhere(other))
            super().enable_adapter_layers()
            self.switch.off_by = None
            self.switch.refused.clear()

    def disable_adapter_layers(self) -> None:
        """Switch off all adapters, for all threads; PEFT's `disable_adapter()` does it for a `with` block.

        Raises:
            RuntimeError: Another thread has done so. The first of the two to leave its block would switch them on in
                the other's too.
        """
        with self.switch.change():
            if (other := self._switched_off_elsewhere()) is not None:
                self.switch.refused.add(get_ident())
                raise StateError(_off_elsewhere(other))
            super().disable_adapter_layers()
            self.switch.off_by = threading.current_thread()

    def _switched_off_elsewhere(self) -> threading.Thread | None:
        """The other thread that keeps the adapters switched off, if there is one."""
        other = self.switch.off_by
        if other is None or other is threading.current_thread() or not other.is_alive() or not self.is_off():
            return None
        return other

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out; see `BaseTuner.delete_adapter`.

        Raises:
            RuntimeError: Another thread is in a forward pass of the model.
        """
        with self.switch.change(alone="delete an adapter", own=True):
            super().delete_adapter(adapter_name)
            owner = self.switch.owner()
            if owner is not None and owner.active_adapter == adapter_name and self.peft_config:
                # `PeftModel` looks up this name at each call, and gives it another only if just one is on.
                owner.active_adapter = next(iter(self.peft_config))
            # PEFT makes those trainable that stay on or come in its place.
            if frozen := [name for name in self._chosen() if self.peft_config[name].inference_mode]:
                self.set_requires_grad(frozen, False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base's weights; see `BaseTuner.merge_adapter`.

        Raises:
            ValueError: No adapter is on and none is named, one cannot be merged, or two cannot be on together.
            RuntimeError: Another thread is in a forward pass of the model.
        """
        with self.switch.change(alone="merge"):
            self._check_something_to_merge(adapter_names)
            super().merge_adapter(adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Give the base its own weights back.

        Raises:
            RuntimeError: Another thread is in a forward pass of the model.
        """
        with self.switch.change(alone="unmerge"):
            super().unmerge_adapter()

    def _check_something_to_merge(self, adapter_names: list[str] | None) -> None:
        chosen = self._chosen() if adapter_names is None else adapter_names
        if not chosen and not any(layer.merged for layer in self._layers()):
            raise InputError(
                "no adapter is on, so there is nothing to merge and what came of it would be the base; switch one on "
                "with `set_adapter`, or name those to merge in `adapter_names`"
            )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        with self.switch.change(alone="unload"):
            base = super()._unload_and_optionally_merge(*args, **kwargs)
            self.switch.unwatch()
        return base

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """One state for a whole call, of `generate` too, whatever other threads switch meanwhile.

        Mixed batches: `adapter_names` says for each row of the batch which adapter is at work, `"__base__"` for none
        and `"a+b"` for two.

        Raises:
            ValueError: The model is in training mode, adapters are merged or all switched off, or there is none of a
                name.
        """
        names = kwargs.get("adapter_names")
        if names is None and torch.compiler.is_compiling():
            yield
            return
        with self.switch.whole_call(None if names is None else partial(self._adapters_of_rows, names)):
            yield

    def _layers(self) -> list[SwappingLayer]:
        return [module for module in self.model.modules() if isinstance(module, SwappingLayer)]

    def _adapters_of_rows(self, names: Sequence[str]) -> list[list[str]]:
        layers = self._layers()
        if self.training:
            raise InputError(
                "Cannot pass `adapter_names` when the model is in training mode; call `model.eval()` first"
            )
        if any(layer.merged for layer in layers):
            raise InputError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        rows = [[] if name == BASE else [name] if name in self.peft_config else name.split("+") for name in names]
        if unknown := sorted({name for row in rows for name in row} - self.peft_config.keys()):
            raise InputError(
                f"`adapter_names` names {unknown[0]!r}, which the model does not have; it has "
                f"{', '.join(map(repr, self.peft_config))}, and {BASE!r} stands for none"
            )
        if (named := [name for row in rows for name in row]) and self.is_off():
            raise InputError(off_while_named(list(dict.fromkeys(named))))
        for layer in layers:
            for row in rows:
                layer.check_together(row)
        return rows

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        kind = layer_class(peft_config, base, current_key)
        told: dict[str, Any] = {}
        if kind is EditLayer:
            holders = [part for part in peft_config.split() if is_target(part, current_key)]
            told["rank"] = sum(part.rank_of(current_key) for part in holders)
        if isinstance(target, SwappingLayer):
            target.update_layer(adapter_name, peft_config, **told)
            return
        layer = kind(target, adapter_name, peft_config, **told)
        layer.switch = self.switch
        self.switch.first = self.switch.first or layer
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        # Not by `_replace_module`, which moves an adapter to where the base weight is: nowhere, if that is offloaded.
        setattr(parent, target_name, layer)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        own = list(parameters_of(self.model, adapter_name))
        if all(parameter.dtype == torch.float32 for _, parameter in own):
            return
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        # PEFT's cast makes new parameters, and new parameters are trainable: a frozen adapter has to stay frozen.
        for name, parameter in own:
            self.model.get_parameter(name).requires_grad_(parameter.requires_grad)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The weights that were read, by the names that they have in the model; see `BaseTuner`.

        Raises:
            ValueError: The adapter was read from files, and they are not what was put on the model. It is off again.
        """
        own = dict(parameters_of(model, adapter_name))
        stored = {name.removesuffix(f".{adapter_name}"): name for name in own}
        prefix = "base_model.model."
        # A model that PEFT has injected layers into without wrapping it has names without the prefix.
        stored |= {f"{prefix}{short}": name for short, name in stored.items() if not short.startswith(prefix)}
        loaded = {stored.get(key, key): value for key, value in state_dict.items()}
        if config.from_file and not config.trusted:
            try:
                check_loaded(own, loaded)
            except ValueError:
                take_off(model, adapter_name)
                raise
        return loaded

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        # Every layer is asked before the first one merges, so that a refusal leaves no half-merged model behind.
        for module in self.model.modules():
            if isinstance(module, SwappingLayer):
                module.check_mergeable()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge adapters into the base and return it; see `BaseTuner.merge_and_unload`.

        Its config then names the tokens of the merged erasures in `unierase_tokens`, `[id, text]` each: their rows look
        like any other unused ones and are in use.
        """
        self._check_something_to_merge(adapter_names)
        names = {*(self._chosen() if adapter_names is None else adapter_names)}
        names |= {
            name
            for module in self.model.modules()
            if isinstance(module, SwappingLayer)
            for name in module.merged_adapters
        }
        tokens = [pair for name in names if name in self.peft_config for pair in self.peft_config[name].tokens]
        there = merged_tokens(self.model) if tokens and hasattr(self.model, "config") else []
        merged = super().merge_and_unload(progressbar, safe_merge, adapter_names)
        config = getattr(merged, "config", None)
        if tokens and config is not None:
            setattr(config, MERGED_TOKENS, [list(pair) for pair in sorted({*there, *tokens})])
        return merged

    def unload(self) -> nn.Module:
        """Take all adapters out and return the base.

        Raises:
            ValueError: Adapters are merged, so that what is left would not be the base.
        """
        if any(module.merged for module in self.model.modules() if isinstance(module, SwappingLayer)):
            raise InputError(
                "adapters are merged: call unmerge_adapter() first to get the base back, or merge_and_unload() for the "
                "merged model"
            )
        return super().unload()

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        # PEFT warns here that merging breaks tied embeddings. Ours does not: each matrix gets a weight of its own.
        return []
