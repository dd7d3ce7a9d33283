"""What a visitor of the page may not do, held against the page as it is served: one test a point."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import invoke
from page_of import BORN, Visitor, models_of, page_of, served

from peft_unierase import GuardError
from peft_unierase.cli import demo as command
from peft_unierase.cli.demo import DemoOptions, prepare
from peft_unierase.cli.sets import Reading
from peft_unierase.page import layout
from peft_unierase.page.closed import is_closed
from peft_unierase.page.layout import BUG, RUNS, WAITING, launch
from peft_unierase.page.models import LONGEST, Said

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(erasure: Path, tmp_path_factory: pytest.TempPathFactory) -> layout.Page:
    return page_of(erasure, tmp_path_factory.mktemp("made"), models_of(erasure))


@pytest.fixture(scope="module")
def address(page: layout.Page) -> Iterator[str]:
    with served(page) as place:
        yield place


def test_it_listens_on_the_loopback_address_alone(address: str) -> None:
    assert DemoOptions(reading=Reading()).host == "127.0.0.1"
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    assert host == "127.0.0.1"
    socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(OSError, match="refused"):  # it would answer if it listened on all addresses
        socket.create_connection(("127.0.0.2", int(port)), timeout=5).close()


def test_it_says_so_if_others_can_reach_it(monkeypatch: pytest.MonkeyPatch, page: layout.Page) -> None:
    class Blocks:
        def block_thread(self) -> None:
            pass

    seen: list[Any] = []
    monkeypatch.setattr(command, "prepare", lambda *_: page)
    monkeypatch.setattr(layout, "launch", lambda *told, **_: (Blocks(), seen.append(told) or "http://there/"))
    for host, told in (("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True)):
        ended = invoke("demo", "--host", host)
        assert ended.exit_code == 0, ended.output
        assert ("others can reach the page" in ended.stderr) == told
        assert "http://there/" in ended.stdout
    assert [each[1] for each in seen] == ["127.0.0.1", "::1", "localhost", "0.0.0.0"]


def test_it_takes_no_path_and_no_file_from_a_visitor(address: str, erasure: Path) -> None:
    visitor = Visitor(address)
    for path in ("/etc/passwd", str(erasure / "adapter_config.json"), str(Path(__file__)), "../../etc/passwd"):
        assert visitor.http.get(f"{visitor.address}file={path}").status_code in (403, 404)
    for name in ("upload", "upload/", "component_server", "call/answer", "run/answer", "api/answer", "stream/x"):
        answer = visitor.http.post(visitor.address + name, files={"files": ("x.txt", b"x")})
        assert (answer.status_code, answer.text[:20]) == (403, "This page takes no f"), name
    assert visitor.http.get(visitor.address + "proxy=http://127.0.0.1/").status_code == 403
    kinds = {each["type"] for each in visitor.parts.values()}
    assert not kinds & {"file", "uploadbutton", "image", "audio", "video", "multimodaltextbox", "fileexplorer"}
    sent = {number for event in visitor.events for number in event["inputs"]}
    assert {visitor.parts[number]["type"] for number in sent} == {"textbox", "checkboxgroup", "state", "button"}
    assert not is_closed("/gradio_api/queue/join")


def test_it_can_be_used_from_the_page_alone(address: str) -> None:
    visitor = Visitor(address)
    assert {event["api_visibility"] for event in visitor.events} == {"private"}
    assert visitor.http.get(visitor.address + "info").json()["named_endpoints"] == {}


def test_a_long_question_is_refused_by_the_server_in_a_sentence(address: str) -> None:
    ended = Visitor(address).does("ask", "x" * (LONGEST + 1), [], None)
    assert not ended["success"]
    assert f"has {LONGEST + 1} characters; at most {LONGEST} are read" in ended["output"]["error"]


def test_a_switch_that_is_not_there_is_refused(address: str) -> None:
    assert not Visitor(address).does("ask", BORN.question, ["../../etc"], None)["success"]


def test_a_bug_is_a_sentence_that_tells_nothing(
    address: str, page: layout.Page, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(page.models, "answers", broken)
    ended = Visitor(address).does("ask", BORN.question, [], None)
    assert ended["output"]["error"] == BUG
    assert "/home/somebody/secret" not in str(ended)
    assert "RuntimeError: /home/somebody/secret" in capfd.readouterr().err


def test_no_more_runs_go_at_once_than_allowed_and_the_queue_has_an_end(
    address: str, page: layout.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, now, most = threading.Lock(), 0, 0
    go_on = threading.Event()

    def slow(*_: Any) -> Iterator[tuple[Said, Said]]:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        go_on.wait(30)
        with lock:
            now -= 1
        yield Said("x", done=True), Said("x", done=True)

    monkeypatch.setattr(page.models, "answers", slow)
    visitors = [Visitor(address, f"visitor {number}") for number in range(RUNS + WAITING + 2)]
    joined = [visitors[0].join("ask", BORN.question, [], None).status_code]
    while not now:
        time.sleep(0.05)
    joined += [each.join("ask", BORN.question, [], None).status_code for each in visitors[1:]]
    go_on.set()
    assert joined == [200] * (RUNS + WAITING) + [503, 503]
    for each in visitors[: RUNS + WAITING]:
        assert each.outcome()["success"]
    assert most == RUNS


def test_everything_that_runs_a_model_waits_its_turn(page: layout.Page) -> None:
    blocks = layout.build(page)
    runs = [each for each in blocks.fns.values() if each.queue]
    assert {(each.concurrency_id, each.concurrency_limit) for each in runs} == {("asking", RUNS), ("working", 1)}
    others = [each for each in blocks.fns.values() if not each.queue]
    assert {blocks.blocks[number].get_block_name() for each in others for number, _ in each.targets} == {"button"}
    assert len(runs) >= 10


def test_what_the_guard_refuses_is_not_shown(erasure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "erase-evil"
    folder.mkdir()
    for file in erasure.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "modeling.py").write_text("1", encoding="utf-8")
    with pytest.raises(GuardError, match=r"modeling\.py"):
        prepare(DemoOptions(adapters=[str(folder)], reading=Reading()), [], [], tmp_path)
    served: list[Any] = []
    monkeypatch.setattr(layout, "launch", lambda *told, **_: served.append(told))
    ended = invoke("demo", folder)
    assert ended.exit_code == 2
    assert "modeling.py" in ended.stderr
    assert served == []
    assert "--trust" not in invoke("demo", "--help").output


def test_a_base_without_an_erasure_is_refused() -> None:
    ended = invoke("demo", "--model", "org/model")
    assert ended.exit_code == 2
    assert "there is no erasure of org/model to show; name one" in ended.stderr


def test_a_port_that_is_taken_is_a_sentence(page: layout.Page, address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}.*choose another with --port"):
        launch(page, port=port, block=False)


def test_the_page_asks_nobody_else_for_anything(address: str) -> None:
    text = httpx.get(address, trust_env=False).text
    assert "fonts.googleapis.com/css" not in text
