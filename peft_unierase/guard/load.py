"""Loading erasures that the guard passes: config and weights are those that it has looked at."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from ..adapter.active import set_active
from ..adapter.fingerprint import check_base
from ..adapter.take_back import unwrap
from ..adapter.targets import check_adapter_name, check_unwrapped
from ..adapter.token_row import resize_vocabulary
from ..errors import InputError, UniEraseError, in_one_line
from ..storage.names import WEIGHTS_NAME
from ..storage.plain import check_plain_folder
from ..storage.source import resolve
from .base import MAX_GROWTH
from .config import OF_A_SOURCE, UniEraseConfig
from .files import PICKLED
from .findings import ANEW
from .inspect import passed

OF_ADDING = ("low_cpu_mem_usage", "autocast_adapter_dtype")


def load(
    base: Any,
    erasures: str | Path | Sequence[str | Path] | Mapping[Any, bool],
    *,
    names: Sequence[str | Path] | None = None,
    trust: bool = False,
    allow_resize: bool = False,
    **told: Any,
) -> PeftModel:
    """Load erasures onto one base, each under the last part of its name.

    The guard looks at the files of all of them and at the base first, and what is loaded is what it has looked at.

    Args:
        base: The model that they were made from.
        erasures: Folders or Hub ids: one, several, or which of them are to be on.
        names: Other names for them, in their order.
        trust: Load what the guard refuses. An erasure that cannot be loaded, or not onto this base, still fails.
        allow_resize: Let the base's vocabulary grow by the rows of erasures for which it had grown.
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
    found = {name: candidate(source, trust, **where) for name, source in named.items()}
    on = [name for name, source in named.items() if wanted[source]]
    return put_on(base, found, on, allow_resize=allow_resize, **told)


@dataclass(frozen=True)
class Candidate:
    """An erasure that may be loaded onto its base: the guard passes its files, or it is trusted.

    Found once and loaded from there, config and weights are of one commit, and those that were looked at.

    Attributes:
        source: What it was called: a folder or a Hub id.
        folder: Where it is on this machine.
        config: Its config.
    """

    source: str
    folder: Path
    config: Any


def candidate(source: str | Path, trust: bool = False, **where: Any) -> Candidate:
    """Find an erasure, and ask the guard about its files unless it is trusted.

    Args:
        source: A folder or a Hub id.
        trust: Do not ask the guard.
        **where: See [`resolve`].

    Raises:
        GuardError: The guard refuses it.
        ValueError: There is no erasure.
    """
    if not trust:
        inspection = passed(source, **where)
        return Candidate(str(source), inspection.folder, UniEraseConfig.of(inspection))
    folder = resolve(source, **where).folder
    check_plain_folder(folder)
    return Candidate(str(source), folder, _trusted(folder))


def put_on(
    base: Any,
    erasures: Mapping[str, Candidate],
    on: Sequence[str] | None = None,
    *,
    allow_resize: bool = False,
    **told: Any,
) -> PeftModel:
    """Hold erasures against their base and load them; see [`load`].

    Args:
        base: The model that they were made from.
        erasures: By the names that they get.
        on: Names of those that are to be on; by default all.
        allow_resize: See [`load`].
        **told: See [`load`].

    Raises:
        GuardError: The guard refuses one on this base; nothing was loaded.
        ValueError: One cannot be loaded or be on together with another; the base is as it was.
    """
    for erasure in erasures.values():
        erasure.config.check_on(base, erasure.source)
    configs = {name: erasure.config for name, erasure in erasures.items()}
    rows = base.get_input_embeddings().weight.shape[0] if allow_resize else None
    model: Any = None
    # PEFT takes an offloaded base apart and distributes it anew, with hooks that lose the erasure.
    device_map = vars(base).pop("hf_device_map", None)
    try:
        if allow_resize:
            resize_for(base, {erasure.source: erasure.config for erasure in erasures.values()})
        for name, erasure in erasures.items():
            place = str(erasure.folder)
            with _said_of(erasure.source, len(erasures)):
                if model is None:
                    model = PeftModel.from_pretrained(base, place, adapter_name=name, config=configs[name], **told)
                else:
                    configs[name].inference_mode = not told.get("is_trainable", False)
                    casting = {key: told[key] for key in OF_ADDING if key in told}
                    model.add_adapter(name, configs[name], **casting)
                    model.load_adapter(place, adapter_name=name, **told)
        set_active(model, list(erasures) if on is None else on)
    except BaseException as error:
        # Not by `unload`: where the first one's weights cannot be read, there is no `PeftModel` yet.
        unwrap(base)
        if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
            resize_vocabulary(base, rows)
        if isinstance(error, UniEraseError | OSError) or not isinstance(error, Exception):
            raise
        raise InputError(_unloadable(erasures[name].source, error)) from error
    finally:
        if device_map is not None:
            base.hf_device_map = device_map
    return model.eval()


@contextmanager
def _said_of(source: str, count: int) -> Iterator[None]:
    """Say of which erasure an error speaks, if there are several."""
    try:
        yield
    except InputError as error:
        if count == 1 or type(error) is not InputError:  # a guard's error has the name
            raise
        raise InputError(f"{source}: {error}") from error


def resize_for(model: Any, configs: Mapping[str, Any]) -> None:
    """Let the vocabulary grow by the rows of erasures for which it had grown.

    Args:
        model: The base.
        configs: Those of the erasures, by what names them.

    Raises:
        ValueError: The base is not the one that they were made for, or would have to grow by many rows; it is as it
            was.
    """
    needed = max((token_id for config in configs.values() for token_id, _ in config.tokens), default=-1) + 1
    rows = model.get_input_embeddings().weight.shape[0]
    if needed <= rows:
        return
    for name, config in configs.items():
        with _said_of(name, len(configs)):
            check_base(model, config)
    if needed > rows + MAX_GROWTH:
        raise InputError(
            f"an erasure has its token on row {needed - 1:,} and the base has {rows:,} rows, more than {MAX_GROWTH} "
            "fewer: it was made for another base"
        )
    resize_vocabulary(model, needed)


def _trusted(place: Path) -> Any:
    """The config of an adapter that the guard is not asked about."""
    try:
        config: Any = PeftConfig.from_pretrained(str(place))
    except UniEraseError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # whatever PEFT makes of what is in it
        raise InputError(_unloadable(str(place), error)) from error
    if not isinstance(config, UniEraseConfig):
        raise InputError(f"{place} is an adapter of type {config.peft_type.value}, not an erasure")
    if not any((place / name).is_file() for name in (WEIGHTS_NAME, PICKLED)):  # PEFT would look for it on the Hub
        raise InputError(f"{place} has no weights: {WEIGHTS_NAME} is missing; {ANEW}")
    config.trusted = True
    return config


def _unloadable(name: str, error: Exception) -> str:
    """What an error of PEFT's, or of another library, says of an adapter, in one line."""
    return f"{name} cannot be loaded: {type(error).__name__}: {in_one_line(error, 500)}; save it again"


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
