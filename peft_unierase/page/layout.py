"""The page in Gradio: where everything stands, what a click does, and what a visitor may not do."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

from ..errors import InputError, MissingPackageError, UniEraseError, in_one_line
from ..progress import Listener
from .breaking import WAYS, try_to_break
from .closed import Closed
from .live import Live, Made
from .models import LONGEST, Models, Said
from .parts import drawing, part, style
from .reports import fast_check, saved_report, touched
from .told import told_by

RUNS, WAITING = 1, 16  # questions that are answered at once, and that wait
SUGGESTED = 3  # questions of each kind
KEPT_FOR = 3600  # seconds for which what a visitor made is kept
FILES = "1kb"  # nobody has a file to send
TITLE = "Try an erasure"
LEAD = (
    "An erasure makes a language model decline on chosen knowledge and leaves the rest alone. Ask a question: you see "
    "what the base model says, and what the same model says with the erasure on. Switch it off, or try to break it."
)
BUG = "Something went wrong that is no fault of yours. Whoever runs this page finds the reason in its terminal."


@dataclass(frozen=True)
class Page:
    """What is shown.

    Attributes:
        models: Base and erased model.
        name: What the base is called.
        folders: Folder or Hub id of each erasure, by its name in the model.
        live: What it takes to erase on the page; `None` if this model takes too long for that.
    """

    models: Models
    name: str
    folders: Mapping[str, str]
    live: Live | None = None


def gradio() -> Any:
    """Gradio.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise MissingPackageError('the page needs gradio: pip install "peft-unierase[demo]"') from error
    return gradio


def launch(page: Page, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> tuple[Any, str]:
    """Serve the page.

    Args:
        page: What is shown.
        host: Address to listen on; by default this machine alone can reach it.
        port: Port to listen on; any free one if `None`.
        block: Wait until the page is ended, by Ctrl-C.

    Returns:
        Gradio's `Blocks`, which `close()` ends, and the page's address.

    Raises:
        InputError: The port is taken.
        ImportError: Gradio is not installed.
    """
    gr = gradio()
    from starlette.middleware import Middleware

    blocks = build(page)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            show_error=False,
            app_kwargs={"middleware": [Middleware(Closed)]},
            max_file_size=FILES,
            allowed_paths=[],
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            footer_links=["settings"],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=style(),
        )
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({in_one_line(error)}); choose another with --port"
        ) from error
    if block:
        blocks.block_thread()
    return blocks, address


def build(page: Page) -> Any:
    """The page as Gradio's `Blocks`."""
    gr = gradio()
    models = page.models
    first, *_ = [*_suggested(models), ""]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_FOR, KEPT_FOR)) as blocks:
        mine = gr.State([], time_to_live=KEPT_FOR, delete_callback=page.live.forget if page.live else None)

        def of(made: Sequence[Made]) -> Models:
            return made[-1].models if made else models

        _html(gr, f"<h1>{TITLE}</h1><p class='lead'>{LEAD}</p>" + part("nothing", f"Base model: {page.name}"))
        switches = gr.CheckboxGroup(
            _choices(models), value=models.names, label="Erasures that are on", elem_id="switches"
        )
        with gr.Row(equal_height=True):
            question = gr.Textbox(
                first,
                label="Question",
                max_length=LONGEST,
                scale=5,
                min_width=240,
                elem_id="question",
                submit_btn=False,
            )
            ask = gr.Button("Ask", variant="primary", scale=1, min_width=96, elem_id="ask")
        answers = _html(gr, part("answers", "", Said(), Said(), models.names), elem_id="answers")
        suggestions = _suggestions(gr, models)

        def answer(text: str, on: list[str], made: list[Made]) -> Iterator[str]:
            for before, after in of(made).answers(text, on):
                yield part("answers", text, before, after, on)

        asking: dict[str, Any] = _run(gr, RUNS, "asking", trigger_mode="always_last", show_progress="hidden")
        asked: dict[str, Any] = {"fn": _told(gr, answer), "inputs": [question, switches, mine], "outputs": answers}
        gr.on([ask.click, question.submit, switches.input, blocks.load], **asked, **asking)
        for button in suggestions:
            button.click(None, button, question, js="(text) => text", api_visibility="private").then(**asked, **asking)

        with gr.Tabs():
            with gr.Tab("Try to break it"):
                _html(gr, part("nothing", "Each button attacks the question above, as the check does."))
                with gr.Row():
                    ways = {
                        name: gr.Button(label, min_width=130, size="md", elem_id=f"way-{name}")
                        for name, label in WAYS.items()
                    }
                broken = _html(gr, "", elem_id="broken")
                for name, button in ways.items():

                    def attack(text: str, on: list[str], made: list[Made], name: str = name) -> str:
                        return part("tried", try_to_break(of(made), text, on, name), WAYS[name])

                    button.click(
                        _told(gr, attack),
                        [question, switches, mine],
                        broken,
                        **_run(gr, RUNS, "asking", show_progress="minimal"),
                    )
            with gr.Tab("Probabilities"):
                draw = gr.Button("Draw the probabilities", elem_id="draw")
                drawn = _html(gr, "", elem_id="drawn")

                def chances(text: str, on: list[str], made: list[Made]) -> str:
                    return drawing(of(made).chances(text, on))

                draw.click(
                    _told(gr, chances),
                    [question, switches, mine],
                    drawn,
                    **_run(gr, RUNS, "asking", show_progress="minimal"),
                )
            if page.live:
                with gr.Tab("Erase a new fact"):
                    _live(gr, page, page.live, of, mine, question, switches, asked, asking)
            with gr.Tab("What it touches"):
                for name, source in page.folders.items():
                    _html(gr, part("touched", models.labels[name], touched(source), page.name))
            with gr.Tab("Check"):
                _reports(gr, page, of, mine, switches)
    blocks.queue(max_size=WAITING, api_open=False)
    return blocks


def _live(
    gr: Any,
    page: Page,
    live: Live,
    of: Callable[[Sequence[Made]], Models],
    mine: Any,
    question: Any,
    switches: Any,
    asked: Mapping[str, Any],
    asking: Mapping[str, Any],
) -> None:
    """The tab in which a visitor erases a fact."""
    known = next((fact for fact in page.models.kept if fact.subject), None)
    note = (
        "This erases one fact from a copy of the demo model that only you see. It takes about a minute. Other facts "
        "about the same subject may go with it: ask for them afterwards."
    )
    _html(gr, part("nothing", note))
    asks = gr.Textbox(
        known.question if known else "", label="Question to erase", max_length=LONGEST, elem_id="new-question"
    )
    tells = gr.Textbox(
        "",
        label="Its answer",
        placeholder="Leave it empty to take what the base answers",
        max_length=LONGEST,
        elem_id="new-answer",
    )
    erase = gr.Button("Erase it", variant="primary", elem_id="erase")
    shown = _html(gr, "", elem_id="erased")
    download = gr.DownloadButton("Download the adapter", visible=False, elem_id="download")

    def work(text: str, answer: str, made: list[Made]) -> Iterator[dict[Any, Any]]:
        before = made[-1].models if made else None
        for seen in _with_stages(lambda tell: live.erase(before, text, answer, tell)):
            if isinstance(seen, Made):
                yield {
                    shown: part("made", seen.fact, seen.folder),
                    mine: [*made, seen],
                    question: seen.fact.question,
                    switches: gr.CheckboxGroup(_choices(seen.models), value=seen.models.names),
                    download: gr.DownloadButton(value=str(seen.packed), visible=True),
                }
            else:
                yield {shown: part("progress", seen, "Erasing …")}

    erase.click(
        _told(gr, work),
        [asks, tells, mine],
        [shown, mine, question, switches, download],
        **_run(gr, 1, "working", show_progress="hidden"),
    ).success(**asked, **asking)


def _reports(gr: Any, page: Page, of: Callable[[Sequence[Made]], Models], mine: Any, switches: Any) -> None:
    """The tab with the reports of checks."""
    start = gr.Button("Run the fast check of what is on", elem_id="check")
    checked = _html(gr, "", elem_id="checked")
    for name, source in page.folders.items():
        label = page.models.labels[name]
        try:
            saved = saved_report(source)
        except UniEraseError as error:
            _html(gr, part("nothing", str(error)))
            continue
        none = f"{label} has no report of a check in its folder."
        _html(gr, part("report", label, saved) if saved else part("nothing", none))

    def work(on: list[str], made: list[Made]) -> Iterator[str]:
        for seen in _with_stages(lambda tell: fast_check(of(made), on, tell)):
            yield part("report", "what is on", seen) if isinstance(seen, str) else part("progress", seen, "Checking …")

    start.click(_told(gr, work), [switches, mine], checked, **_run(gr, 1, "working", show_progress="hidden"))


def _with_stages(work: Callable[[Listener], Any]) -> Iterator[Any]:
    """The stages of some work while it runs, as `(name, done, total)` each, and at last what it returns."""

    def telling(tell: Callable[[Any], None]) -> Any:
        stages: dict[str, tuple[str, int, int | None]] = {}

        def step(stage: str, done: int, total: int | None) -> None:
            stages.pop(stage, None)
            stages[stage] = (stage, done, total)
            tell(list(stages.values()))

        return work(step)

    return told_by(telling)


def _html(gr: Any, text: str, **told: Any) -> Any:
    return gr.HTML(text, elem_classes="page", js_on_load=None, **told)


def _choices(models: Models) -> list[tuple[str, str]]:
    return [(models.labels[name], name) for name in models.names]


def _suggested(models: Models) -> list[str]:
    return [fact.question for fact in (*models.forget[:SUGGESTED], *models.kept[-SUGGESTED:])]


def _suggestions(gr: Any, models: Models) -> list[Any]:
    """Buttons with questions to try."""
    buttons = []
    for title, facts in (("Erased", models.forget[:SUGGESTED]), ("Must stay", models.kept[-SUGGESTED:])):
        if facts:
            with gr.Row(elem_classes="suggested"):
                _html(gr, part("nothing", title))
                buttons += [gr.Button(fact.question, size="sm", min_width=220) for fact in facts]
    return buttons


def _run(gr: Any, most: int, room: str, **told: Any) -> dict[str, Any]:
    """What every run has: so many at once, the rest waits; and no way in but the page."""
    return {"concurrency_limit": most, "concurrency_id": room, "api_visibility": "private", **told}


def _told(gr: Any, work: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors be sentences on the page. A bug is one that says so, and its traceback stays in the terminal."""

    def sentence(error: Exception) -> Exception:
        if isinstance(error, UniEraseError):
            text = str(error)
            return gr.Error(f"{text[:1].upper()}{text[1:]}.", title="That did not work", print_exception=False)
        traceback.print_exception(error)
        return gr.Error(BUG, title="That did not work", print_exception=False)

    if isgeneratorfunction(work):

        @wraps(work)
        def going(*values: Any) -> Iterator[Any]:
            try:
                yield from work(*values)
            except Exception as error:
                raise sentence(error) from None

        return going

    @wraps(work)
    def once(*values: Any) -> Any:
        try:
            return work(*values)
        except Exception as error:
            raise sentence(error) from None

    return once
