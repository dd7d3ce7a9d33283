"""Where an adapter goes: onto which model, under which name, and onto which of its modules.

All that can be refused is refused here, before anything is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import InputError, WrongTypeError
from ..lm.structure import find_down_projections, projection_shape
from .config import AdapterConfig
from .edit import EditLayer
from .token_row import InputRowLayer, OutputRowLayer, TokenRowLayer, check_token_row

PREFIX = "unierase_"  # of the names of an adapter's parameters


def check_adapter_name(name: str) -> None:
    """Refuse an adapter name that PEFT or torch would stumble over later.

    Raises:
        ValueError: The name is empty, holds a dot, is part of this tuner's parameter prefix, or is an attribute of
            torch's module class.
    """
    reason = None
    if not name:
        reason = "is empty"
    elif "." in name:
        reason = "holds a dot, which separates module names in a state dict"
    elif name in PREFIX:
        reason = f"is part of {PREFIX!r}, the prefix of this tuner's parameters"
    elif hasattr(nn.ParameterDict(), name):
        reason = "is an attribute of torch.nn.ParameterDict"
    if reason:
        raise InputError(f"adapter name {name!r} {reason}; choose another, for instance 'erasure_1'")


def check_unwrapped(model: nn.Module) -> None:
    """Refuse to put an erasure on a model that PEFT has wrapped already, and say how the two go together.

    Raises:
        ValueError: It is a `PeftModel` or a `PeftMixedModel`.
    """
    if not isinstance(model, PeftModel | PeftMixedModel):
        return
    if getattr(model.base_model, "prefix", None) == PREFIX:
        raise InputError(
            "the model is a PeftModel that carries erasures already; put a further one beside them with "
            "`model.load_adapter(ERASURE, NAME)`, or load all of them onto the base with "
            "`peft_unierase.load(base, [ERASURE, …])`"
        )
    configs = list(model.peft_config.values())
    kinds = sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in configs})
    ways = ["merge these adapters (`base = model.merge_and_unload()`) and load the erasure onto the result"]
    if any(config.is_prompt_learning for config in configs):
        ways = ["load the erasure onto the base without them (`model.get_base_model()`)"]
    elif kinds == ["LORA"] and isinstance(model, PeftModel):
        together = [*model.active_adapters, "erasure"]
        ways.insert(
            0,
            'put the erasure\'s LoRA form beside them: `model.load_adapter(ERASURE, "erasure", subfolder="lora")` and '
            f"`model.base_model.set_adapter({together}, inference_mode=True)`",
        )
    why = (
        f"the model is a PeftModel with adapters of type {', '.join(kinds)}, and PEFT holds adapters of one type in a "
        "model, so an erasure (UNIERASE) cannot be loaded onto it as it is"
    )
    raise InputError(f"{why}; {', or '.join(ways)}")


def default_targets(model: nn.Module, config: AdapterConfig) -> list[str]:
    """The down-projections of the layers that a config names, or of all.

    Raises:
        ValueError: The model has no such layer.
    """
    names = find_down_projections(model)
    layers = config.layers_to_transform
    if layers is None:
        return names
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if missing := [index for index in wanted if not 0 <= index < len(names)]:
        raise InputError(f"layers_to_transform names layers {missing}, but the model has layers 0 to {len(names) - 1}")
    return [names[index] for index in wanted]


def check_targets(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Refuse what would end half way, with some layers changed, or leave the erasure without a part of itself.

    Returns:
        Full names of the modules that it edits.

    Raises:
        TypeError: A target is no linear projection, or a module for a token's row has no rows.
        ValueError: The base has no row `token_id`, a module of that row is to be saved whole as well, or a module
            that the erasure names is not there.
    """
    modules = dict(model.named_modules())
    inside = tuple(f"{key}." for key, module in modules.items() if isinstance(module, BaseTunerLayer))
    edits: list[str] = []
    for key, module in modules.items():
        if key.startswith(inside) or not is_target(config, key):
            continue
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if layer_class(config, base, key) is EditLayer:
            edits.append(key)
        else:
            for part in config.split():
                check_token_row(base, part.token_id)
    if config.token_id is None:
        return edits  # edits alone: PEFT's own rules hold

    token_modules = config.token_modules or []
    targets = config.target_modules or []
    missing = [name for name in token_modules if name not in modules]
    if isinstance(targets, list):
        missing += [name for name in targets if not any(is_named(key, [name]) for key in modules)]
    if missing or (targets and not edits):
        raise InputError(
            f"{type(model).__name__} has no modules {missing or targets!r} to put the adapter on: it was made for "
            "another base, or `target_modules` needs another name"
        )
    if saved := [name for name in token_modules if is_named(name, config.modules_to_save or [])]:
        raise InputError(f"{saved} hold [UNL]'s rows, so they cannot be in `modules_to_save` too; take them out")
    return edits


def is_target(config: AdapterConfig, key: str) -> bool | re.Match[str] | None:
    """Whether an adapter puts something on the module of this name."""
    # The embedding and the head are matched here and never through `target_modules`, because PEFT would then save
    # both full matrices.
    if config.token_id is not None and key in (config.token_modules or ()):
        return True
    if config.exactly is not None and key not in config.exactly:
        return False
    return BaseTuner._check_target_module_exists(config, key)


def layer_class(config: AdapterConfig, base: nn.Module, key: str) -> type[EditLayer] | type[TokenRowLayer]:
    """What an adapter puts on a module.

    Raises:
        TypeError: The module is no linear projection, or has no rows of tokens.
    """
    if config.token_id is not None and key in (config.token_modules or ()):
        if isinstance(base, nn.Embedding):
            return InputRowLayer
        if projection_shape(base) is None or isinstance(base, Conv1D):
            raise WrongTypeError(
                f"token module {key!r} is a {type(base).__name__}, which has no rows of tokens; `token_modules` "
                "are the input embedding and the output head"
            )
        return OutputRowLayer
    if isinstance(base, Conv1D) or projection_shape(base):
        return EditLayer
    raise WrongTypeError(
        f"target module {key!r} is a {type(base).__name__}; an edit can be put on a linear projection only. "
        "Check `target_modules`"
    )


def is_named(key: str, names: Iterable[str]) -> bool:
    """Whether the module name `key` is one of `names` or ends in one, which is how PEFT reads a list of targets."""
    return any(f".{key}".endswith(f".{name}") for name in names)
