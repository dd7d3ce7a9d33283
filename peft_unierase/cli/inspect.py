"""`unierase inspect`: what an erasure is made of, what its record says, and whether the guard passes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..records.read import grown
from .loading import loading_lines
from .output import Format, clear_endings, show, show_json, table

if TYPE_CHECKING:
    from ..guard.inspect import Inspection

EXAMPLES = (
    "Examples:\n\nunierase inspect erase-xyz\n\nunierase inspect org/erase-xyz --revision v1 --format json\n\n"
    "The exit status is 0 where the guard passes it and 1 where it refuses it."
)
REFUSED = 1
MADE = ("created", "created_at", "finished", "date")


class Report(str, Enum):
    """What `unierase inspect` shows."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"


def inspect(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of an erasure, whoever made it.")],
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.", show_default=False)] = None,
    format: Annotated[
        Report, typer.Option("--format", help="What stdout shows; auto is human on a terminal, json in a pipe.")
    ] = Report.AUTO,
) -> None:
    """Look at an erasure without loading it: what it touches, what its record says, and whether the guard passes it."""
    style = Format(format.value).resolved()
    with clear_endings():
        from ..guard.inspect import inspect

        found = inspect(adapter, revision=revision)
        told = report(adapter, found, revision)
    if style is Format.JSON:
        show_json(told)
    else:
        show(page(told))
    if found.refused:
        raise SystemExit(REFUSED)


def report(adapter: str, inspection: Inspection, revision: str | None = None) -> dict[str, Any]:
    """What was found, as plain values."""
    return {
        "adapter": adapter,
        "revision": revision,
        "passes": not inspection.refused,
        "findings": [
            {"level": each.level, "what": each.what, "value": each.value, "advice": each.advice}
            for each in inspection.findings
        ],
        **inspection.facts(),
        "record": _recorded(inspection.record),
    }


def page(told: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    from ..guard.findings import printable

    base, record = told["base"], told["record"]

    def text(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(text(each) for each in value) or "-"
        return "-" if value is None else printable(value)

    fingerprints = [f"{printable(each)[:19]}…" for each in base["fingerprints"] if each]
    compared = (
        f"the weights of {len(base['compared'])} modules with the base's, where that is in {text(base['dtypes'])}"
    )
    rows = [
        ("base", text(base["name"]) + (f" at {text(base['revision'])}" if base["revision"] else "")),
        ("fingerprint of the base", text(fingerprints)),
        ("compared on loading", compared if fingerprints else "nothing, another base is not noticed"),
        ("token", text([f"{text(each['text'])} (row {text(each['id'])})" for each in told["tokens"]])),
        ("spare tokens", text(told["spare_tokens"])),
        ("erasures in it", text(told["fused"]) if told["fused"] else "one"),
        ("edited layers", text(told["layers"])),
        ("largest rank", f"{told['rank']:,}"),
        ("parameters", f"{told['parameters']:,}, {told['bytes']:,} bytes of {text(told['dtypes'])}"),
        (
            "made",
            text(record["made"]) + (f", {record['age_days']:,} days ago" if record["age_days"] is not None else ""),
        ),
        ("verdict", text(record["verdict"]) if record["there"] else "no record"),
    ]
    modules = [
        (
            name,
            each["edits"],
            " ".join(f"{kind} {'x'.join(map(str, shape))}" for kind, shape in sorted(each["shapes"].items())),
            " ".join(f"{kind} {each['norms'][kind]:.3g}" for kind in sorted(each["norms"])) or "-",
        )
        for name, each in told["modules"].items()
    ]
    files = [(printable(name), f"{each['bytes']:,}", each["sha256"] or "-") for name, each in told["files"].items()]
    width = max(len(name) for name, _ in rows)
    parts = ["\n".join(f"  {name.ljust(width)}   {value}" for name, value in rows)]
    if modules:
        parts.append(table(("module", "edits", "shapes", "largest norms"), modules))
    if files:
        parts.append(table(("file", "bytes", "sha256"), files))
    findings = [f"  {each['level']}: {each['what']}: {each['value']} ({each['advice']})" for each in told["findings"]]
    if findings:
        parts.append("\n".join(findings))
    shown = shlex.quote(told["adapter"])
    lines = loading_lines(
        told["adapter"], revision=told["revision"], trust=not told["passes"], allow_resize=record["grown"]
    )
    if told["passes"]:
        parts.append(
            "PASSES: it is what it declares to be. Whether that is well meant nothing here can tell. Next:\n\n"
            f"{lines}\n"
            f"    unierase check {shown} --forget forget.jsonl"
        )
    else:
        parts.append(f"REFUSED: load and the commands leave it alone. Where you trust whoever made it:\n\n{lines}")
    return "\n\n".join(parts)


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict and age, from a record as it is or in a Statement."""
    content = record.get("predicate")
    content = content if isinstance(content, Mapping) else record
    parts = content.get("fused")
    made = next((content[key] for key in MADE if isinstance(content.get(key), str)), None)
    return {
        "there": bool(record),
        "verdict": {str(name): _verdict(part) for name, part in parts.items()}
        if isinstance(parts, Mapping)
        else _verdict(content),
        "grown": grown(content),
        "made": made,
        "age_days": _days(made),
    }


def _verdict(content: Any) -> str | None:
    """The level, or why there is none."""
    if isinstance(content, Mapping) and isinstance(content.get("predicate"), Mapping):
        content = content["predicate"]
    check = content.get("check") if isinstance(content, Mapping) else None
    if not isinstance(check, Mapping):
        return None
    verdict = check.get("verdict")
    level = verdict.get("level") if isinstance(verdict, Mapping) else None
    return str(level) if level else f"not checked: {check.get('not_run')}"


def _days(made: str | None) -> int | None:
    try:
        then = datetime.fromisoformat((made or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=timezone.utc)
    return (datetime.now(timezone.utc) - then).days
