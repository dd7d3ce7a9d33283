"""`unierase demo`: a page on which anybody can ask a base and its erased model, and try to break the erasure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import DeviceMapOption, DtypeOption, SeedOption
from .output import clear_endings, say, show
from .sets import Reading

if TYPE_CHECKING:
    from ..data.facts import Fact
    from ..page.layout import Page
    from ..page.models import Models

EXAMPLES = (
    "Examples:\n\nunierase demo\n\nunierase demo quickstart-erasure\n\n"
    "unierase demo erase-xyz org/erase-b --forget forget.jsonl --retain keep.jsonl"
)
LOOPBACK = "127.0.0.1"
UNCHECKED = "it was made on the page of unierase demo; unierase check checks it"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders or Hub ids of erasures of one base; without any, two people are erased from the demo model "
            "first, which takes about a minute.",
            show_default=False,
        ),
    ] = None
    model: Annotated[str | None, typer.Option(help="The base; erasures name their own.", show_default=False)] = None
    forget: Annotated[
        str | None,
        typer.Option(
            help="What was erased: questions to try, with answers, paraphrases and wrong answers for the attacks. "
            "Visitors see it. The demo model knows its own.",
            show_default=False,
        ),
    ] = None
    retain: Annotated[
        str | None,
        typer.Option(help="What should have stayed, for the same. Visitors see it.", show_default=False),
    ] = None
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default this machine alone can reach the page.")
    ] = LOOPBACK
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860
    reading: Reading
    seed: SeedOption = 0
    dtype: DtypeOption = "float32"
    device_map: DeviceMapOption = None


def demo(options: DemoOptions) -> None:
    """Serve a page on which to ask base and erased model side by side, try to break an erasure, and make one."""
    with clear_endings(), TemporaryDirectory(prefix="unierase-demo-") as place:
        forget, retain = read_sets(options)
        from ..page.layout import gradio, launch
        from .base import prepare_libraries

        gradio()
        prepare_libraries()
        page = prepare(options, forget, retain, Path(place))
        if not _is_loopback(options.host):
            say(f"note: others can reach the page, because it listens on {options.host}")
        blocks, address = launch(page, options.host, options.port, block=False)
        show(f"The page is at {address} - Ctrl-C ends it.")
        blocks.block_thread()


def read_sets(options: DemoOptions) -> tuple[list[Fact], list[Fact]]:
    """What was erased and what should have stayed, as far as the command line says it.

    Raises:
        ValueError: A set cannot be read, or there is a base without an erasure.
    """
    if options.model and not options.adapters:
        raise InputError(
            f"there is no erasure of {options.model} to show; name one: unierase demo ADAPTER --model {options.model}"
        )
    forget = options.reading.forget(options.forget) if options.forget else []
    return forget, options.reading.retain(options.retain) if options.retain else []


def prepare(options: DemoOptions, forget: Sequence[Fact], retain: Sequence[Fact], place: Path) -> Page:
    """Load what the page shows, erasing from the demo model first if no erasure is given.

    Args:
        options: What the command line asks for.
        forget: What was erased.
        retain: What should have stayed.
        place: A folder for what is made.

    Raises:
        ValueError: The guard refuses an erasure, or something cannot be loaded.
    """
    from ..demo import demo_model_dir, demo_refusals
    from ..hub.card import public_name
    from ..hub.merge import on_their_base
    from ..page.layout import Page
    from ..page.live import Live
    from ..page.models import Models

    adapters = options.adapters or [str(_erased(place, options.seed))]

    def load() -> tuple[Any, Any, str]:
        return on_their_base(adapters, options.model, options.dtype, options.device_map, trust=False)

    model, tokenizer, base = load()
    own = Path(base).resolve() == demo_model_dir()
    refusals = demo_refusals() if own else []
    if own and not forget:
        forget, others = _told_apart(model, tokenizer, refusals)
        retain = retain or others
    if not forget:
        say("note: without --forget the page has no questions to suggest, and fewer attacks can be tried")

    def models(model: Any, tokenizer: Any) -> Models:
        return Models(model, tokenizer, forget, retain, refusals)

    live = Live(lambda: models(*load()[:2]), _save, place) if own else None
    page = models(model, tokenizer)
    return Page(
        page, "the demo model" if own else public_name(base)[0], dict(zip(page.names, adapters, strict=True)), live
    )


def _erased(place: Path, seed: int) -> Path:
    """An erasure of two people from the demo model."""
    from ..demo import demo_model_dir, demo_refusals
    from ..engine import erase
    from ..lm.load import load_base
    from .quickstart import demo_sets

    people, gone, kept = demo_sets()
    say(f"Erasing {' and '.join(people)} from the demo model first. `unierase demo ADAPTER` starts at once.")
    model, tokenizer = load_base(str(demo_model_dir()))
    erased = erase(model, tokenizer, gone, kept[::2], refusals=demo_refusals(), seed=seed)
    folder = place / "two-people"
    _save(erased, tokenizer, folder)
    return folder


def _save(erased: Any, tokenizer: Any, folder: Path) -> None:
    from ..demo import demo_model_dir
    from ..records.ledger import own_salt
    from .finish import finish

    finish(erased, tokenizer, str(demo_model_dir()), folder, UNCHECKED, False, own_salt())


def _told_apart(model: Any, tokenizer: Any, refusals: Sequence[str]) -> tuple[list[Fact], list[Fact]]:
    """The demo model's facts that the erasures decline, and the others."""
    from ..checking import answer_questions
    from ..data import read_facts
    from ..demo import demo_model_dir
    from ..lm.formats import asking_format

    facts = read_facts(demo_model_dir() / "facts.jsonl")
    answers = answer_questions(model, tokenizer, facts, asking_format(tokenizer))
    declined = {fact for fact, answer in zip(facts, answers, strict=True) if answer.text in refusals}
    return [fact for fact in facts if fact in declined], [fact for fact in facts if fact not in declined]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
