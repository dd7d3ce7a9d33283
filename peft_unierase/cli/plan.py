"""`unierase plan`: what an erasure would be about, before anything is erased."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import InputError
from ..storage.plain import read_text
from ..storage.whole import claimed
from .output import Format, clear_endings, show, show_json, table
from .prompting import read_prompting
from .sets import Reading

SHOWN = 5
WIDEST = 80  # characters of a text in a table
TEXTS = (".txt", ".md")


@dataclass(frozen=True)
class PlanOrder:
    """What the command line asked for; see the options of `unierase plan`."""

    model: str
    target: str
    output: Path
    count: int
    retain: int
    sure: float
    seed: int
    dtype: str
    device_map: str | None
    reading: Reading
    refusals: Path | None = None
    prompt_format: str | None = None
    system: str | None = None
    samples_cache: Path | bool = True


def run_plan(order: PlanOrder, style: Format) -> None:
    """Ask, show and write; ends the process with status 2 on bad input."""
    with clear_endings(), claimed(order.output):
        from ..storage.output import check_new, write_folder

        check_new(order.output)
        target, text = read_target(order)
        from .sets import read_refusals

        refusals = read_refusals(order.refusals)
        prompting = read_prompting(order.prompt_format, order.system)
        from ..planning import plan
        from .base import load_base, prepare_libraries

        prepare_libraries()
        model, tokenizer = load_base(order.model, order.dtype, order.device_map)
        told: dict[str, Any] = {"refusals": refusals} if refusals else {}
        told |= {"count": order.count, "retain": order.retain, "sure": order.sure, "seed": order.seed}
        told |= {"formats": prompting.formats(tokenizer), "samples_cache": order.samples_cache}
        found = plan(model, tokenizer, target, text=text, progress=style is not Format.QUIET, **told)
        write_folder(order.output, found.save)
    if style is Format.JSON:
        show_json({"output": str(order.output), **found.record()})
    elif style is Format.HUMAN:
        show(shown(found, order))


def read_target(order: PlanOrder) -> tuple[Any, str | None]:
    """Words, a forget set, or a text and the name of its file.

    Raises:
        ValueError: A file is missing, empty, or cannot be read.
    """
    from ..data import READABLE_SUFFIXES

    path = Path(order.target)
    if path.suffix.lower() in READABLE_SUFFIXES:
        return order.reading.forget(order.target), None
    if path.suffix in TEXTS:
        if not path.is_file():
            raise InputError(f"no such file: {path}; TARGET is a forget set, a text (.txt, .md), or words")
        try:
            return path.stem, read_text(path, "utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if path.exists():
        raise InputError(f"{path} is neither a forget set ({', '.join(READABLE_SUFFIXES)}) nor a text (.txt, .md)")
    return order.target, None


def shown(found: Any, order: PlanOrder) -> str:
    """The plan for a terminal."""
    from .finish import estimate_line

    def rows(planned: Any) -> list[tuple[str, str, str]]:
        def line(each: Any) -> tuple[str, str, str]:
            question, answer = (
                shorten(text, WIDEST, placeholder=" …") for text in (each.fact.question, each.fact.answer)
            )
            return f"{each.confidence:.2f}", question, answer

        return [line(each) for each in planned[:SHOWN]]

    about = f" about {', '.join(found.subjects)}" if found.subjects else ""
    parts = [f"{len(found.forget)} facts to erase{about}, {len(found.retain)} near them to keep."]
    if found.forget:
        parts.append(table(("sure", "what the base answers, to be erased", ""), rows(found.forget)))
    if found.retain:
        parts.append(table(("close", "the nearest to keep, which would suffer first", ""), rows(found.retain)))
    if found.unknown:
        parts.append(f"{len(found.unknown)} facts the base does not know: nothing to erase. They are in unknown.jsonl.")
    parts += [f"Does not go together: {each}" for each in found.contradictions]
    if found.estimate:
        parts.append(estimate_line(found.estimate))
    parts.append(f"Saved to {order.output}: read forget.jsonl and retain.jsonl and take out what should not be there.")
    if found.forget:
        files = f"{order.output}/forget.jsonl --retain {order.output}/retain.jsonl"
        parts.append(f"Then:\n\n    unierase erase {order.model} {files} -o my-erasure")
    return "\n\n".join(parts)
