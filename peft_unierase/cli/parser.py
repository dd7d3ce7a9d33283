"""Options of a command as a dataclass: each is declared once, with its help, its default and its type.

A command takes one parameter of such a class. A field whose type is such a class again is a group that several commands
share: its fields become options of the command too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def parsed(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer wants it, with a parameter for each field of the dataclasses that it takes.

    Args:
        command: Takes dataclasses, and plain parameters as typer knows them.
    """
    taken = inspect.signature(command, eval_str=True).parameters

    def run(**values: Any) -> None:
        command(
            **{
                name: gathered(each.annotation, values) if is_dataclass(each.annotation) else values[name]
                for name, each in taken.items()
            }
        )

    flat = [
        parameter
        for each in taken.values()
        for parameter in (
            parameters_of(each.annotation)
            if is_dataclass(each.annotation)
            else [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        )
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run


def parameters_of(kind: Any) -> Iterator[inspect.Parameter]:
    """A parameter for each field of a dataclass, and of those in it."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from parameters_of(hints[field.name])
            continue
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


def gathered(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of values by the names of its fields, and of those in it."""
    hints = get_type_hints(kind, include_extras=True)
    return kind(
        **{
            field.name: gathered(hints[field.name], values) if is_dataclass(hints[field.name]) else values[field.name]
            for field in fields(kind)
        }
    )
