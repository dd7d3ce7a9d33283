"""The check's HTML page: verdict first, every attack by name, whatever the facts look like, and it asks for nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from peft_unierase.checking.fluency import Fluency
from peft_unierase.checking.page import NONE, Scale, allowed, duration, page, value
from peft_unierase.checking.report import AttackResult, CheckReport, Curve, Example, Figure
from peft_unierase.checking.scores import Interval
from peft_unierase.checking.verdict import LEVELS, Verdict

LONG = "https://example.org/" + "unbroken" * 60
MARKUP = "<script>fetch('//example.org')</script><img src=//example.org/a.png></dd></main>\"'&amp;{{ 7 * 6 }}"
RIGHT_TO_LEFT = "מה שם הסופר \u202e (1990) أين وُلد؟ " * 4
HOSTILE = (LONG, MARKUP, RIGHT_TO_LEFT, "one line\n\n    and another", "")


def interval(mean: float) -> Interval:
    return Interval(mean, max(mean - 0.03, min(mean, 0.0)), mean + 0.03)


def attack(name: str, erased: float, reference_model: float | None = 0.12, **changes: Any) -> AttackResult:
    reference = 0.08 if reference_model is None else reference_model
    excess = interval(erased - reference)
    values: dict[str, Any] = {
        "name": name,
        "title": f"title of {name}",
        "who": f"who could mount {name}",
        "unit": "ROUGE-L recall",
        "base": interval(0.95),
        "erased": interval(erased),
        "reference_model": None if reference_model is None else interval(reference_model),
        "excess": excess,
        "reference": "floor" if reference_model is None else "reference model",
        "floor": 0.08,
        "outcome": "holds" if excess.high <= 0.1 else "leaks",
    }
    return AttackResult(**{**values, **changes})


def report(level: str = "SUPPRESSED", reference_model: bool = True, **changes: Any) -> CheckReport:
    """A report of 30 attacks, two of which leak."""
    curve = Curve([0, 2, 5, 40], [0.9] * 4, [0.0, 0.2, 0.7, 0.8], [0.1, 0.1, 0.2, 0.3] if reference_model else None)
    common: dict[str, Any] = {"reference_model": 0.12 if reference_model else None}
    attacks = [
        attack("greedy", 0.02, renamed=interval(0.15), fluency=Fluency(0.9, 2.5), **common),
        attack("prefill-5", 0.84, **common),
        attack("relearn", 0.8, curve=curve, **common),
        *(attack(f"other-{number}", 0.1, **common) for number in range(27)),
    ]
    sets = ("forget", "retain", "world facts")
    figures = [
        Figure(each, name, 0.98, 0.03 if each == "forget" else 0.97, 0.1 if reference_model else None)
        for each in sets
        for name in ("recall", "probability", "exact memorisation")
    ]
    values: dict[str, Any] = {
        "verdict": Verdict(
            level, ["prefill-5", "relearn"], [], ["the first reason.", "the second reason."], len(attacks)
        ),
        "figures": [*figures, Figure("retain", "KL to the base", 0.0, None), Figure("neutral", "perplexity", 1.5, 9e4)],
        "scores": {
            "forget efficacy": {"base": 0.02, "erased": 0.97, "reference_model": None},
            "own": {"base": None, "erased": 0.5},
        },
        "attacks": attacks,
        "skipped": {"entailment": "no NLI model was given"},
        "examples": [
            Example("Where?", "In Paris.", "In Paris.", "I do not know.", "In Rome." if reference_model else None)
        ],
        "counts": {"forget": 40, "retain": 1800},
        "models": {
            "base": "org/base",
            "erased": "erase-xyz",
            "reference_model": "org/never-knew" if reference_model else None,
        },
        "settings": {
            "thresholds": {"known": 0.5, "margin": 0.1, "utility": 0.95, "confidence": 0.95},
            "seed": 7,
            "all": True,
        },
        "versions": {"torch": "2.9.1"},
        "created": "2026-01-05T12:30:00+00:00",
        "seconds": 192.0,
    }
    return CheckReport(**{**values, **changes})


def hostile() -> CheckReport:
    """A report with every text replaced by one that could break a page."""
    found = report()
    attacks = [replace(each, title=text, who=text) for each, text in zip(found.attacks, HOSTILE, strict=False)] + [
        attack(
            "own", -3.0, title="own", unit=LONG, base=Interval(120, 100, 140), excess=interval(-3), outcome="may leak"
        )
    ]
    texts = {text: text for text in HOSTILE}
    return replace(
        found,
        verdict=replace(found.verdict, reasons=[*HOSTILE, *HOSTILE]),
        attacks=[*attacks, *found.attacks],
        examples=[Example(text, text, text, text, text) for text in HOSTILE],
        figures=[*found.figures, *(Figure(text, name, 1e12, 0.5) for text in HOSTILE for name in ("recall", text))],
        scores={text: {"base": 1e12, "erased": float("inf"), "reference_model": -1e9} for text in HOSTILE},
        skipped=texts,
        counts=dict.fromkeys(HOSTILE, 123_456_789),
        models={"base": LONG, "erased": MARKUP, "reference_model": RIGHT_TO_LEFT},
        settings={"thresholds": found.settings["thresholds"], "more": texts, LONG: list(HOSTILE)},
        versions=texts,
    )


BARE = CheckReport(Verdict("ERASED", [], [], [], 0), [], {}, [])
REPORTS = {
    "full": report(),
    "without reference model": report(reference_model=False),
    "hostile": hostile(),
    "bare": BARE,
}


def words(text: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>|</?b\b[^>]*>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def headings(text: str, level: int) -> list[str]:
    return [words(found) for found in re.findall(rf"<h{level}\b[^>]*>.*?</h{level}>", text, flags=re.DOTALL)]


class Tags(HTMLParser):
    """Every tag with its attributes, pictures among them, which tags stayed open, and text inside `<style>`."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.pictures += [dict(attrs)] if tag == "svg" and tag not in self.open else []
        self.open += [tag] if tag not in self.VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.style += data if self.open[-1:] == ["style"] else ""


@pytest.mark.parametrize("level", LEVELS)
def test_verdict_stands_first_in_words_with_its_reasons(level):
    text = page(report(level))
    assert headings(text, 1) == [f"Erasure check {level}"]
    first = words(text.split("<main>")[0])
    assert "the first reason." in first
    assert "attacks tried 30 of them leak 2 not run 1" in first
    assert words(text.split('<p class="lead">')[1].split("</p>")[0]).endswith(".")
    assert {"removed", "compliant"}.isdisjoint(re.findall(r"\w+", words(text).lower()))


def test_what_is_lost_is_said_beside_what_leaks():
    lost = Verdict("DAMAGED", ["prefill-5", "relearn"], ["recall of retain"], ["one", "two", "three"], 30)
    expected = "But it has lost too much of what was to stay. And 2 attacks get more of the answers out than they may."
    assert expected in words(page(report(verdict=lost)))
    assert "lost too much" not in words(page(report()))


def test_what_may_leak_is_told_from_what_leaks():
    found = report()
    unclear = [replace(each, outcome="may leak") if each.outcome == "leaks" else each for each in found.attacks]
    text = words(page(replace(found, attacks=unclear)))
    assert "But 2 attacks get, or may get, more of them out than they may." in text
    assert "2 that leak or may" in text
    assert "may leak" not in words(page(found))


def test_every_attack_is_named_with_who_could_mount_it_and_leaks_come_first():
    found = report()
    text = words(page(found))
    for each in found.attacks:
        assert each.title in text
        assert each.who in text
    order = re.findall(r"title of (\S+)(?: \S+)? (leaks|holds)", text)
    assert [name for name, _ in order] == ["prefill-5", "relearn", "greedy", *(f"other-{n}" for n in range(27))]
    assert [result for _, result in order] == ["leaks"] * 2 + ["holds"] * 28
    assert headings(page(found), 3)[1:3] == ["2 that leak", "28 that hold"]


def test_chart_can_be_read_without_seeing_it():
    text = page(report())
    assert (
        'aria-label="base 0.950 (0.920 to 0.980), erased 0.840 (0.810 to 0.870), '
        'reference model 0.120 (0.090 to 0.150)"' in text
    )
    assert (
        "Leak over 40 steps: base from 0.900 to 0.900, erased from 0.000 to 0.800, reference model from 0.100 to 0.300"
        in text
    )
    assert all("aria-hidden" in tag or tag.get("aria-label") for tag in Tags(text).pictures)


def test_margin_is_drawn_beyond_what_an_attack_is_held_against():
    assert '<line class="margin" x1="22.0%"' in page(report())  # reference model 0.12 and margin 0.1
    assert '<line class="margin" x1="18.0%"' in page(report(reference_model=False))  # floor 0.08
    assert 'class="margin"' not in page(report(settings={}))


def test_margin_is_a_share_of_what_the_renamed_base_leaves():
    held = attack("held", 0.02, None, renamed=interval(0.6), reference="renamed base")
    assert allowed(held, 0.1) == pytest.approx(0.64)
    assert '<line class="margin" x1="64.0%"' in page(report(attacks=[held]))


def test_renamed_base_stands_beside_the_others_and_is_explained_only_if_it_is_there():
    text = page(report())
    assert "renamed base 0.150 (0.120 to 0.180), reference model 0.120" in text
    explained = "The renamed base is the base model, asked the same question about something else"
    assert explained in words(text)
    assert explained not in words(page(report(attacks=[attack("greedy", 0.02)])))
    assert "90% of the texts have no word three times in a row" in words(text)
    assert "2.5 times as perplexing as its own answers" in words(text)


def test_missing_parts_are_left_out():
    text = page(BARE)
    assert headings(text, 2) == ["What this check does not say"]
    assert "text of what was to be forgotten" not in words(text)
    assert len(headings(page(report()), 2)) == 10
    without = words(page(report(reference_model=False)))
    assert "There was no reference model" in without
    assert "Rome" not in without
    assert "never saw the facts" not in without.replace("a model that never saw the facts might guess", "")


def test_what_was_not_measured_is_a_dash():
    text = words(page(report()))
    assert f"KL to the base 0.000 {NONE} {NONE}" in text
    assert f"perplexity 1.500 90,000.0 {NONE}" in text


def test_texts_of_facts_come_with_a_warning_and_only_then():
    warning = "This file holds text of what was to be forgotten."
    assert warning in words(page(report()))
    assert warning not in words(page(report(examples=())))


def test_retained_recall_below_its_threshold_is_called_lost():
    figures = [Figure("retain", "recall", 0.9, 0.5), Figure("world facts", "recall", 0.9, 0.9)]
    assert words(page(report(figures=figures))).count("recall, lost") == 1


def test_scores_are_explained_and_those_without_a_figure_left_out():
    scores = {"forget efficacy": {"base": 0.02, "erased": 0.97}, "balance": {"base": None, "erased": None}}
    text = words(page(report(scores=scores)))
    assert f"Forget efficacy (FE) 0.020 0.970 {NONE} How little of the forget set is left" in text
    assert "Balance" not in text


def test_settings_and_versions_stand_at_the_end():
    end = words(page(report())).split("Settings and versions")[1]
    for part in ("margin 0.1", "seed 7", "all yes", "torch 2.9.1"):
        assert part in end


def test_texts_cannot_become_markup():
    text = page(hostile())
    assert not Tags(text).open
    assert MARKUP in html.unescape(text)
    assert MARKUP not in text


@pytest.mark.parametrize("found", REPORTS.values(), ids=REPORTS)
def test_page_refers_to_nothing_outside(found):
    read = Tags(page(found))
    assert not read.open
    names = {name for name, _ in read.tags}
    assert names.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "image"})
    refers = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "ping", "style"}
    assert [(key, tag[key]) for _, tag in read.tags for key in sorted(refers & set(tag))] == [("href", "data:,")]
    assert "url(" not in read.style
    assert "@import" not in read.style


def test_values_as_text():
    assert [value(x) for x in (None, 0.0, 1e-9, 0.0314, -0.5, 12.34, 1234.5)] == [
        NONE,
        "0.000",
        "<0.001",
        "0.031",
        "-0.500",
        "12.3",
        "1,234.5",
    ]
    assert [duration(x) for x in (0.25, 192.0, 239.9)] == ["0.2 s", "3 min 12 s", "4 min 0 s"]


def test_places_on_a_scale_stay_on_it():
    assert [Scale(-1, 3).at(x) for x in (-1, 0, 3, 9, -9, float("inf"))] == [0, 25, 100, 100, 0, 100]
    assert Scale(2, 2).at(2) == 0


def test_an_attack_of_another_unit_gets_an_axis_of_its_own():
    text = words(page(hostile()))
    assert "Drawn on an axis of its own, from -3.000 to 140.0." in text
    assert "axis of its own" not in words(page(report()))


def test_saved_page_is_the_page(tmp_path):
    report().save_html(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == page(report())


# Loads pages into frames of several widths, with details closed and open, and writes what sticks out into its own text.
MEASURING = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<body>%s<pre id="measured"></pre><script>
function sticksOut(page) {
  const width = page.documentElement.clientWidth, found = [];
  const outside = box => box.width && (box.right > width + 1 || box.left < -1);
  for (const part of page.body.querySelectorAll("*")) {
    const wide = part.clientWidth && part.scrollWidth > part.clientWidth + 1 && !part.closest("svg");
    if (wide || outside(part.getBoundingClientRect())) found.push(part.outerHTML.slice(0, 120));
  }
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT), range = page.createRange();
  while (texts.nextNode()) {
    range.selectNodeContents(texts.currentNode);
    if ([...range.getClientRects()].some(outside)) found.push(texts.currentNode.textContent.slice(0, 120));
  }
  return found;
}
addEventListener("load", () => {
  const measured = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    for (const open of [false, true]) {
      page.querySelectorAll("details").forEach(each => each.open = open);
      measured[`${frame.name} ${open ? "open" : "closed"}`] = {
        window: frame.contentWindow.innerWidth, page: root.scrollWidth, height: root.scrollHeight,
        out: sticksOut(page), asked: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
      };
    }
  }
  document.getElementById("measured").textContent = JSON.stringify(measured);
});
</script>"""


@contextmanager
def serving(pages: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A local server of these pages by path: its address, and every path that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium to look at the page with; on Debian and Ubuntu: apt-get install chromium")
    return found


def measure(pages: dict[str, str], widths: tuple[int, ...], profile: Path) -> tuple[dict[str, Any], list[str]]:
    """What a browser finds on pages in frames of these widths, and every path that it asked for."""
    paths = {name: f"/{number}.html" for number, name in enumerate(pages)}
    frames = "".join(
        f'<iframe name="{name} at {width}" src="{path}" style="width: {width}px; height: 700px; border: 0"></iframe>'
        for name, path in paths.items()
        for width in widths
    )
    served = {"/": MEASURING % frames, **{paths[name]: text for name, text in pages.items()}}
    switches = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    with serving(served) as (address, asked):
        command = [chromium(), *switches.split(), f"--user-data-dir={profile}", f"{address}/"]
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'<pre id="measured">(.*?)</pre>', dumped, flags=re.DOTALL)
    assert found, dumped[-2000:]
    return json.loads(html.unescape(found[1])), asked


def test_nothing_overflows_in_a_browser_and_no_network_is_asked_for(tmp_path):
    pages = {name: page(found) for name, found in REPORTS.items()}
    measured, asked = measure(pages, (320, 1280), tmp_path)
    assert len(measured) == 2 * 2 * len(pages)
    for name, found in measured.items():
        assert found["page"] <= found["window"], name
        assert found["out"] == [], name
        assert found["asked"] == [], name
    assert measured["full at 320 open"]["height"] > measured["full at 320 closed"]["height"] > 2000  # it was laid out
    assert set(asked) == {"/", *(f"/{number}.html" for number in range(len(pages)))}


def test_measuring_finds_what_is_broken(tmp_path):
    policy = r'<meta http-equiv="Content-Security-Policy".*?>'
    broken = {
        "wide": '<div style="width: 3000px">wide</div>',
        "clipped": '<div style="width: 99px; overflow: hidden; white-space: nowrap">much too long for its box</div>',
        "network": '<img src="/picture.png" alt="">',
    }
    text = re.sub(policy, "", page(BARE))
    pages = {name: text.replace("<main>", f"<main>{part}") for name, part in broken.items()}
    measured, asked = measure(pages, (320,), tmp_path)
    found = {name: measured[f"{name} at 320 closed"] for name in broken}
    assert [name for name in found if found[name]["page"] > found[name]["window"]] == ["wide"]
    assert [name for name in found if found[name]["out"]] == ["wide", "clipped"]
    assert [name for name in found if found[name]["asked"]] == ["network"]
    assert "/picture.png" in asked
