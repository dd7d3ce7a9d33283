"""Forget files, configs, records and command lines that hypothesis makes up.

Each target takes a clean thing and something that was made of it, and may do what it says or raise one of the package's
own errors, in bounded time. What hypothesis finds is written down in `examples/`, which lies in the repository, and is
tried first from then on.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import string
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from workshop import Tally, clean_erasure, shared, tiny_base, write_facts

EXAMPLES = Path(__file__).with_name("examples")
SECONDS = 10
ENDINGS = (0, 1, 2, 130)

# Text with what breaks lines, terminals and encodings in it.
TEXT = st.text(
    st.one_of(
        st.sampled_from("\0\x1b\u2028\u2029\u0085\u202e\ufeff\ud800\udfff\r\n\t\"'\\,;{}[]:"),
        st.characters(exclude_categories=()),
    ),
    max_size=40,
)
NUMBER = st.one_of(
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -1, 0, 1.5, float("nan"), float("inf")]),
    st.floats(),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXT, inner, max_size=5)),
    max_leaves=20,
)
COLUMNS = st.sampled_from(
    ["question", "answer", "prompt", "completion", "messages", "text", "choices", "answers", "input", "output", "label"]
)
ROW = st.dictionaries(st.one_of(COLUMNS, TEXT), st.one_of(TEXT, JSON), max_size=5)
CHAT = st.fixed_dictionaries(
    {"messages": st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), JSON, max_size=3))}
)
OPTIONS = (
    *("--layers", "--recipe", "--samples", "--seed", "--dtype", "--scope", "--refusals", "--prompt-format", "--system"),
    *("--base", "--undo", "--forget", "--retain", "--format", "--salt-file", "--key", "--public-key", "--ledger"),
    *("--attacks", "--accept", "--margin", "--target-modules", "--onto", "-o", "--output", "--overwrite", "--steps"),
    *("--without", "--layout", "--question-column", "--device-map", "--trust", "--private", "--revision", "--help"),
)
COMMANDS = (
    *("erase", "check", "merge", "export", "stack", "inspect", "push", "plan", "ramp", "verify", "log", "restore"),
    *("sign", "quickstart", "nothing", ""),
)


class LateError(Exception):
    """It took longer than it may."""


@contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    """Raise where the block takes longer."""

    def late(*_: object) -> None:
        raise LateError(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(tally: Tally, folder: Path, cases: int, number: int, only: str | None = None) -> None:
    """Try every target whose name holds `only` with `cases` examples."""
    base = tiny_base(folder / "base")
    clean = clean_erasure(base, folder / "clean")
    names = [name for name in TARGETS if only is None or only in name]

    def one(name: str) -> Tally:
        own, place = Tally(), folder / name
        place.mkdir()
        os.chdir(place)
        os.environ["UNIERASE_HOME"] = str(place / "home")
        os.environ["HF_HUB_OFFLINE"] = "1"
        own.violations += _tried(name, TARGETS[name](place, clean, base), cases, number, own)
        return own

    for found in shared(names, one, Tally.failed):
        tally.add(found)


def _tried(name: str, target: tuple[Any, Callable[[Any], None]], cases: int, number: int, own: Tally) -> list[str]:
    strategy, call = target

    @settings(
        max_examples=cases,
        database=DirectoryBasedExampleDatabase(EXAMPLES),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=True,
        print_blob=False,
    )
    @seed(number)
    @given(strategy)
    def tried(value: Any) -> None:
        own.counts[f"examples of {name}"] += 1
        own.counts["examples"] += 1
        said = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said), bounded():
            warnings.simplefilter("ignore")
            call(value)

    # Hypothesis knows an example again by the name of the test that it was found with.
    tried.hypothesis.inner_test.__qualname__ = name
    tried.hypothesis.inner_test._hypothesis_internal_add_digest = name.encode()
    try:
        tried()
    except Exception as error:
        found = [_told(name, each) for each in getattr(error, "exceptions", (error,))]
    else:
        return []
    for text in found:
        print(f"VIOLATION  {text}", flush=True)
    return found


def _told(name: str, error: BaseException) -> str:
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    notes = " ".join(getattr(error, "__notes__", []))
    return f"{name}: {type(error).__name__}: {str(error)[:200]} ({last.filename}:{last.lineno}) {notes[:600]}"


def own_errors(call: Callable[[], Any]) -> Any:
    """What a call gives, or nothing if it raises one of the package's own errors or one of the system's."""
    from peft_unierase.errors import UniEraseError

    try:
        return call()
    except (UniEraseError, OSError):
        return None


def _facts(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    from peft_unierase import read_facts
    from peft_unierase.data.facts import check_facts

    def lines(rows: list[Any]) -> bytes:
        return "\n".join(json.dumps(row) for row in rows).encode()

    def table(rows: list[list[str]]) -> bytes:
        return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")

    rows = st.lists(st.one_of(ROW, CHAT, JSON), max_size=6)
    contents = st.one_of(
        st.tuples(st.just(".jsonl"), rows.map(lines)),
        st.tuples(st.just(".json"), st.one_of(rows, ROW, JSON).map(lambda value: json.dumps(value).encode())),
        st.tuples(st.just(".csv"), st.lists(st.lists(st.one_of(COLUMNS, TEXT), max_size=5), max_size=6).map(table)),
        st.tuples(st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]), st.binary(max_size=200)),
        st.tuples(
            st.sampled_from([".jsonl", ".json"]),
            st.tuples(st.sampled_from([b"[", b'{"a":', b'{"question":[']), st.integers(1, 100_000)).map(
                lambda told: told[0] * told[1]
            ),
        ),
    )

    def call(told: tuple[str, bytes]) -> None:
        file = place / f"facts{told[0]}"
        file.write_bytes(told[1])
        found = own_errors(lambda: read_facts(file))
        if found:
            own_errors(lambda: check_facts(found, []))

    return contents, call


def _config(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    from peft_unierase import UniEraseConfig
    from peft_unierase.cli.inspect import page, report
    from peft_unierase.cli.output import show, show_json
    from peft_unierase.guard.inspect import inspect_folder

    adapter = Path(shutil.copytree(clean, place / "adapter"))
    values = json.loads((adapter / "adapter_config.json").read_text())
    changes = st.dictionaries(st.one_of(st.sampled_from(sorted(values)), TEXT), JSON, min_size=1, max_size=3)
    parts = st.fixed_dictionaries(
        {"fused": st.lists(st.dictionaries(st.sampled_from(["name", *sorted(values)]), JSON, max_size=4), max_size=3)}
    )

    def call(change: dict[str, Any]) -> None:
        changed = {**values, **change}
        (adapter / "adapter_config.json").write_text(json.dumps(changed))
        inspection = own_errors(lambda: inspect_folder(adapter))
        if inspection is not None:
            told = report(str(adapter), inspection)
            show_json(told)
            show(page(told))
        known = {key: value for key, value in changed.items() if key in values}
        with suppress(ValueError, TypeError):
            UniEraseConfig(**known)

    return st.one_of(changes, parts), call


def _loading(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    import torch
    from made_apart import base_of

    from peft_unierase import load

    adapter = Path(shutil.copytree(clean, place / "adapter"))
    values = json.loads((adapter / "adapter_config.json").read_text())
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "erasure.json").unlink()
    model = base_of(base)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    flips = st.lists(st.tuples(st.integers(0, len(weights) - 1), st.integers(0, 255)), max_size=4)
    changes = st.dictionaries(st.sampled_from(sorted(values)), JSON, max_size=1)

    def call(told: tuple[list[tuple[int, int]], dict[str, Any], int]) -> None:
        nonlocal model
        changed = bytearray(weights)
        for where, value in told[0]:
            changed[where] = value
        (adapter / "adapter_model.safetensors").write_bytes(bytes(changed[: len(changed) - told[2]]))
        (adapter / "adapter_config.json").write_text(json.dumps({**values, **told[1]}))
        loaded = own_errors(lambda: load(model, adapter))
        if loaded is not None:
            for name, tensor in loaded.state_dict().items():
                assert torch.isfinite(tensor).all(), f"{name} is not finite"
            model = loaded.unload()
        now = dict(model.named_parameters())
        assert now.keys() == before.keys(), "the base has other parameters"
        assert all(torch.equal(now[name], before[name]) for name in now), "the base changed"

    return st.tuples(flips, changes, st.integers(0, 9)), call


def _record(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    from peft_unierase.cli.inspect import page, report
    from peft_unierase.cli.output import show, show_json
    from peft_unierase.data.facts import Fact
    from peft_unierase.guard.inspect import inspect_folder
    from peft_unierase.hub.results import eval_results
    from peft_unierase.hub.stack import stack
    from peft_unierase.records.compare import verify_facts, verify_files
    from peft_unierase.records.read import read_record, read_statement
    from peft_unierase.records.record import Salt

    adapter = Path(shutil.copytree(clean, place / "adapter"))
    values = json.loads((adapter / "erasure.json").read_text())
    keys = st.sampled_from(
        ["facts", "check", "counts", "token", "fused", "version", "layers", "onto", "adapter", "settings", "created"]
    )
    check = st.fixed_dictionaries(
        {},
        optional={
            "verdict": st.one_of(JSON, st.fixed_dictionaries({"level": TEXT})),
            "figures": st.one_of(
                JSON, st.lists(st.dictionaries(st.sampled_from(["set", "name", "base", "erased"]), JSON))
            ),
            "attacks": st.one_of(JSON, st.lists(st.dictionaries(st.sampled_from(["title", "unit", "erased"]), JSON))),
        },
    )
    predicates = st.one_of(
        JSON,
        st.dictionaries(keys, JSON, max_size=3),
        st.fixed_dictionaries({"check": check}),
        st.just(values["predicate"]),
    )
    wholes = st.one_of(
        JSON,
        st.tuples(predicates, st.dictionaries(st.sampled_from(sorted(values)), JSON, max_size=1)).map(
            lambda told: {**values, "predicate": told[0], **told[1]}
        ),
    )

    def call(told: Any) -> None:
        (adapter / "erasure.json").write_text(json.dumps(told))
        statement = own_errors(lambda: read_statement(adapter))
        if statement is not None:
            own_errors(lambda: eval_results(read_record(adapter)))
            own_errors(lambda: verify_files(adapter, statement))
            own_errors(lambda: verify_facts(statement, [Fact("Who?", "He.")], Salt(b"0" * 16)))
            own_errors(lambda: stack(adapter, trust=True))
        inspection = own_errors(lambda: inspect_folder(adapter))
        if inspection is not None:
            shown = report(str(adapter), inspection)
            show_json(shown)
            show(page(shown))

    return wholes, call


def _ledger(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    from peft_unierase.cli.log import log
    from peft_unierase.cli.output import Format
    from peft_unierase.records import ledger

    file = place / "ledger.jsonl"
    for number in range(3):
        ledger.append("erase", {"folder": f"a\u2028{number}"}, file)
    whole, head = file.read_bytes(), file.with_suffix(".head").read_bytes()
    flips = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=3)
    bytes_of = st.one_of(
        st.binary(max_size=100),
        flips.map(lambda changes: _flipped(whole, changes)),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.dictionaries(st.sampled_from(["number", "time", "action", "what", "previous", "digest"]), JSON).map(
            lambda value: whole + json.dumps(value).encode() + b"\n"
        ),
    )

    def call(told: tuple[bytes, bytes]) -> None:
        file.write_bytes(told[0])
        file.with_suffix(".head").write_bytes(told[1])
        own_errors(lambda: ledger.read(file))
        for style in (Format.HUMAN, Format.JSON):
            status = 0
            try:
                log(file, style)
            except SystemExit as error:
                status = int(error.code or 0)
            assert status in ENDINGS, status

    return st.tuples(bytes_of, st.one_of(st.just(head), st.binary(max_size=80))), call


def _others(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    """Ways back, signatures, cards, samples, salts and checkpoints."""
    import torch
    from safetensors.torch import save_file

    from peft_unierase import read_samples
    from peft_unierase.adapter.undo import read_header
    from peft_unierase.hub.push import check_folder
    from peft_unierase.hub.repo_card import repo_card
    from peft_unierase.records.record import read_salt
    from peft_unierase.records.sign import signed_digests
    from peft_unierase.retain.cache import load_samples

    adapter = Path(shutil.copytree(clean, place / "adapter"))
    card = (adapter / "README.md").read_text()
    text = TEXT.map(lambda value: value.encode("utf-8", "surrogatepass"))
    told = JSON.map(lambda value: json.dumps(value).encode())
    rows = st.lists(st.dictionaries(st.sampled_from(["kind", "question", "answer", "blocks", "digest"]), JSON))
    lines = rows.map(lambda each: "\n".join(map(json.dumps, each)).encode())
    anything = st.one_of(text, told, lines, st.binary(max_size=100))
    file = place / "file"

    def way_back(content: bytes) -> None:
        header = {"tied": content.decode("utf-8", "replace"), "tokens": "null", "digest": "sha256:" + "0" * 64}
        save_file({"a": torch.zeros(1)}, file, metadata=header)
        read_header(file)

    def signature(content: bytes) -> None:
        (adapter / "model.sig").write_bytes(content)
        signed_digests(adapter)

    def pushed(content: bytes) -> None:
        (adapter / "README.md").write_bytes(content)
        check_folder(adapter)

    def marked(content: bytes) -> None:
        mark = content.decode("utf-8", "replace")
        repo_card(card, "org/name", [], there=f"{card}\n<!-- unierase-card: {mark} -->\n")

    def reader(read: Callable[[Path], Any]) -> Callable[[bytes], None]:
        def call(content: bytes) -> None:
            file.write_bytes(content)
            read(file)

        return call

    readers: list[Callable[[bytes], None]] = [
        way_back,
        reader(read_header),
        signature,
        pushed,
        marked,
        reader(read_samples),
        reader(read_salt),
        reader(lambda path: load_samples(path, {})),
    ]

    def call(chosen: tuple[int, bytes]) -> None:
        own_errors(lambda: readers[chosen[0]](chosen[1]))

    return st.tuples(st.integers(0, len(readers) - 1), anything), call


def _command_line(place: Path, clean: Path, base: Path) -> tuple[Any, Callable[[Any], None]]:
    from helpers import invoke

    facts = write_facts(place / "facts.jsonl", [{"question": "Who?", "answer": "He."}])
    key = place / "key.pem"
    key.write_text("no key")
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe.jsonl")
    names = ("facts.jsonl", "key.pem", "folder", "pipe.jsonl", "nowhere", "/dev/zero", "/dev/null", "/", ".", "..")
    given = st.one_of(
        st.sampled_from(
            [*names, str(clean), str(facts), "a/b/c", "0-99999999999", "1,2", "-1", "1e9", "nan", "x" * 300]
        ),
        st.sampled_from(OPTIONS),
        TEXT,
        st.text(string.printable, max_size=10),
    )
    arguments = st.tuples(st.sampled_from(COMMANDS), st.lists(given, max_size=6))

    def call(told: tuple[str, list[str]]) -> None:
        # No model, because loading one takes long; `-o` only inside this target's folder.
        line = [told[0], *told[1]]
        if told[0] == "quickstart" and "--help" not in line:
            line.append("--nothing")
        ended = invoke(*line)
        failed = ended.exception
        assert failed is None or isinstance(failed, SystemExit), f"{type(failed).__name__}: {failed}"
        assert ended.exit_code in ENDINGS, f"status {ended.exit_code}: {ended.output[-300:]}"
        for name in ("a", "out"):
            shutil.rmtree(place / name, ignore_errors=True)

    return arguments, call


def _flipped(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for where, value in changes:
        changed[where] = value
    return bytes(changed)


TARGETS: dict[str, Callable[[Path, Path, Path], tuple[Any, Callable[[Any], None]]]] = {
    "forget files": _facts,
    "configs": _config,
    "adapters": _loading,
    "records": _record,
    "ledgers": _ledger,
    "other files": _others,
    "command lines": _command_line,
}
