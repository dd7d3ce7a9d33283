"""UniErase as a PEFT plugin: make a language model decline on chosen knowledge and leave the rest alone.

Importing this package registers the PEFT type `UNIERASE`, so that `PeftModel.from_pretrained(base, "org/erase-xyz")`
loads an erasure. The public verbs are loaded when they are first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .adapter.active import align_tokenizer, set_active, toggle
    from .adapter.fingerprint import BaseWarning
    from .adapter.model import UniEraseModel
    from .checking import check
    from .data import FactWarning, read_facts
    from .data.facts import Fact, FactError
    from .engine import DistillSettings, Erasure, PaperSettings, erase
    from .engine.spare_row import NoSpareRowError
    from .errors import (
        ErasureWarning,
        InputError,
        MissingPackageError,
        ProcessError,
        StateError,
        UniEraseError,
        WrongTypeError,
    )
    from .guard import GuardError, Inspection, UniEraseConfig, load
    from .guard.inspect import inspect
    from .hub import merge, push_erasure, stack
    from .lm.structure import UnsupportedModelError
    from .planning import plan, ramp
    from .records.ledger import LedgerError
    from .records.restore import restore
    from .records.verify import verify
    from .retain.sample_files import Samples, read_samples
    from .storage.plain import JsonError, NotPlainError

# Where each public name is found: a room or file of the package.
_HOMES = {
    "BaseWarning": "adapter.fingerprint",
    "DistillSettings": "engine",
    "Erasure": "engine",
    "ErasureWarning": "errors",
    "Fact": "data.facts",
    "FactError": "data.facts",
    "FactWarning": "data",
    "GuardError": "guard",
    "InputError": "errors",
    "Inspection": "guard",
    "JsonError": "storage.plain",
    "LedgerError": "records.ledger",
    "MissingPackageError": "errors",
    "NoSpareRowError": "engine.spare_row",
    "NotPlainError": "storage.plain",
    "PaperSettings": "engine",
    "ProcessError": "errors",
    "Samples": "retain.sample_files",
    "StateError": "errors",
    "UniEraseConfig": "guard",
    "UniEraseError": "errors",
    "UniEraseModel": "adapter.model",
    "UnsupportedModelError": "lm.structure",
    "WrongTypeError": "errors",
    "align_tokenizer": "adapter.active",
    "check": "checking",
    "erase": "engine",
    "inspect": "guard.inspect",
    "load": "guard",
    "merge": "hub",
    "plan": "planning",
    "push_erasure": "hub",
    "ramp": "planning",
    "read_facts": "data",
    "read_samples": "retain.sample_files",
    "restore": "records.restore",
    "set_active": "adapter.active",
    "stack": "hub",
    "toggle": "adapter.active",
    "verify": "records.verify",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})


# The command registers the type when it loads PEFT, which its `--help` shall not wait for.
if "unierase_command" not in sys.modules:
    import_module(".guard", __name__).register()
