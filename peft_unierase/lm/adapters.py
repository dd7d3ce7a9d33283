"""A PEFT adapter where a base model was wanted: what it is, and what to give instead."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..storage.names import CONFIG_NAME, MODEL_NAME
from ..storage.plain import read_json
from ..storage.source import hub_file

ERASURE = "UNIERASE"


def refuse_adapter(name: str, revision: str | None = None) -> None:
    """Refuse a folder or Hub id with an adapter in it, also one that holds a model too.

    Of a folder with both transformers loads neither the model nor the adapter alone: it loads the base that the adapter
    names, with the adapter on.

    Raises:
        ValueError: Names the adapter, its base and the way out.
    """
    file = _found(name, CONFIG_NAME, revision)
    if file is None:
        _refuse_folder_of_adapters(name)
        return
    what = description(name, file)
    if _found(name, MODEL_NAME, revision):
        raise InputError(
            f"{name} holds a model ({MODEL_NAME}) and beside it {what}; transformers would load that base with the "
            f"adapter on and not the model. Take {CONFIG_NAME} out to use the model, or {_way_out(name, file)}"
        )
    raise InputError(f"{name} is {what}; {_way_out(name, file)}")


def description(name: str, file: Path | None = None) -> str:
    """`a PEFT adapter (LORA) of base org/model`."""
    kind, base = _read(file or Path(name) / CONFIG_NAME)
    return f"a PEFT adapter ({kind or 'of no known type'}) of base {base or 'unknown'}"


def _way_out(name: str, file: Path) -> str:
    kind, base = _read(file)
    give = f"give the base ({base})" if base else "give the base that it was made for"
    if kind == ERASURE:
        return (
            f"{give}, to which `unierase erase` takes the erasure with --onto, or merge it first: "
            f"unierase merge {name} -o FOLDER"
        )
    if not _is_mergeable(kind):
        return f"{give}; an adapter of this type cannot be merged into it"
    return (
        f'{give}, or merge it first, in Python: AutoPeftModelForCausalLM.from_pretrained("{name}").merge_and_unload()'
        '.save_pretrained("FOLDER"), and save the tokenizer to the same FOLDER'
    )


def _refuse_folder_of_adapters(name: str) -> None:
    """PEFT saves an adapter that is not called `default` to a folder of its own."""
    folder = Path(name)
    if not folder.is_dir() or (folder / MODEL_NAME).is_file():
        return
    if inside := sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_NAME}")):
        raise InputError(
            f"{name} holds no model, but in {inside[0]}/ {description(str(folder / inside[0]))}; "
            f"{_way_out(str(folder / inside[0]), folder / inside[0] / CONFIG_NAME)}"
        )


def _found(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a repository on the Hub where that can be asked."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    return hub_file(name, file, revision)


def _read(file: Path) -> tuple[str, str]:
    """Type and base that a config names; empty texts if it cannot be read."""
    from ..storage.schema import AnyAdapter
    from ..storage.values import checked

    try:
        config = checked(AnyAdapter, read_json(file), "it is no config of an adapter")
    except (OSError, ValueError):
        return "", ""
    return config.peft_type or "", config.base_model_name_or_path or ""


def _is_mergeable(kind: str) -> bool:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    return any(
        key.value == kind and isinstance(tuner, type) and issubclass(tuner, BaseTuner)
        for key, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
    )
