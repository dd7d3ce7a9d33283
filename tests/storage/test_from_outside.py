"""What comes from outside: pipes named like files, JSON without end, odd letters, and values of other types."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import invoke, run_command, save_tiny_model, write_rows
from made_apart import base_of, config_of
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import peft_unierase
from peft_unierase import GuardError, UniEraseConfig, load, read_facts, read_samples
from peft_unierase.adapter.undo import read_header
from peft_unierase.cli import output
from peft_unierase.errors import InputError
from peft_unierase.guard.inspect import inspect_folder
from peft_unierase.hub.folder import check_output
from peft_unierase.hub.push import check_folder
from peft_unierase.records.read import adapter_type, read_statement
from peft_unierase.records.record import PREDICATE, STATEMENT, predicate_of, read_salt
from peft_unierase.records.sign import signed_digests
from peft_unierase.storage.output import check_new, check_place
from peft_unierase.storage.plain import (
    DEEPEST,
    JsonError,
    NotPlainError,
    check_plain_folder,
    parse_json,
    plain,
    read_bytes,
)

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "erasure.json"
DEEP = "[" * 100_000
ODD = {"half a character": "a\ud800", "U+2028": "a\u2028b", "U+0085": "a\u0085b", "NUL": "a\0b", "escape": "a\x1b[2Jb"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    settings = {"intermediate_size": 32, "hidden_size": 64, "num_hidden_layers": 2}
    save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, **settings)
    torch.manual_seed(1)
    base = base_of(folder / "base")
    get_peft_model(base, config_of(base)).save_pretrained(folder / "clean", save_embedding_layers=False)
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "clean")
    statement = {"_type": STATEMENT, "predicateType": PREDICATE, "subject": [], "predicate": {}}
    (folder / "clean" / RECORD).write_text(json.dumps(statement))
    (folder / "clean" / "README.md").write_text("# An erasure\n\nIt is one.\n")
    return folder


@pytest.fixture
def adapter(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "clean", tmp_path / "adapter"))


@pytest.fixture(autouse=True)
def in_bounded_time() -> Iterator[None]:
    """A pipe that is opened waits for ever, so the alarm makes it a failure."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def in_its_place(file: Path, kind: str) -> Path:
    """Put a pipe, a socket, a folder or a device in the place of a file."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        here = Path.cwd()
        os.chdir(file.parent)  # the address of a socket may have 107 characters
        try:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(file.name)
        finally:
            os.chdir(here)
    return file


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_nothing_but_a_plain_file_is_opened(kind: str, tmp_path: Path) -> None:
    file = in_its_place(tmp_path / "file", kind)
    for opening in (plain, read_bytes):
        with pytest.raises(NotPlainError, match=f"a {kind}, and no plain file"):
            opening(file)
    if kind != "folder":
        with pytest.raises(NotPlainError):
            check_plain_folder(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "lost link"])
def test_what_is_no_folder_is_no_place_for_an_output(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    if kind == "lost link":
        place.symlink_to("nowhere")
    else:
        in_its_place(place, kind)
    for check in (check_new, check_output, check_place):
        with pytest.raises(InputError, match="something else than a folder"):
            check(place)
    assert os.path.lexists(place)


def test_a_file_is_read_up_to_its_bound_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nowhere")
    check_plain_folder(tmp_path)
    assert read_bytes(tmp_path / "link", 4) == b"1234"
    with pytest.raises(NotPlainError, match="larger than 3 bytes"):
        read_bytes(tmp_path / "link", 3)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "type of an adapter": (CONFIG, lambda file: adapter_type(str(file.parent))),
    "inspect": (CONFIG, lambda file: _raised(inspect_folder(file.parent))),
    "load": (CONFIG, lambda file: load(torch.nn.Linear(1, 1), file.parent)),
    "load with trust": (CONFIG, lambda file: load(torch.nn.Linear(1, 1), file.parent, trust=True)),
    "record": (RECORD, lambda file: read_statement(file.parent)),
    "push": (CONFIG, lambda file: check_folder(file.parent)),
    "push, card": ("README.md", lambda file: check_folder(file.parent)),
    "signature": ("model.sig", lambda file: signed_digests(file.parent)),
    "facts": ("facts.jsonl", lambda file: read_facts(file)),
    "table": ("facts.parquet", lambda file: read_facts(file)),
    "samples": ("samples.jsonl", read_samples),
    "salt": ("salt", read_salt),
    "way back": ("undo.safetensors", read_header),
}


def _raised(inspection: Any) -> None:
    if inspection.refused:
        raise GuardError("it", inspection.refused)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_file(reader: str, kind: str, adapter: Path) -> None:
    name, read = READERS[reader]
    in_its_place(adapter / name, kind)
    with pytest.raises((ValueError, OSError)):
        read(adapter / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_base_with_a_pipe_in_it_is_refused(name: str, place: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(place / "base", tmp_path / "base"))
    in_its_place(base / name, "pipe")
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "He."}])
    ended = invoke("erase", base, facts, "-o", tmp_path / "out")
    assert ended.exit_code == 2
    assert "a pipe, and no plain file" in ended.stderr


@pytest.mark.parametrize("command", ["merge", "export", "stack", "check"])
def test_commands_that_trust_it_do_not_wait_for_a_pipe_either(
    command: str, adapter: Path, place: Path, tmp_path: Path
) -> None:
    in_its_place(adapter / CONFIG, "pipe")
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "He."}])
    further = {"stack": [], "check": ["--forget", facts, "--base", place / "base"]}
    ended = invoke(
        command, adapter, "-o", tmp_path / "out", "--trust", *further.get(command, ["--base", place / "base"])
    )
    assert ended.exit_code == 2
    assert "a pipe, and no plain file" in ended.stderr


def test_every_file_from_outside_is_read_by_one_function() -> None:
    """What reads a file otherwise reads one of the package's own, or one that the process has just written."""
    package = Path(peft_unierase.__file__).parent
    # The ledger has a lock of its own; of weights the guard has looked at the file before.
    own = {"demo/__init__.py", "checking/page.py", "page/parts.py", "storage/plain.py"}
    own |= {"records/ledger.py", "guard/weights.py"}
    just_written = {"made", "partial"}
    found = []
    for file in package.rglob("*.py"):
        if file.relative_to(package).as_posix() in own:
            continue
        for call in [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]:
            of = getattr(call.func, "value", None)
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            arguments = [getattr(each, "value", each) for each in call.args]
            inner = getattr(arguments[0], "func", None) if arguments else None
            by_library = name in ("safe_open", "load_file", "ParquetFile") and getattr(inner, "id", "") != "plain"
            reads = name in ("read_text", "read_bytes") or (
                name == "open" and (not arguments or not str(arguments[0]).startswith(("w", "a", "x")))
            )
            module = getattr(of, "id", "") in ("os", "webbrowser") or getattr(of, "id", "") in just_written
            if by_library or (of is not None and reads and not module):
                found.append(f"{file.relative_to(package)}:{call.lineno} {name}")
    assert found == []


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "[" * 900 + "]" * 900, "1" * 5000, "{", "nul"])
def test_json_that_nobody_could_mean_is_refused(text: str) -> None:
    with pytest.raises(JsonError):
        parse_json(text)


def test_json_is_read_as_deep_as_anybody_writes_it() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert len(parse_json(json.dumps([[1]] * 1000))) == 1000
    with pytest.raises(JsonError, match="nested more than"):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


@pytest.mark.parametrize("name", [CONFIG, RECORD, "tokenizer_config.json"])
@pytest.mark.parametrize("content", [DEEP.encode(), b'{"a": "\xff"}', b"[1]", b"", b'{"peft_type": 5}'])
def test_a_file_that_is_no_json_object_is_a_finding(name: str, content: bytes, adapter: Path, tmp_path: Path) -> None:
    (adapter / name).write_bytes(content)
    for command in (["inspect", adapter], ["stack", adapter, "-o", tmp_path / "out"], ["verify", adapter]):
        ended = invoke(*command)
        assert ended.exit_code in (1, 2) or (name == "tokenizer_config.json" and b"peft" in content), ended.output
        assert ended.exception is None or isinstance(ended.exception, SystemExit)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("field", ["base_model_name_or_path", "revision", "token", "base_dtype", "target_modules"])
def test_odd_letters_in_a_config_are_refused_and_shown(odd: str, field: str, adapter: Path) -> None:
    values = json.loads((adapter / CONFIG).read_text())
    values[field] = [ODD[odd]] if field == "target_modules" else ODD[odd]
    (adapter / CONFIG).write_text(json.dumps(values))
    for style in ("human", "json"):
        ended = invoke("inspect", adapter, "--format", style)
        assert ended.exit_code == 1, ended.output
        assert ODD[odd] not in ended.stdout
        assert f"a wrong value of {field}" in ended.stdout


def test_a_name_of_a_file_that_is_no_text_is_refused_and_shown(adapter: Path) -> None:
    for name in (b"caf\xe9.txt", "a\u2028b.txt".encode(), b"a\x1b[2Jb.txt"):
        (adapter / os.fsdecode(name)).write_text("")
    ended = invoke("inspect", adapter, "--format", "json")
    assert ended.exit_code == 1
    found = [each["what"] for each in json.loads(ended.stdout)["findings"]]
    assert found.count("a file whose name is no text") == 3
    assert len(invoke("inspect", adapter, "--format", "human").stdout.split("a file whose name is no text")) == 4


PREDICATES: dict[str, Any] = {
    "facts that are a list": {"facts": []},
    "digests of another type": {"facts": {"algorithm": "hmac-sha256", "digests": [1]}},
    "digests that are none": {"facts": {"algorithm": "hmac-sha256", "digests": ["12"]}},
    "another algorithm": {"facts": {"algorithm": "none", "digests": []}},
    "counts of another type": {"counts": {"forget": "many"}},
    "counts that are a list": {"counts": [1]},
    "a check that is a text": {"check": "fine"},
    "a verdict that is a text": {"check": {"verdict": "ERASED"}},
    "a verdict without a level": {"check": {"verdict": {}}},
    "a level that is a list": {"check": {"verdict": {"level": []}}},
    "figures that are numbers": {"check": {"verdict": {"level": "ERASED"}, "figures": [1]}},
    "an attack without figures": {"check": {"verdict": {"level": "ERASED"}, "attacks": [{"title": "a"}]}},
    "parts that are a list": {"fused": []},
    "a part that is a text": {"fused": {"a": "b"}},
    "a token without an id": {"token": {"text": "[UNL]"}},
    "a truth value for a number": {"seed": True},
    "half a character": {"recipe": "\ud800"},
    "a version that is a number": {"version": 1},
}


@pytest.mark.parametrize("reason", PREDICATES)
def test_a_record_with_values_of_another_type_is_refused(reason: str, adapter: Path) -> None:
    told = {"_type": STATEMENT, "predicateType": PREDICATE, "subject": [], "predicate": PREDICATES[reason]}
    with pytest.raises(ValueError, match="it is no record of an erasure: predicate"):
        predicate_of(told)
    (adapter / RECORD).write_text(json.dumps(told))
    assert [each.what for each in inspect_folder(adapter).refused] == ["a record that is none"]
    for command in ("inspect", "verify"):
        ended = invoke(command, adapter)
        assert ended.exit_code == {"inspect": 1, "verify": 2}[command]
        assert isinstance(ended.exception, SystemExit)


@pytest.mark.parametrize("key", ["name", "r", "target_modules", "token_id", "token", "rank_pattern"])
def test_a_part_without_a_key_is_refused(key: str, adapter: Path, tmp_path: Path) -> None:
    assert invoke("stack", adapter, "-o", tmp_path / "stacked").exit_code == 0
    file = tmp_path / "stacked" / CONFIG
    values = json.loads(file.read_text())
    del values["fused"][0][key]
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"fused must be|has no"):
        UniEraseConfig(**values)
    for command in (["inspect", file.parent], ["stack", file.parent, "-o", tmp_path / "again"]):
        ended = invoke(*command)
        assert ended.exit_code in (1, 2)
        assert isinstance(ended.exception, SystemExit)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"tied": "maybe", "tokens": "null", "digest": "sha256:" + "0" * 64},
        {"tied": "true", "tokens": "[1]", "digest": "sha256:" + "0" * 64},
        {"tied": "true", "tokens": "null", "digest": "none"},
        {"tied": DEEP, "tokens": "null", "digest": "sha256:" + "0" * 64},
        {"tied": "1", "tokens": "{}", "digest": "sha256:" + "0" * 64},
    ],
)
def test_a_way_back_with_another_header_is_refused(header: dict[str, str], tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "undo", metadata=header)
    with pytest.raises(ValueError, match="holds no way back"):
        read_header(tmp_path / "undo")


class Stream(io.TextIOWrapper):
    """What a command writes to, in some encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_printing_never_fails_and_json_says_the_same(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"all": ["é 漢 😀 नमस्ते\u200d", *ODD.values(), "\u202eabc", "a\nb\tc"]}
    stream = Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    output.show_json(value)
    assert json.loads(stream.text()) == value
    for text in value["all"]:
        output.show(text)
    monkeypatch.setattr(sys, "stderr", Stream(encoding))
    output.say("\ud800 漢 \x1b[2J")
    with pytest.raises(SystemExit):
        output.fail("\ud800 漢 \u2028")
    assert not set("\x1b\u2028\u0085\0\u202e") & set(stream.text())


def test_an_output_that_nobody_reads_any_more_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        script = (
            "import unierase_command\nfrom peft_unierase.cli import output\n"
            "for n in range(3): output.show('x' * 9)\noutput.say('done')"
        )
        ended = subprocess.run([sys.executable, "-c", script], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "done\n")


@pytest.mark.parametrize("argument", ["a\udcff", "a\0b"])
def test_an_argument_that_is_no_text_is_refused(argument: str, tmp_path: Path) -> None:
    for command in (["inspect", argument], ["erase", argument, "b", "-o", tmp_path / "c"], [argument]):
        ended = invoke(*command)
        assert ended.exit_code == 2
        assert "the argument" in ended.stderr


def test_help_does_not_wait_for_the_validator() -> None:
    script = "import sys, unierase_command\nimport peft_unierase.cli.app\nprint('pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"
    assert run_command("--version").returncode == 0
