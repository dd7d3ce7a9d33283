"""A data set on the Hub as rows, by the `datasets` library."""

from __future__ import annotations

import re

from .facts import FactError
from .table import Table, without_blank_end

# A name, and one of its configurations behind a colon.
HUB_NAME = re.compile(r"[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*)?(:[\w.+-]+)?", re.ASCII | re.IGNORECASE)


def read_hub(source: str, split: str, label: str) -> Table:
    """The rows of one split.

    Args:
        source: `org/name`, or `org/name:config`.
        split: As `datasets` takes it.
        label: What messages call the set.

    Raises:
        FactError: The library is missing, the data set cannot be loaded, or the split is empty.
    """
    name, _, config = source.partition(":")
    missing = f"there is no file {source}, and as a Hub data set it"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FactError(
            f'{label}: {missing} needs the package datasets ({error}); pip install "peft-unierase[data]", '
            "or check the path"
        ) from error
    # Whatever goes wrong between here and the Hub, the way out is the same; the cause is kept.
    try:
        loaded = load_dataset(name, config, split=split) if config else load_dataset(name, split=split)
        rows = [dict(row) for row in loaded]
    except Exception as error:
        cause = " ".join(str(error).split())
        raise FactError(
            f"{label}: {missing} cannot be loaded (split {split!r}): {cause}; check the name and the split, name a "
            f"configuration like {name}:{config or 'config'}, or download it and give the file"
        ) from error
    if not rows:
        raise FactError(f"{label} has no rows in split {split!r}; choose another split")
    return Table(f"{label} (split {split!r})", "row", without_blank_end(list(enumerate(rows, 1))))
