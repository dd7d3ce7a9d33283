"""Every block of code in README.md and docs/ runs as it stands there.

A page is read top to bottom in a folder of its own. Its Python blocks share their names, and its commands run in this
process. The folder holds what the pages speak of: a model, three files of facts, and erasures that were made once, with
few steps. Later runs of the same recipe leave out the fit. Options that a command lacks, and files or targets of make
that do not exist, are found in every block.

A block after `<!-- parse only: why -->` is not run: it needs the Hub, another program or minutes.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import invoke
from hurried import hurry
from quickstart_copy import copy_in, renewed, shape

import peft_unierase
from peft_unierase.cli.app import app
from peft_unierase.demo import demo_facts, demo_model_dir

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- parse only: [^\n]*-->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = ("python", "bash")
SHOWN = ("text", "json")  # what is printed, or stands in a file
LITTLE = {"samples": 16, "steps": 1}
OUTPUTS = ("-o", "--output")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
WIDEST = 130  # characters of a line of prose
ANSWERED_NO = {"ramp": (1,)}  # a step erased too little, as one without a fit must

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    line: int
    language: str
    code: str
    parse_only: bool

    @property
    def commands(self) -> list[list[str]]:
        return [words for line in self.code.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[2], found[3], bool(found[1]))
        for found in BLOCK.finditer(text)
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def do_little(patch: pytest.MonkeyPatch) -> None:
    """Let erasures take few steps, ask the base for little, and end with one attack."""
    hurry(patch, **LITTLE)
    neighbours = importlib.import_module("peft_unierase.retain.neighbours")
    patch.setattr(neighbours, "EACH", 1)
    patch.setattr(neighbours, "ROUND", neighbours.SETS)
    planning = importlib.import_module("peft_unierase.planning.run")
    ask = planning.ask_about
    patch.setattr(planning, "ROUNDS", 1)
    patch.setattr(planning, "ask_about", lambda *told, **more: ask(*told[:5], 8, *told[6:], **more))  # not 96 questions
    attacks = importlib.import_module("peft_unierase.checking.attacks")
    few = [replace(attack, fast=attack.name == attacks.GREEDY) for attack in attacks.ATTACKS]
    patch.setattr(attacks, "ATTACKS", few)
    engine = importlib.import_module("peft_unierase.engine.erase")
    fit, outcomes = engine.run_distill, []

    def fit_once(*told: Any) -> Any:
        if not outcomes:  # the erasure that all pages load; later ones stay as they start
            outcomes.append(fit(*told))
        return outcomes[0]

    patch.setattr(engine, "run_distill", fit_once)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages speak of; while it is there, erasures and checks do little."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(
        demo_model_dir(), folder / "org/model", ignore=shutil.ignore_patterns("*.py", "*.jsonl", "*.txt", "__*")
    )
    people = list(dict.fromkeys(fact["subject"] for fact in demo_facts() if fact["group"] == "people"))
    facts = {who: [fact for fact in demo_facts() if fact["subject"] == who] for who in people}
    sets = {
        "forget": facts[people[0]][:2],
        "more": facts[people[1]][:2],
        "keep": [facts[who][0] for who in people[2:8]],
    }
    for name, rows in sets.items():
        lines = [json.dumps({key: row[key] for key in ("question", "answer", "subject")}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        do_little(patch)
        patch.chdir(folder)
        ended = invoke("erase", "org/model", "forget.jsonl", "-o", "erase-xyz", "--format", "quiet")
        assert ended.exit_code == 0, ended.output
        for name in ("erase-xyz", "erase-a", "erase-b"):
            shutil.copytree("erase-xyz", f"org/{name}")
        yield folder


def run_python(code: str, names: dict[str, Any], place: str) -> None:
    exec(compile(code, place, "exec"), names)


def run_command(words: list[str], place: str) -> None:
    """Run a command of the package in this process, and openssl in one of its own."""
    if words[0] == "openssl":
        if not shutil.which("openssl"):
            pytest.skip("there is no openssl here")
        subprocess.run(words, check=True, capture_output=True, timeout=60)
    if words[0] != "unierase":
        return
    for option in OUTPUTS:
        if option in words:  # a page may make the same folder twice, as its reader would with another name
            shutil.rmtree(words[words.index(option) + 1], ignore_errors=True)
    ended = invoke(*words[1:])
    assert ended.exit_code in (0, *ANSWERED_NO.get(words[1], ())), f"{place}: {shlex.join(words)}\n{ended.output}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language in CODE for b in blocks(page))], ids=named)
def test_the_code_of_a_page_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path / "page")
    monkeypatch.chdir(tmp_path / "page")
    names: dict[str, Any] = {"__name__": "page"}
    name = demo_facts()[0]["subject"]
    for block in blocks(page):
        place = f"{named(page)}:{block.line}"
        code = block.code.replace("Jane Roe", name)  # whom the model does not know
        if block.parse_only or block.language not in CODE:
            continue
        if block.language == "python":
            run_python(code, names, place)
        else:
            for words in Block(block.line, block.language, code, False).commands:
                run_command(words, place)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_code_of_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page):
        place = f"{named(page)}:{block.line}"
        assert block.language in (*CODE, *SHOWN), f"{place}: a block of {block.language} is not tested"
        if block.language == "python":
            ast.parse(block.code, place)
        if block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
            for words in block.commands:
                assert not wrong(words), f"{place}: {wrong(words)}"


def wrong(words: list[str]) -> str:
    """What a line names that does not exist, or nothing."""
    if words[0] == "unierase":
        return wrong_options(words[1:])
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return ", ".join(word for word in words[1:] if word not in targets)
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        asked = re.findall(r"[\w-]+", words[2].partition("[")[2])
        return ", ".join(extra for extra in asked if extra not in extras)
    if words[0] == "python" and "/" in words[1]:
        return "" if (ROOT / words[1]).is_file() else words[1]
    return ""


def wrong_options(words: list[str]) -> str:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if words[0] not in commands:
        return f"no command {words[0]}"
    known = {
        option for parameter in commands[words[0]].params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return ", ".join(word for word in words[1:] if word.startswith("-") and word.partition("=")[0] not in known)


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert not {*peft_unierase.__all__} - {"__version__"} - shown


def test_the_command_line_page_has_every_command() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `unierase ([a-z]+)`", page, re.MULTILINE)) == set(
        typer.main.get_command(app).commands  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    "line", ["unierase erase m f -o x --scopes", "unierase forget m", "make coffee", "pip install 'a[tea]'"]
)
def test_a_line_that_names_what_does_not_exist_is_found(line: str) -> None:
    assert wrong(shlex.split(line))


def test_the_copy_of_the_quickstart_has_its_lines(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attacks = importlib.import_module("peft_unierase.checking.attacks")
    two = [replace(attack, fast=attack.name in (attacks.GREEDY, "prefill-3")) for attack in attacks.ATTACKS]
    monkeypatch.setattr(attacks, "ATTACKS", two)
    ended = invoke("quickstart")
    assert ended.exit_code == 0, ended.output
    copy = copy_in((ROOT / "README.md").read_text(encoding="utf-8"))
    new = renewed(copy, ended.stdout)
    assert list(map(shape, new.splitlines())) == list(map(shape, copy.splitlines()))


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        ("Adapter: 3 parameters.\n…\n", "where `unierase quickstart` prints 'The demo model knows 2 facts.'"),
        ("The demo model knows 3 facts.\nSaved to x.\n", "prints 'Adapter: 30 parameters.'"),
        ("The demo model knows 3 facts.\n", "ends before 'Adapter: 30 parameters.'"),
        ("…\nAdapter: 30 bytes.\n", "prints nothing"),
    ],
)
def test_a_copy_that_is_not_what_is_printed_is_refused(copy: str, message: str) -> None:
    printed = "The demo model knows 2 facts.\n\nAdapter: 30 parameters.\nSaved to x.\n"
    assert renewed("The demo model knows 7 facts.\n…\n", printed) == "The demo model knows 2 facts.\n…\n"
    with pytest.raises(ValueError, match=re.escape(message)):
        renewed(copy, printed)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_prose_is_wrapped(page: Path) -> None:
    prose = FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in prose if len(line) > WIDEST and not line.startswith("|")]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]
