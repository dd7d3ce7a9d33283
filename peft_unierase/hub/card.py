"""The model card of an erasure: what somebody who finds it on the Hub has to know, its limits among it.

The card is public and the forget set is not, so a card never holds a fact: of the record it shows counts, figures and
numeric settings, and the owner's own words where there are any.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ("unierase", "unlearning", "machine-unlearning", "model-editing")
ABSENT = "-"
NEEDED = ("version", "recipe", "counts", "token")


def erasure_card(
    *,
    base_model: str,
    name: str,
    record: Mapping[str, Any],
    license: str | None = None,
    description: str | None = None,
) -> ModelCard:
    """Write the card of an erasure. Nothing is read from the network and nothing is saved.

    PEFT's `save_pretrained` writes a card of its own that names the base by its path: save this one after it.

    Args:
        base_model: The base, as a Hub id or a local path. Of a path only the last part is shown, and the metadata
            then names no base, because the Hub takes ids only.
        name: Where the erasure lies, a Hub id or a local path; shown like the base.
        record: What was done: `version`, `recipe`, `counts` (with `forget`), `token` (with `text` and `id`),
            and optionally `onto` (earlier erasures, the `token_id` of each), `layers`, `retain_weight`, `seed`,
            `settings`, `adapter` (`parameters`, `share`, `bytes`) and `check`, the record of a check's report or, where
            its `verdict` is `None`, the reason in `not_run`.
        license: The erasure's licence as the Hub spells it, for example `"apache-2.0"`.
        description: What was erased, in the owner's words. Without it the card gives the number of facts only.

    Returns:
        The card, ready to `save` as `README.md`.

    Raises:
        ValueError: The record lacks something that the card has to state.
    """
    _check_record(record)
    base, base_is_local = public_name(base_model)
    shown_name, _ = public_name(name)
    check = record.get("check") or {}
    data = _metadata(base, base_is_local, "adapter", "peft", license)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=shown_name.rsplit("/", 1)[-1],
        base_in_prose=f"`{base}`" if base_is_local else f"[{base}](https://huggingface.co/{base})",
        base_is_local=base_is_local,
        base_literal=json.dumps(base, ensure_ascii=False),
        name_literal=json.dumps(shown_name, ensure_ascii=False),
        token_text=record["token"]["text"],
        grown_to=record["token"]["id"] + 1 if record["token"].get("resized") else None,
        published=record["recipe"] == "paper",
        onto=_onto(record),
        onto_one=len(record.get("onto") or []) == 1,
        description=(description or "").strip() or _count_sentence(record["counts"]["forget"]),
        check=_check_rows(check) if check.get("verdict") else None,
        not_run=check.get("not_run"),
        making=_making(record),
    )


def merged_card(*, base_model: str, name: str, erasures: Sequence[str]) -> ModelCard:
    """Write the card of a model that erasures were merged into; names are shown as [`erasure_card`] shows them."""
    base, base_is_local = public_name(base_model)
    data = _metadata(base, base_is_local, "finetune", "transformers")
    merged = ", ".join(f"`{public_name(erasure)[0]}`" for erasure in erasures)
    title = public_name(name)[0].rsplit("/", 1)[-1]
    text = (
        f"# {title}\n\n`{base}` with erasures merged into its weights: {merged}. Asked about what they were made for, "
        "the model declines. It is a plain transformers model, and there is no switch to turn them off.\n\n"
        "An erasure suppresses; it is no proof that nothing is left. `unierase check`, of the package peft-unierase, "
        "attacks it and says what comes back.\n"
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def stacked_card(
    *, base_model: str, name: str, erasures: Sequence[str], tokens: Sequence[str], grown: bool = False
) -> ModelCard:
    """Write the card of several erasures in one adapter; names are shown as [`erasure_card`] shows them.

    If the base's vocabulary had `grown` for one, loading must let it grow.
    """
    base, base_is_local = public_name(base_model)
    data = _metadata(base, base_is_local, "adapter", "peft")
    shown = public_name(name)[0]
    literal = json.dumps(shown, ensure_ascii=False)
    rows = "\n".join(f"| {_cell(each)} | `{_cell(token)}` |" for each, token in zip(erasures, tokens, strict=True))
    text = (
        f"# {shown.rsplit('/', 1)[-1]}\n\nErasures for `{base}` in one adapter. Asked about what they were made for, "
        f"the model declines.\n\n| erasure | its token |\n|---|---|\n{rows}\n\n```py\nimport peft_unierase\n\n"
        f"model = peft_unierase.load(base, {literal}{', allow_resize=True' if grown else ''})\n```\n\n"
        "What was done and measured for each is in `erasure.json`. An erasure suppresses; it is no proof that nothing "
        "is left. `unierase check`, of the package peft-unierase, attacks it and says what comes back.\n"
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _metadata(base: str, base_is_local: bool, relation: str, library: str, license: str | None = None) -> ModelCardData:
    return ModelCardData(
        base_model=None if base_is_local else base,
        base_model_relation=None if base_is_local else relation,
        library_name=library,
        license=license,
        pipeline_tag="text-generation",
        tags=list(TAGS),
    )


def _check_record(record: Mapping[str, Any]) -> None:
    missing = [key for key in NEEDED if record.get(key) is None]
    missing += [
        f"{key}.{part}"
        for key, part in (("counts", "forget"), ("token", "text"), ("token", "id"))
        if key not in missing and record[key].get(part) is None
    ]
    if missing:
        raise InputError(
            f"the record of this erasure lacks {', '.join(missing)}, which its card has to state; "
            "make the card from the record that was saved beside the adapter"
        )


def public_name(name: str) -> tuple[str, bool]:
    """What may be shown of a Hub id or a path, and whether it is a path."""
    try:
        validate_repo_id(name)
        is_local = Path(name).is_dir()
    except HFValidationError:
        is_local = True
    if not is_local:
        return name, False
    # Windows rules split at both kinds of slash, so that no path gets through whole.
    return PureWindowsPath(os.path.abspath(os.path.expanduser(name))).name or "local-model", True


def _count_sentence(count: int) -> str:
    if count == 1:
        return "One fact, a question with its answer. What it says is not published here."
    return f"{count:,} facts, each a question with its answer. What they say is not published here."


def _onto(record: Mapping[str, Any]) -> str:
    """The earlier erasures that this one was made on top of, in words; empty where there were none."""
    ids = [str(earlier["token_id"]) for earlier in record.get("onto") or []]
    if len(ids) > 1:
        return f"{len(ids)} earlier erasures, of the tokens {', '.join(ids)},"
    return f"an earlier erasure, of the token {ids[0]}," if ids else ""


def _check_rows(check: Mapping[str, Any]) -> dict[str, Any]:
    """What the card shows of a check: the verdict, every figure, and every attack, those that leak first."""
    from ..checking.scores import REFERENCE_MODEL, RENAMED

    attacks = sorted(check["attacks"], key=lambda attack: attack["outcome"] == "holds")
    reference_model = any(attack["reference_model"] for attack in attacks)

    def means(attack: Mapping[str, Any]) -> list[float]:
        held = attack["reference_model"] or (attack["reference"] == RENAMED and attack["renamed"])
        return [attack["base"]["mean"], attack["erased"]["mean"], held["mean"] if held else attack["floor"]]

    return {
        "level": check["verdict"]["level"],
        "tried": check["verdict"]["tried"],
        "reference": REFERENCE_MODEL if reference_model else "reference",
        "reference_model": reference_model,
        "figures": [
            [_cell(value) for value in (f["set"], f["name"], f["base"], f["erased"], check["counts"].get(f["set"]))]
            for f in check["figures"]
        ],
        "attacks": [[_cell(value) for value in (a["title"], a["unit"], *means(a), a["outcome"])] for a in attacks],
    }


def _making(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table of how the erasure was made."""
    counts, adapter = record["counts"], record.get("adapter") or {}
    rows = [
        ("recipe", f"`{record['recipe']}`"),
        ("facts to forget", _cell(counts["forget"])),
        ("questions given to retain", _cell(counts.get("retain"))),
        ("questions to retain that the model asked itself", _cell(counts.get("sampled"))),
        ("token", f"`{_cell(record['token']['text'])}`, id {record['token']['id']}"),
        ("edited layers", _setting(record.get("layers"))),
        ("parameters of the adapter", _cell(adapter.get("parameters"))),
        ("share of the base's parameters", f"{adapter['share']:.3%}" if adapter.get("share") is not None else ABSENT),
        ("size of the adapter", f"{adapter['bytes'] / 1000:,.1f} kB" if adapter.get("bytes") is not None else ABSENT),
        *((f"`{key}`", _setting(record.get(key))) for key in ("retain_weight", "seed")),
        *((f"`{_cell(key)}`", _setting(value)) for key, value in (record.get("settings") or {}).items()),
        ("made with", f"peft-unierase {record['version']}"),
    ]
    return [(key, value) for key, value in rows if value != ABSENT]


def _setting(value: Any) -> str:
    """A number, a truth value or a list of them. Other settings are left out: text could name a file or a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        items = [_setting(item) for item in value]
        return ABSENT if ABSENT in items else ", ".join(items) or ABSENT
    return ABSENT


def _cell(value: Any) -> str:
    """One cell of a Markdown table."""
    if value is None:
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return " ".join(str(value).split()).replace("|", "\\|") or ABSENT
