"""Several erasures in one model: load them, switch them on and off, bring the tokenizer into line.

PEFT's own ways work too (`load_adapter`, `base_model.set_adapter([...])`, `disable_adapter`); these check first, so
that a refusal leaves everything as it was.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ..errors import InputError
from ..plain import check_plain_folder
from .guard import guarded
from .model import check_adapter_name, check_unwrapped
from .swap import SwappingLayer
from .vocabulary import add_special_tokens

OF_A_SOURCE = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")


def load(
    base: nn.Module,
    erasures: str | Path | Sequence[str | Path] | Mapping[Any, bool],
    *,
    trust: bool = False,
    **told: Any,
) -> PeftModel:
    """Load erasures onto one base, each under the last part of its name.

    The guard looks at the files of all of them and at the base first, and what is loaded is what it has looked at.

    Args:
        base: The model that they were made from.
        erasures: Folders or Hub ids: one, several, or which of them are to be on.
        trust: Load what the guard refuses. An erasure that cannot be loaded, or not onto this base, still fails.
        **told: Further arguments of `PeftModel.from_pretrained` and `load_adapter`, for instance `revision`.

    Returns:
        The `PeftModel`, in eval mode. `list(model.peft_config)` are the names.

    Raises:
        GuardError: The guard refuses one; nothing was loaded.
        ValueError: There are none, the base is a `PeftModel` (the message says how the two go together), or one cannot
            be loaded or be on together with another; the base is as it was.

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
        raise ValueError("there are no erasures to load; name at least one")
    check_unwrapped(base)
    named: dict[str, Any] = {}
    for source in wanted:
        named[adapter_name(str(source), named)] = source
    places = dict(named)
    if trust:
        for source in wanted:
            check_plain_folder(source)
    else:
        where = {key: told.pop(key) for key in OF_A_SOURCE if key in told}
        places = {name: guarded(source, base, **where) for name, source in named.items()}
    model: Any = None
    # PEFT takes an offloaded base apart and distributes it anew, with hooks that lose the erasure.
    device_map = vars(base).pop("hf_device_map", None)
    try:
        for name, place in places.items():
            if model is None:
                model = PeftModel.from_pretrained(base, str(place), adapter_name=name, **told)
            else:
                model.load_adapter(str(place), adapter_name=name, **told)
        set_active(model, [name for name, source in named.items() if wanted[source]])
    except BaseException as error:
        # Not by `unload`: where the first one's weights cannot be read, there is no `PeftModel` yet.
        for name, layer in [pair for pair in base.named_modules() if isinstance(pair[1], SwappingLayer)]:
            base.set_submodule(name, layer.get_base_layer())
        vars(base).pop("peft_config", None)
        if isinstance(error, ValueError | OSError) or not isinstance(error, Exception):
            raise
        raise InputError(f"{name} cannot be loaded: {type(error).__name__}: {error}".split("\n")[0]) from error
    finally:
        if device_map is not None:
            base.hf_device_map = device_map
    return model.eval()


def set_active(model: PeftModel, names: Sequence[str]) -> None:
    """Switch on these erasures and no other; none of them gives the base.

    Raises:
        ValueError: There is none of a name, or two cannot be on together; nothing is changed then.
    """
    names = [names] if isinstance(names, str) else list(names)
    check_together(model, names)
    if names:
        model.base_model.enable_adapter_layers()
        model.base_model.set_adapter(names, inference_mode=True)
    else:
        model.base_model.disable_adapter_layers()


def check_together(model: PeftModel, names: list[str]) -> None:
    """Raise `ValueError` if the model has no adapter of a name, or two of them cannot be on together."""
    if missing := [name for name in names if name not in model.peft_config]:
        raise ValueError(f"the model has no adapter {missing[0]!r}; it has {', '.join(map(repr, model.peft_config))}")
    for module in model.modules():
        if isinstance(module, SwappingLayer):
            module.check_together(names)


def toggle(model: PeftModel, name: str, on: bool | None = None) -> None:
    """Switch one erasure on or off, or over where `on` is `None`; the others stay as they are.

    Raises:
        ValueError: See [`set_active`].
    """
    now = active(model)
    if name in now and not on:
        now.remove(name)
    elif name not in now and (on is None or on or name not in model.peft_config):
        now.append(name)
    set_active(model, now)


def active(model: PeftModel) -> list[str]:
    """The erasures that are on."""
    off = any(module.disable_adapters for module in model.modules() if isinstance(module, SwappingLayer))
    return [] if off else list(model.active_adapters)


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
