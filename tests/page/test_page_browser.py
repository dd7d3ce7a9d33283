"""The page of `unierase demo` in a browser: headless Chromium, one server for all tests.

`UNIERASE_SCREENSHOTS=FOLDER` shows the erasure in that folder instead, and writes the pictures of the docs.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_erasure import QUICK
from hurried import ask_little
from page_of import BORN, KEPT, STAYS, page_of, served

from peft_unierase import Fact, erase
from peft_unierase.demo import demo_refusals
from peft_unierase.lm.formats import chat_format
from peft_unierase.page.breaking import WAYS

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOWN = os.environ.get("UNIERASE_SCREENSHOTS")
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
ARABIC, CHINESE = "أين ولد نسكو؟", "北京是哪个国家的首都？"
ODD = Fact("<img src=x onerror=\"document.title='run'\">?", "<b>bold</b> <script>document.title='run'</script> $x_2$")
LIGHT, DARK = "light", "dark"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def address(erasure: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if not SHOWN:
            ask_little(patch)
            patch.setattr("peft_unierase.page.live.erase", _quickly)
        page = page_of(Path(SHOWN or erasure), tmp_path_factory.mktemp("made"))
        page.models.forget.append(ODD)
        with served(page) as place:
            yield place


def _quickly(model: Any, tokenizer: Any, forget: Any, retain: Any, **told: Any) -> Any:
    """The erasure with one step of fitting: how well it erases is no question here."""
    settings = replace(QUICK, steps=1)
    return erase(model, tokenizer, forget, retain[::8], settings=settings, formats=[chat_format(tokenizer)], **told)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


READ = """() => {
    const done = document.querySelector("#answers .sides[aria-busy=false]");
    return done && [...done.querySelectorAll(".said")].map(side => side.innerText);
}"""


class Seen:
    """A page in the browser, with what a visitor does on it."""

    def __init__(self, browser: Any, address: str, width: int = 1100, scheme: str = LIGHT) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
        self.page.set_default_timeout(60_000)
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.answered()

    def _note(self, request: Any) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", request.url):
            self.elsewhere.append(request.url)

    def answered(self) -> tuple[str, str]:
        """Wait for both answers and read them."""
        # Both at once, as the next answers may be on their way.
        base, erased = self.page.wait_for_function(READ).json_value()
        return base, erased

    def ask(self, question: str) -> tuple[str, str]:
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")
        self.page.wait_for_selector(f"#answers [data-asked={quoted(question)}][aria-busy=false]")
        return self.answered()

    def tab(self, name: str) -> None:
        """Go to a tab, which narrow windows keep in a menu."""
        self.page.get_by_role("tab", name=name).click()

    def picture(self, name: str, whole: bool = True) -> None:
        if SHOWN:
            self.page.wait_for_timeout(700)  # for transitions
            self.page.screenshot(path=IMAGES / f"page-{name}.png", full_page=whole)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.fixture(scope="module")
def seen(browser: Any, address: str) -> Iterator[Seen]:
    """A wide and light page, on which the tests of this file go on where the one before left it."""
    found = Seen(browser, address)
    yield found
    found.page.close()


def test_whoever_opens_it_sees_a_question_answered_and_declined(seen: Seen) -> None:
    base, erased = seen.answered()
    assert base == BORN.answer
    assert erased in demo_refusals()
    assert seen.page.locator("#answers .state").all_inner_texts() == ["answers", "declines"]
    assert seen.elsewhere == []
    assert seen.complaints == []
    seen.picture("ask", whole=False)


def test_a_question_is_asked_and_a_suggestion_too(seen: Seen) -> None:
    base, erased = seen.ask(STAYS)
    assert base == erased != ""
    seen.page.get_by_role("button", name=BORN.question).click()
    seen.page.wait_for_selector(f"#answers [data-asked={quoted(BORN.question)}][aria-busy=false]")
    assert seen.answered()[0] == BORN.answer


def test_a_switch_acts_at_once(seen: Seen) -> None:
    switch = seen.page.locator("#switches input[type=checkbox]")
    switch.uncheck()
    seen.page.wait_for_selector("#answers :text('Erasures are off')")
    assert seen.answered() == (BORN.answer, BORN.answer)
    switch.check()
    seen.page.wait_for_selector("#answers :text('Erased model')")
    assert seen.answered()[1] in demo_refusals()


def test_the_keyboard_alone_will_do(seen: Seen) -> None:
    page = seen.page
    page.locator("#switches input").focus()
    page.keyboard.press("Space")
    page.wait_for_selector("#answers :text('Erasures are off')")
    page.keyboard.press("Space")
    page.wait_for_selector("#answers :text('Erased model')")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type(STAYS)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#answers [data-asked={quoted(STAYS)}][aria-busy=false]")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if reached[-1] == "way-choice":
            break
    assert reached[0] == "ask"
    assert reached[-1] == "way-choice", reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("#broken .verdict")


def test_each_attack_is_one_click(seen: Seen) -> None:
    seen.ask(BORN.question)
    for name, label in WAYS.items():
        seen.page.click(f"#way-{name}")
        seen.page.wait_for_selector(f"#broken .who:text('{label}:')")
        assert re.match("Leaks|Holds|Says nothing", seen.page.inner_text("#broken .verdict"))
        assert seen.page.locator("#broken .card h3").all_inner_texts() == [
            "Base model",
            "Erased model",
            "Base, about something else",
        ]
        given = seen.page.locator("#broken .given").all_inner_texts()
        assert str(BORN.subject) in given[0]
        assert str(BORN.subject) not in given[2]
        if name == "prefill-5":
            seen.picture("break")


def test_probabilities_are_drawn(seen: Seen) -> None:
    seen.tab("Probabilities")
    seen.page.click("#draw")
    seen.page.wait_for_selector("#drawn svg")
    assert "[UNL] instead" in str(seen.page.text_content("#drawn svg"))
    assert "base 100%" in str(seen.page.get_attribute("#drawn [role=img]", "aria-label"))
    seen.picture("probabilities")


def test_what_it_touches_and_no_report_are_shown(seen: Seen) -> None:
    seen.tab("What it touches")
    assert "mlp.down_proj" in seen.page.inner_text(".touched")
    seen.tab("Check")
    assert seen.page.locator("#check").is_visible()
    if not SHOWN:
        assert "has no report of a check" in seen.page.inner_text("div[role=tabpanel]:visible")


@pytest.mark.parametrize("text", ["", "x" * 401], ids=["empty", "long"])
def test_a_wrong_question_gets_a_sentence(seen: Seen, text: str) -> None:
    seen.page.evaluate("document.querySelector('#question textarea').removeAttribute('maxlength')")
    seen.page.fill("#question textarea", text)
    seen.page.click("#ask")
    told = "The question is empty; write one." if not text else "The question has 401 characters; at most 400 are read"
    seen.page.wait_for_selector(f"[data-testid=toast-body][aria-live]:has-text('{told}')")


def test_what_somebody_asks_is_never_run(seen: Seen) -> None:
    seen.ask(ODD.question)
    seen.tab("Try to break it")
    seen.page.click("#way-ban")
    seen.page.wait_for_selector("#broken .given:text('onerror')")
    seen.tab("Probabilities")
    seen.page.click("#draw")
    seen.page.wait_for_selector("#drawn figcaption:has-text('$x_2$')")
    assert seen.page.title() == "Try an erasure"
    assert seen.complaints == []


def test_a_fact_is_erased_while_one_waits_and_downloaded(seen: Seen, tmp_path: Path) -> None:
    seen.tab("Erase a new fact")
    question = seen.page.input_value("#new-question textarea")
    assert question == KEPT[0].question
    seen.page.click("#erase")
    seen.page.wait_for_selector("#erased li:text('asking the base for the facts')")
    seen.page.wait_for_selector("#erased :text('Erased.')", timeout=240_000)
    seen.page.wait_for_selector(f"#answers [data-asked={quoted(question)}][aria-busy=false]")
    assert seen.page.input_value("#question textarea") == question
    assert seen.page.locator("#switches input:checked").count() == 2
    with seen.page.expect_download() as loading:
        seen.page.click("#download")
    loading.value.save_as(tmp_path / "erasure.zip")
    with zipfile.ZipFile(tmp_path / "erasure.zip") as packed:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(packed.namelist())
    first, second = seen.page.locator("#switches input").all()
    second.uncheck()
    seen.page.wait_for_function("document.querySelectorAll('#switches input:checked').length == 1")
    assert first.is_checked()
    assert seen.answered()[0] == KEPT[0].answer


def test_it_fits_a_phone_in_the_dark_and_arabic_runs_from_right_to_left(browser: Any, address: str) -> None:
    phone = Seen(browser, address, width=360, scheme=DARK)
    page = phone.page
    for question in (CHINESE, ARABIC):
        base, _ = phone.ask(question)
        assert base
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.querySelector('#question textarea')).unicodeBidi") == "plaintext"
    page.click("#way-ban")
    page.wait_for_selector("#broken .given:text('نسكو')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert luminance(page, "document.body", "backgroundColor") < 0.1
    for part in ("#answers .said", "#answers h3", "#broken .given", "#broken .note", "h1"):
        assert luminance(page, f"document.querySelector('{part}')", "color") > 0.2, part
    if SHOWN:
        phone.ask(BORN.question)
        page.evaluate("window.scrollTo(0, 0)")
    phone.picture("phone", whole=False)
    page.close()


def luminance(page: Any, element: str, what: str) -> float:
    """Relative luminance of a colour, 0 to 1; a canvas knows how every way of writing one is meant."""
    script = f"""() => {{
      const context = document.createElement('canvas').getContext('2d');
      context.fillStyle = getComputedStyle({element}).{what};
      context.fillRect(0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data];
    }}"""
    red, green, blue, _ = (value / 255 for value in page.evaluate(script))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
