"""UniErase as a PEFT plugin: make a language model decline on chosen knowledge and leave the rest alone.

Importing this package registers the PEFT type `UNIERASE`, so that `PeftModel.from_pretrained(base, "org/erase-xyz")`
loads an erasure. The public verbs are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import Any

from .version import __version__

_HOMES = {
    "Erasure": "engine",
    "ErasureWarning": "errors",
    "Fact": "data.facts",
    "FactError": "data.facts",
    "FactWarning": "data",
    "DistillSettings": "engine",
    "GuardError": "guard",
    "PaperSettings": "engine",
    "Samples": "retain.sample_files",
    "UniEraseConfig": "guard",
    "UniEraseError": "errors",
    "UniEraseModel": "adapter.model",
    "align_tokenizer": "adapter.active",
    "erase": "engine",
    "load": "guard",
    "push_erasure": "hub",
    "read_facts": "data",
    "read_samples": "retain.sample_files",
    "set_active": "adapter.active",
    "stack": "hub",
    "toggle": "adapter.active",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# The `unierase` command passes through here too, and its `--help` shall not wait for torch; it registers later.
if PurePath(sys.argv[0] if sys.argv else "").name not in ("unierase", "unierase.exe"):
    importlib.import_module(".guard", __name__).register()
