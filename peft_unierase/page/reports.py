"""What the page shows of an erasure's folder: what it touches, and the report of its check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import TypeAdapter, ValidationError

from ..checking import CheckReport, check
from ..checking.case import drawn
from ..checking.page import page
from ..data.facts import Fact
from ..errors import InputError
from ..guard.inspect import inspect
from ..progress import Listener
from ..storage.names import REPORT_NAME
from ..storage.plain import MOST_JSON, parse_json, read_text
from .models import Models

ASKED = 24  # facts of each set in a check that a visitor starts


def touched(source: str | Path) -> dict[str, Any]:
    """What an erasure is made of, as plain values; see `Inspection.facts`.

    Raises:
        ValueError: There is no erasure.
    """
    return inspect(source).facts()


def saved_report(source: str | Path) -> str | None:
    """The report of the check in an erasure's folder, as a page of HTML; `None` if it has none.

    Raises:
        ValueError: It is not what a check writes.
    """
    file = inspect(source).folder / REPORT_NAME
    if not file.is_file():
        return None
    try:
        text = read_text(file, most=MOST_JSON)
        return page(TypeAdapter(CheckReport).validate_python(parse_json(text)))
    except (ValidationError, TemplateError, UnicodeDecodeError, OSError, ArithmeticError) as error:
        raise InputError(
            f"{REPORT_NAME} of this erasure is not what a check of this version writes ({type(error).__name__}); run "
            "the fast check instead"
        ) from error


def fast_check(models: Models, on: Sequence[str], tell: Listener) -> str:
    """The fast check of what is on, as a page of HTML.

    Args:
        models: Base and erased model.
        on: Names of the erasures that are on.
        tell: Told of every step.

    Raises:
        ValueError: Nothing is on, or it is not known what was erased.
    """
    if not on:
        raise InputError("no erasure is on, so there is nothing to check; switch one on")
    if not models.forget:
        raise InputError("the page does not know which facts were erased; start it with --forget FILE")
    with models.alone(), models.erased(on).on():
        sets: dict[str, Sequence[Fact]] = {"retain": drawn(models.kept, ASKED, "page")} if models.kept else {}
        return page(
            check(
                models.model,
                models.tokenizer,
                drawn(models.forget, ASKED, "page"),
                sets,
                attacks="fast",
                refusals=models.refusals,
                form=models.form,
                names={"erased": ", ".join(models.labels[name] for name in on)},
                progress=tell,
            )
        )
