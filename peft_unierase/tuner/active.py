"""Several erasures in one model: load them, switch them on and off, bring the tokenizer into line.

PEFT's own ways work too (`load_adapter`, `base_model.set_adapter([...])`, `disable_adapter`); these check first, so
that a refusal leaves everything as it was.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from ..errors import InputError, UniEraseError
from ..storage.plain import check_plain_folder
from ..storage.source import resolve
from .config import OF_A_SOURCE
from .guard import passed
from .model import check_adapter_name, check_unwrapped, unwrap
from .swap import SwappingLayer, off_while_named
from .vocabulary import add_special_tokens

OF_ADDING = ("low_cpu_mem_usage", "autocast_adapter_dtype")


def load(
    base: nn.Module,
    erasures: str | Path | Sequence[str | Path] | Mapping[Any, bool],
    *,
    names: Sequence[str | Path] | None = None,
    trust: bool = False,
    **told: Any,
) -> PeftModel:
    """Load erasures onto one base, each under the last part of its name.

    The guard looks at the files of all of them and at the base first, and what is loaded is what it has looked at.

    Args:
        base: The model that they were made from.
        erasures: Folders or Hub ids: one, several, or which of them are to be on.
        names: Other names for them, in their order.
        trust: Load what the guard refuses. An erasure that cannot be loaded, or not onto this base, still fails.
        **told: Further arguments of `PeftModel.from_pretrained` and `load_adapter`, for instance `revision`.

    Returns:
        The `PeftModel`, in eval mode. `list(model.peft_config)` are the names.

    Raises:
        GuardError: The guard refuses one; nothing was loaded.
        ValueError: There are none, or not as many names, the base is a `PeftModel` (the message says how the two go
            together), or one cannot be loaded or be on together with another; the base is as it was.

    Example:

        ```py
        >>> model = load(base, {"org/erase-a": True, "org/erase-b": False})
        >>> toggle(model, "erase-b", on=True)
        >>> align_tokenizer(tokenizer, model)
        ```
    """
    if isinstance(erasures, str | Path):
        erasures = [erasures]
    wanted = dict(erasures) if isinstance(erasures, Mapping) else dict.fromkeys(erasures, True)
    if not wanted:
        raise InputError("there are no erasures to load; name at least one")
    if names is not None and len(names) != len(wanted):
        raise InputError(f"there are {len(wanted)} different erasures and {len(names)} names; give one name for each")
    check_unwrapped(base)
    named: dict[str, Any] = {}
    for source, name in zip(wanted, names or wanted, strict=True):
        named[adapter_name(str(name), named)] = source
    where = {key: told.pop(key) for key in OF_A_SOURCE if key in told}
    # Found once and loaded from there, so that config and weights are of one commit, and those that were looked at.
    if trust:
        places = {name: resolve(source, **where).folder for name, source in named.items()}
        for place in places.values():
            check_plain_folder(place)
        configs = {name: _trusted(place) for name, place in places.items()}
    else:
        found = {name: passed(source, base, **where) for name, source in named.items()}
        places = {name: each.folder for name, each in found.items()}
        configs = {name: each.settings() for name, each in found.items()}
    model: Any = None
    # PEFT takes an offloaded base apart and distributes it anew, with hooks that lose the erasure.
    device_map = vars(base).pop("hf_device_map", None)
    try:
        for name, place in places.items():
            if model is None:
                model = PeftModel.from_pretrained(base, str(place), adapter_name=name, config=configs[name], **told)
            else:
                configs[name].inference_mode = not told.get("is_trainable", False)
                casting = {key: told[key] for key in OF_ADDING if key in told}
                model.add_adapter(name, configs[name], **casting)
                model.load_adapter(str(place), adapter_name=name, **told)
        set_active(model, [name for name, source in named.items() if wanted[source]])
    except BaseException as error:
        # Not by `unload`: where the first one's weights cannot be read, there is no `PeftModel` yet.
        unwrap(base)
        if isinstance(error, UniEraseError | ValueError | OSError) or not isinstance(error, Exception):
            raise
        raise InputError(f"{name} cannot be loaded: {type(error).__name__}: {error}".split("\n")[0]) from error
    finally:
        if device_map is not None:
            base.hf_device_map = device_map
    return model.eval()


def _trusted(place: Path) -> Any:
    """The config of an adapter that the guard is not asked about."""
    config: Any = PeftConfig.from_pretrained(str(place))
    config.trusted = True
    return config


def set_active(model: PeftModel, names: Sequence[str]) -> None:
    """Switch on these erasures and no other; none of them gives the base.

    Passes that other threads have begun keep the state that they began with.

    Raises:
        ValueError: There is none of a name, two cannot be on together, or it is inside `disable_adapter()`, where none
            can be on; nothing is changed then.
        RuntimeError: Erasures are merged, and another thread is in a forward pass of the model.
    """
    names = [names] if isinstance(names, str) else list(names)
    with model.base_model.switch.change():
        if model._adapters_disabled and names:
            raise InputError(off_while_named(names))
        if model.base_model.is_off() and not model._adapters_disabled:
            check_together(model, names)
            model.base_model.enable_adapter_layers()
        model.base_model.set_adapter(names, inference_mode=True)
        model.base_model.switch.owner = weakref.ref(model)
        model.active_adapter = names[0] if names else model.active_adapter


def check_together(model: PeftModel, names: list[str]) -> None:
    """Raise `ValueError` if the model has no adapter of a name, or two of them cannot be on together."""
    if missing := [name for name in names if name not in model.peft_config]:
        raise InputError(f"the model has no adapter {missing[0]!r}; it has {', '.join(map(repr, model.peft_config))}")
    for module in model.modules():
        if isinstance(module, SwappingLayer):
            module.check_together(names)


def toggle(model: PeftModel, name: str, on: bool | None = None) -> None:
    """Switch one erasure on or off, or over where `on` is `None`; the others stay as they are.

    Raises:
        ValueError: See [`set_active`].
    """
    with model.base_model.switch.change():  # so that none is lost if two threads do this at once
        now = active(model)
        if name in now and not on:
            now.remove(name)
        elif name not in now and (on is None or on or name not in model.peft_config):
            now.append(name)
        set_active(model, now)


def active(model: PeftModel) -> list[str]:
    """The erasures that are on."""
    on = model.base_model.active_adapters
    layers = [module for module in model.modules() if isinstance(module, SwappingLayer)]
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters if on)) or on


def align_tokenizer(tokenizer: Any, model: PeftModel) -> None:
    """Make the token of every erasure in the model a special token of the tokenizer, under the id that it has there, so
    that `skip_special_tokens=True` hides them all.

    Raises:
        RuntimeError: The tokenizer gave a token another id; nothing can be decoded rightly then.
    """
    configs = model.peft_config.values()
    add_special_tokens(tokenizer, {pair for config in configs for pair in getattr(config, "tokens", [])})


def adapter_name(source: str, taken: Container[str]) -> str:
    """The last part of a path or Hub id, made into a name that PEFT takes and that is not taken."""
    name = re.sub(r"[^\w-]", "-", Path(source).name) or "erasure"
    try:
        check_adapter_name(name)
    except ValueError:
        name = f"erasure-{name}"
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    return free
