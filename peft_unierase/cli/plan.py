"""`unierase plan`: what an erasure would be about, before anything is erased."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..storage.plain import read_text
from .options import MOST, DeviceMapOption, DtypeOption, FormatOption, SamplesCache, SeedOption, number
from .output import Format, clear_endings, show, show_json, table
from .prompting import PromptOptions
from .sets import ForgetReading, read_refusals
from .together import held

EXAMPLES = (
    'Examples:\n\nunierase plan ./model "Ada Finch" -o plan\n\nunierase plan org/model letter.txt -o plan\n\n'
    "unierase plan org/model forget.jsonl -o plan"
)
SHOWN = 5
WIDEST = 80  # characters of a text in a table
TEXTS = (".txt", ".md")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command line asks for."""

    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id.")]
    target: Annotated[
        str,
        typer.Argument(help="What should go: a name or a topic in words, a text (.txt, .md), or a forget set."),
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the two sets.", show_default=False)]
    count: Annotated[
        int, typer.Option(min=1, max=MOST, help="Questions about each subject, in each of two rounds.")
    ] = 96
    retain: Annotated[int, typer.Option(min=0, max=MOST, help="Questions to keep, at most.")] = 128
    sure: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="How sure the base must be of an answer.")
    ] = 0.5
    refusals: Annotated[
        Path | None,
        typer.Option(help="Sentences with which the model declines by itself, one a line.", show_default=False),
    ] = None
    cache: SamplesCache
    prompts: PromptOptions
    seed: SeedOption = 0
    dtype: DtypeOption = "float32"
    device_map: DeviceMapOption = None
    reading: ForgetReading


def plan(options: PlanOptions, format: FormatOption = Format.AUTO) -> None:
    """Ask a model what it knows about something, and write a forget and a retain set to review before erasing."""
    style = format.resolved()
    with clear_endings(), held(options.output):
        from ..lm.processes import launched
        from ..storage.output import check_new, write_folder

        processes = launched()
        processes.from_main(lambda: check_new(options.output))
        target, text = read_target(options)
        refusals = read_refusals(options.refusals)
        prompting = options.prompts.read()
        from ..lm.load import load_base
        from ..planning import plan
        from .base import prepare_libraries

        prepare_libraries()
        told: dict[str, Any] = {"refusals": refusals} if refusals else {}
        model, tokenizer = load_base(options.model, options.dtype, processes.device_map(options.device_map))
        found = plan(
            model,
            tokenizer,
            target,
            text=text,
            progress=style is not Format.QUIET,
            count=options.count,
            retain=options.retain,
            sure=options.sure,
            seed=options.seed,
            formats=prompting.formats(tokenizer),
            samples_cache=options.cache.folder(),
            **told,
        )
        processes.from_main(lambda: write_folder(options.output, found.save))
    if style is Format.JSON:
        show_json({"output": str(options.output), **found.record()})
    elif style is Format.HUMAN:
        show(shown(found, options))


def read_target(options: PlanOptions) -> tuple[Any, str | None]:
    """Words, a forget set, or a text and the name of its file.

    Raises:
        ValueError: A file is missing, empty, or cannot be read.
    """
    from ..data import READABLE_SUFFIXES

    path = Path(options.target)
    if path.suffix.lower() in READABLE_SUFFIXES:
        return options.reading.forget(options.target), None
    if path.suffix in TEXTS:
        if not path.is_file():
            raise InputError(f"no such file: {path}; TARGET is a forget set, a text (.txt, .md), or words")
        try:
            return path.stem, read_text(path, "utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if path.exists():
        raise InputError(f"{path} is neither a forget set ({', '.join(READABLE_SUFFIXES)}) nor a text (.txt, .md)")
    return options.target, None


def shown(found: Any, options: PlanOptions) -> str:
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
    parts.append(f"Saved to {options.output}: read both sets and take out what should not be there.")
    if found.forget:
        files = f"{options.output}/forget.jsonl --retain {options.output}/retain.jsonl"
        parts.append(f"Then:\n\n    unierase erase {options.model} {files} -o my-erasure")
    return "\n\n".join(parts)
