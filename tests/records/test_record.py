"""The record, the ledger and the way back: what was done can be proved, facts cannot be guessed from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import invoke, listing, save_tiny_model, write_rows
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import peft_unierase
from peft_unierase import Fact, UniEraseConfig
from peft_unierase.adapter.fingerprint import base_dtype, base_fingerprint
from peft_unierase.adapter.undo import merged_tokens, model_digest, put_back
from peft_unierase.cli import erase as cli_erase
from peft_unierase.cli import note as cli_note
from peft_unierase.cli.note import note, promise
from peft_unierase.errors import InputError
from peft_unierase.hub.folder import save_erasure
from peft_unierase.records import ledger
from peft_unierase.records.record import Salt, coverage, fact_digests, file_digests, predicate_of, read_salt
from peft_unierase.storage import whole
from peft_unierase.storage.digests import recorded_digests

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
FACTS = [Fact("Where was Ada Finch born?", "In Oslo."), Fact("What does Ada Finch collect?", "Blue glass.")]
SALT = Salt(bytes(range(32)))
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an erasure of random weights saved as the command saves one."""
    folder = tmp_path_factory.mktemp("record")
    save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, tie_word_embeddings=request.param)
    base, tokenizer = base_of(folder), AutoTokenizer.from_pretrained(folder / "base")
    torch.manual_seed(1)
    config = UniEraseConfig(
        task_type="CAUSAL_LM",
        target_modules=[DOWN, "model.layers.2.mlp.down_proj"],
        token_id=len(tokenizer),
        init_weights=False,
        base_fingerprint=base_fingerprint(base, [DOWN, "model.layers.2.mlp.down_proj"]),
        base_dtype=base_dtype(base, [DOWN]),
    )
    model = get_peft_model(base, config)

    def facts(adapter: str) -> dict[str, Any]:
        return {"algorithm": "hmac-sha256", "digests": fact_digests(FACTS, SALT.key(adapter))}

    save_erasure(model, tokenizer, folder / "erasure", {"version": "0"}, "# card\n", facts=facts)
    (folder / "salt").write_text(SALT.value.hex() + "\n", encoding="ascii")
    return folder


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The erasure once more, to be spoilt."""
    for name, content in listing(place / "erasure").items():
        file = tmp_path / "erasure" / name
        if content is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return tmp_path / "erasure"


def statement(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "erasure.json").read_text(encoding="utf-8"))


def test_the_record_is_a_statement_about_the_files_that_erase(place: Path) -> None:
    record = statement(place / "erasure")
    assert record["_type"] == "https://in-toto.io/Statement/v1"
    assert predicate_of(record)["version"] == "0"
    digests = recorded_digests(record)
    assert {"adapter_config.json", "adapter_model.safetensors", "lora/adapter_model.safetensors"} <= digests.keys()
    assert not {"erasure.json", "README.md"} & digests.keys()
    for name, digest in digests.items():
        assert hashlib.sha256((place / "erasure" / name).read_bytes()).hexdigest() == digest


def test_nobody_without_the_salt_can_test_a_guess(place: Path) -> None:
    """Every plain or salted digest that a reader of the folder could make of the right guess is not in it."""
    text = "".join((place / "erasure" / name).read_text(encoding="utf-8") for name in ("erasure.json", "README.md"))
    adapter = recorded_digests(statement(place / "erasure"))["adapter_model.safetensors"]
    public = [
        b"",
        adapter.encode(),
        bytes.fromhex(adapter),
        base_of(place).config.to_json_string().encode(),
        b"unierase",
    ]
    for fact in FACTS:
        spelled = (fact.question, fact.answer, json.dumps([fact.question, fact.answer]), fact.question + fact.answer)
        guesses = {hashlib.sha256(each.encode()).hexdigest() for each in spelled}
        guesses |= {digest for known in public for digest in fact_digests([fact], Salt(known).key(adapter))}
        guesses |= {digest for known in public for digest in fact_digests([fact], known)}
        assert not any(guess in text for guess in (*guesses, *spelled))
    assert all(digest in text for digest in fact_digests(FACTS, SALT.key(adapter)))


def test_two_erasures_of_one_fact_do_not_show_that_they_are() -> None:
    one, other = (fact_digests(FACTS, SALT.key(adapter)) for adapter in ("ab", "cd"))
    assert not set(one) & set(other)


def test_spelling_that_looks_the_same_is_the_same_fact() -> None:
    key = SALT.key("ab")
    composed, combining = Fact("Who is Zoë?", "A painter."), Fact("Who is Zoe\u0308?", "A painter.")
    assert coverage([combining], fact_digests([composed], key), key) == ([], 0)


@pytest.mark.parametrize(
    ("facts", "outcome", "why"),
    [
        (FACTS, "holds", "exactly these 2 were erased"),
        (FACTS[:1], "FAILS", "1 in the record are not among these"),
        ([*FACTS, Fact("Who?", "Me.")], "FAILS", "1 of the 3 are not in the record, the first of them 'Who?'"),
        ([FACTS[0], Fact(FACTS[1].question, "Red glass.")], "FAILS", "1 of the 2 are not in the record"),
        ([Fact("Who?", "Me.")], "FAILS", "they are other facts, or the salt is another one"),
    ],
)
def test_who_has_the_salt_sees_whether_exactly_these_facts_were_erased(
    place: Path, tmp_path: Path, facts: list[Fact], outcome: str, why: str
) -> None:
    rows = [{"question": fact.question, "answer": fact.answer} for fact in facts]
    forget = write_rows(tmp_path / "facts.jsonl", rows)
    ended = invoke(
        *("verify", place / "erasure", "--forget", forget, "--salt-file", place / "salt", "--format", "json")
    )
    told = json.loads(ended.stdout)
    (found,) = [finding for finding in told["findings"] if finding["what"] == "facts"]
    assert found["outcome"] == outcome
    assert why in found["why"]
    assert ended.exit_code == (0 if outcome == "holds" else 1)


def test_verify_finds_what_was_changed(copied: Path, place: Path) -> None:
    def failing() -> dict[str, str]:
        told = json.loads(invoke("verify", copied, "--format", "json").stdout)
        return {f["what"]: f["why"] for f in told["findings"] if f["outcome"] == "FAILS"}

    assert failing() == {}
    (copied / "README.md").write_text("# the owner's own card\n", encoding="utf-8")
    assert failing() == {}
    weights = copied / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "and the record says" in failing()["adapter_model.safetensors"]
    (copied / "more.bin").write_bytes(b"")
    assert failing()["more.bin"] == "it is there, and the record does not name it"
    (copied / "lora" / "adapter_config.json").unlink()
    assert failing()["lora/adapter_config.json"] == "the record names it, and it is not there"
    ended = invoke("verify", copied, "--format", "human")
    assert ended.exit_code == 1
    assert "3 of" in ended.stdout


def test_verify_tells_the_base_from_others(place: Path, tmp_path: Path) -> None:
    def base(name: Path) -> tuple[str, str]:
        told = json.loads(invoke("verify", place / "erasure", "--base", name, "--format", "json").stdout)
        (found,) = [finding for finding in told["findings"] if finding["what"] == "base"]
        return found["outcome"], found["why"]

    assert base(place / "base")[0] == "holds"
    other = save_tiny_model(tmp_path / "other", LlamaForCausalLM, LlamaConfig, initializer_range=0.5)
    assert base(other)[0] == "FAILS"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda record: record.pop("_type"), "it is no record of an erasure: _type: Field required"),
        (lambda record: record.update(predicate=[]), "predicate: Input should be a valid dictionary"),
        (lambda record: record["predicate"].pop("facts"), "says nothing of the facts"),
    ],
)
def test_a_record_that_is_none_is_refused(
    copied: Path, place: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    record = statement(copied)
    spoil(record)
    (copied / "erasure.json").write_text(json.dumps(record), encoding="utf-8")
    forget = write_rows(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "Me."}])
    ended = invoke("verify", copied, "--forget", forget, "--salt-file", place / "salt")
    assert ended.exit_code == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("content", "message"), [("xyz", "must hold hexadecimal digits"), ("abcd", "holds 2 bytes, too few to be a secret")]
)
def test_a_salt_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "salt").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_salt(tmp_path / "salt")


def test_a_new_salt_is_for_its_owner_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_salt(tmp_path / "own" / "salt")
    salt = read_salt(tmp_path / "own" / "salt", create=True)
    assert read_salt(tmp_path / "own" / "salt") == salt
    assert (tmp_path / "own" / "salt").stat().st_mode & 0o777 == 0o600
    assert len(salt.value) == 32


def filled(folder: Path) -> Path:
    file = folder / "ledger.jsonl"
    for number in range(4):
        ledger.append("check", {"number": number}, file)
    return file


def test_saving_again_keeps_what_the_owner_wrote_in_the_card(copied: Path, place: Path) -> None:
    base = base_of(place)
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    config = UniEraseConfig(target_modules=[DOWN], token_id=len(tokenizer), init_weights=False)
    model = get_peft_model(base, config)
    first = (
        "---\ntags: [x]\n---\n# name\n\n## What was erased\n\n3 facts.\n\n## Check\n\nLEAKING\n\n## Limits\n\nMany.\n"
    )
    save_erasure(model, tokenizer, copied, {"version": "0"}, first, overwrite=True)
    card = copied / "README.md"
    text = card.read_text(encoding="utf-8").replace("3 facts.", "My own words.").replace("tags:", "license: mit\ntags:")
    card.write_text(text.replace("\n## Limits\n", "\n## Thanks\n\nTo all.\n\n## Limits\n"), encoding="utf-8")
    second = first.replace("3 facts", "5 facts").replace("LEAKING", "ERASED").replace("Many", "Few")
    for _ in range(2):
        save_erasure(model, tokenizer, copied, {"version": "0"}, second, overwrite=True)
    text = card.read_text(encoding="utf-8")
    assert [part in text for part in ("My own words.", "To all.", "license: mit", "ERASED", "Few.")] == [True] * 5
    assert [part in text for part in ("5 facts", "LEAKING", "Many")] == [False] * 3


def test_a_ledger_that_nobody_touched_is_whole(tmp_path: Path) -> None:
    entries = ledger.read(filled(tmp_path))
    assert [entry.what["number"] for entry in entries] == [0, 1, 2, 3]
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert json.loads(invoke("log", "--ledger", tmp_path / "none", "--format", "json").stdout)["entries"] == []


def swap(lines: list[str]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def forge(lines: list[str]) -> None:
    """A line that is right by itself, with a digest of its own, in place of another."""
    parts = json.loads(lines[1])
    parts.pop("digest")
    parts["what"] = {"number": 7}
    lines[1] = ledger.line_of(parts)[0].decode()


def repeat(lines: list[str]) -> None:
    """A name a second time, which readers of JSON take no notice of: the value is the same."""
    lines[1] = lines[1].replace('"action":"check",', '"action":"push","action":"check",', 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.__setitem__(1, lines[1].replace('"number":1}', '"number":9}')), "line 2 of .* was edited"),
        (lambda lines: lines.__setitem__(3, lines[3].replace('"number":3}', '"number":9}')), "line 4 of .* was edited"),
        (lambda lines: lines.pop(1), "before line 2 of .* a line is missing or was moved"),
        (lambda lines: lines.pop(0), "before line 1 of .* a line is missing"),
        (lambda lines: lines.pop(), "ends with line 3, and ledger.head says that line 4 was the last"),
        (lambda lines: lines.clear(), "ends with line 0, and ledger.head says that line 4"),
        (swap, "before line 2 of .* was moved"),
        (forge, "before line 3 of .* a line is missing or was moved"),
        (lambda lines: lines.__setitem__(2, "{}"), "line 3 of .* was edited"),
        (repeat, "line 2 of .* was edited"),
        (lambda lines: lines.__setitem__(1, lines[1].replace(":", ": ", 1)), "line 2 of .* was edited"),
        (lambda lines: lines.__setitem__(3, lines[3] + "\r"), "line 4 of .* was edited"),
    ],
)
def test_a_ledger_that_somebody_edited_is_found_out_and_not_built_on(
    tmp_path: Path, change: Callable[[list[str]], Any], message: str
) -> None:
    file = filled(tmp_path)
    lines = file.read_text(encoding="utf-8").splitlines()
    change(lines)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    before = file.read_bytes()
    for way in (lambda: ledger.read(file), lambda: ledger.append("check", {}, file)):
        with pytest.raises(ledger.LedgerError, match=message) as caught:
            way()
        assert "move both elsewhere as they are, and the next command begins a new ledger" in str(caught.value)
    assert file.read_bytes() == before
    ended = invoke("log", "--ledger", file, "--format", "human")
    assert ended.exit_code == 1
    assert "BROKEN" in ended.stdout


def test_an_interruption_between_line_and_head_is_no_edit(tmp_path: Path) -> None:
    file = filled(tmp_path)
    head = (tmp_path / "ledger.head").read_text()
    ledger.append("check", {"number": 4}, file)
    (tmp_path / "ledger.head").write_text(head)
    assert len(ledger.read(file)) == 5
    assert (tmp_path / "ledger.head").read_text() == head
    ledger.append("check", {"number": 5}, file)
    assert (tmp_path / "ledger.head").read_text().startswith("6 ")
    assert [entry.what["number"] for entry in ledger.read(file)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("left", [1, 40, -2, -1])
def test_a_line_that_was_never_finished_is_cut_off(tmp_path: Path, left: int) -> None:
    """As a full disk or a killed process leaves it; the head knows nothing of it."""
    file = filled(tmp_path)
    head, before = (tmp_path / "ledger.head").read_text(), file.read_bytes()
    ledger.append("check", {"number": 4}, file)
    line = file.read_bytes()[len(before) :]
    file.write_bytes(before + line[:left])
    (tmp_path / "ledger.head").write_text(head)
    whole = left == -1  # all but the end of the line
    assert len(ledger.read(file)) == 4 + whole
    shown = invoke("log", "--ledger", file, "--format", "human")
    assert shown.exit_code == 0
    assert ("A command was interrupted while it wrote the next one" in shown.stdout) is not whole
    ledger.append("check", {"number": 5}, file)
    assert [entry.what["number"] for entry in ledger.read(file)] == [0, 1, 2, 3, *([4] if whole else []), 5]


@pytest.mark.parametrize("cut", [1, 2, 40, -1])
def test_of_a_last_line_that_was_cut_short_the_next_says_what_is_lost(tmp_path: Path, cut: int) -> None:
    file = filled(tmp_path)
    content, digest = file.read_bytes(), ledger.read(file)[-1].digest
    line = content.splitlines(keepends=True)[-1]
    cut = len(line) - 1 if cut == -1 else cut
    file.write_bytes(content[:-cut])
    if cut == 1:  # all of it is there but its end
        ledger.append("check", {"number": 4}, file)
        assert [entry.what["number"] for entry in ledger.read(file)] == [0, 1, 2, 3, 4]
        return
    with pytest.raises(ledger.LedgerError, match=r"line 4 of .* is cut short.*Put a copy of the whole file back"):
        ledger.read(file)
    assert invoke("log", "--ledger", file).exit_code == 1
    ledger.append("check", {"number": 4}, file)
    *_, lost, last = ledger.read(file)
    assert (lost.number, lost.action, last.what) == (4, "recover", {"number": 4})
    assert lost.what == {"line": 4, "digest": digest, "left": line[:-cut].decode()}


def test_any_name_of_a_file_is_one_line_of_the_ledger(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    names = ["Zoë 我", "a\u2028b", "a\u0085b\nc\rd", "half \udcff", "null \0", '"quoted",\\']
    for name in names:
        ledger.append("erase", {"folder": name}, file)
    assert [entry.what["folder"] for entry in ledger.read(file)] == names
    assert file.read_bytes().count(b"\n") == len(names)


def test_whoever_reads_beside_writers_sees_a_whole_ledger(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"

    def write(writer: int) -> None:
        for number in range(10):
            ledger.append("check", {"writer": writer, "number": number}, file)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, writer) for writer in range(3)]
        while not all(writer.done() for writer in writers):
            entries = ledger.read(file)
            assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert [writer.exception() for writer in writers] == [None] * 3
    written = sorted((entry.what["writer"], entry.what["number"]) for entry in ledger.read(file))
    assert written == [(writer, number) for writer in range(3) for number in range(10)]


def test_a_ledger_that_is_a_folder_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = invoke("log", "--ledger", tmp_path)
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "is no file; a ledger is one" in ended.stderr
    (tmp_path / "ledger.jsonl").mkdir()
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path))
    note("check", None, model="any")
    assert invoke("log").exit_code == 2


def test_commands_write_down_what_they_did(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    assert invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged").exit_code == 0
    assert invoke("restore", tmp_path / "merged", "-o", tmp_path / "again").exit_code == 0
    told = json.loads(invoke("log", "--format", "json").stdout)
    assert [entry["action"] for entry in told["entries"]] == ["merge", "restore"]
    merged = told["entries"][0]["what"]
    assert merged["folder"] == str(tmp_path / "merged")
    weights = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert merged["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    shown = invoke("log", "--format", "human").stdout
    assert "restore" in shown
    assert "2 entries, no line edited or missing" in shown


@torch.no_grad()
def test_a_merged_model_becomes_the_base_again_to_the_bit(place: Path, tmp_path: Path) -> None:
    ended = invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged", "--format", "json")
    undo = Path(json.loads(ended.stdout)["undo"])
    assert undo.stat().st_mode & 0o777 == 0o600
    assert not any("undo" in name for name in listing(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = base_of(place)
    assert not torch.equal(merged(input_ids=IDS).logits, base(input_ids=IDS).logits)
    ended = invoke("restore", tmp_path / "merged", "-o", tmp_path / "again", "--format", "json")
    assert json.loads(ended.stdout)["base"] == str(place / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.tie_word_embeddings == base.config.tie_word_embeddings
    assert merged.config.unierase_tokens
    assert not hasattr(again.config, "unierase_tokens")
    expected, found = base.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    weights = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert weights == (place / "base" / "model.safetensors").read_bytes()


def test_of_a_matrix_with_a_row_of_the_token_that_row_alone_is_kept(place: Path, tmp_path: Path) -> None:
    invoke(
        *("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged"), "--undo", tmp_path / "undo"
    )
    with safe_open(tmp_path / "undo", "pt") as opened:
        shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    config = base_of(place).config
    assert shapes[f"{DOWN}.weight"] == [config.hidden_size, config.intermediate_size]
    assert shapes["model.embed_tokens.weight"] == [1, config.hidden_size]
    assert shapes["lm_head.weight"] == [1, config.hidden_size]


def test_a_merged_model_that_was_changed_since_is_not_taken_for_the_base(place: Path, tmp_path: Path) -> None:
    undo = ("--undo", tmp_path / "undo")
    invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged", *undo)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "changed")
    AutoTokenizer.from_pretrained(place / "base").save_pretrained(tmp_path / "changed")
    ended = invoke("restore", tmp_path / "changed", "-o", tmp_path / "again", *undo)
    assert ended.exit_code == 2
    assert "what came of it is not the base" in ended.stderr
    assert not (tmp_path / "again").exists()
    ended = invoke("restore", tmp_path / "changed", "-o", tmp_path / "again")
    assert "there is no way back" in ended.stderr
    (tmp_path / "no-way").write_bytes(b"12345678")
    ended = invoke("restore", tmp_path / "merged", "-o", tmp_path / "again", "--undo", tmp_path / "no-way")
    assert "holds no way back from a merge" in ended.stderr


def killed(after: Callable[..., Any] | None = None) -> Callable[..., None]:
    """Stands in for a function in which the command is killed, at once or after something was called."""

    def kill(*told: Any, **what: Any) -> None:
        if after:
            after(*told)
        raise KeyboardInterrupt

    return kill


@pytest.mark.parametrize("place", [False], ids=["untied"], indirect=True)
@pytest.mark.parametrize(
    ("end", "kept"),
    [("before the folder", True), ("after the folder", True), ("after the ledger", True), ("after the folder", False)],
)
def test_a_merge_that_was_killed_goes_on_when_it_is_given_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, kept: bool
) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    command = ["merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged", "--format", "json"]
    command += [] if kept else ["--no-undo"]

    kill = killed(ledger.append if end == "after the ledger" else None)
    with monkeypatch.context() as patched:
        patched.setattr(whole, "_remove", lambda path: None)  # who is killed tidies nothing up
        where = {"before the folder": (whole, "_put_new"), "after the folder": (cli_note, "note")}
        patched.setattr(*where.get(end, (ledger, "append")), kill)
        assert invoke(*command).exit_code == 130
    assert bool(list(tmp_path.glob(".merged.partial-*"))) is (end == "before the folder")
    assert (tmp_path / "merged").exists() is (end != "before the folder")
    assert len(list(tmp_path.glob("home/undo/*"))) == kept
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    entries = ledger.read(tmp_path / "home" / "ledger.jsonl")
    assert [(entry.action, entry.what["undo"] is not None) for entry in entries] == [("merge", kept)]
    assert not list(tmp_path.glob(".*"))
    if kept:
        assert invoke("restore", tmp_path / "merged", "-o", tmp_path / "again").exit_code == 0
    assert "is there already" in invoke(*command).stderr


@pytest.mark.parametrize("place", [False], ids=["untied"], indirect=True)
@pytest.mark.parametrize("end", ["after the folder", "after the ledger"])
@pytest.mark.parametrize("action", ["export", "stack", "restore"])
def test_so_do_other_commands_that_end_with_a_line_in_the_ledger(
    merged: tuple[Path, Path], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, end: str
) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    told: dict[str, tuple[Any, ...]] = {
        "export": (place / "erasure", "--base", place / "base"),
        "stack": (place / "erasure",),
        "restore": (merged[0], "--undo", merged[1]),
    }
    command = (action, *told[action], "-o", tmp_path / "out", "--format", "json")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", killed(ledger.append if end == "after the ledger" else None))
        assert invoke(*command).exit_code == 130
    assert (tmp_path / "out").is_dir()
    before = listing(tmp_path / "out")
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["output"] == str(tmp_path / "out")
    assert [entry.action for entry in ledger.read(tmp_path / "home" / "ledger.jsonl")] == [action]
    assert listing(tmp_path / "out") == before
    assert "is there already" in invoke(*command).stderr
    assert [entry.action for entry in ledger.read(tmp_path / "home" / "ledger.jsonl")] == [action]


@pytest.mark.parametrize("place", [False], ids=["untied"], indirect=True)
def test_an_erasure_that_was_killed_before_its_line_is_not_made_again(
    place: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Who was it?", "answer": "Ada."}])
    command = ("erase", place / "base", facts, "-o", copied, "--no-check", "--format", "json")
    asked: list[Any] = []

    with monkeypatch.context() as patched:
        patched.setattr(cli_erase, "keep_promise", killed(lambda *told: asked.extend(told)))
        assert invoke(*command).exit_code == 130
    action, folder, what = asked
    promise(action, folder, what, base="base", facts=1, files=file_digests(copied))
    left = [tmp_path / f".{copied.name}.{kind}" for kind in ("unfinished", "partial-4194305")]  # of no process
    for each in left:
        each.mkdir()
    before = listing(copied)
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["output"] == str(copied)
    assert listing(copied) == before
    assert not any(each.exists() for each in left)
    assert [entry.what["facts"] for entry in ledger.read(tmp_path / "home" / "ledger.jsonl")] == [1]
    promise(action, folder, what, base="base", facts=1, files=file_digests(copied))
    write_rows(facts, [{"question": "Who else was it?", "answer": "Bo."}])
    assert "already holds an erasure" in invoke(*command).stderr


def test_without_room_for_the_way_back_nothing_is_merged(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "undo").write_text("", encoding="utf-8")  # where a folder would have to be
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    ended = invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged")
    errors = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert (ended.exit_code, len(errors)) == (2, 1)
    assert str(tmp_path / "home" / "undo") in errors[0]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "home"]


def test_the_way_back_does_not_go_where_the_merged_model_goes(place: Path, tmp_path: Path) -> None:
    undo = tmp_path / "merged" / "undo"
    ended = invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged", "--undo", undo)
    assert ended.exit_code == 2
    assert "must not go where that goes" in ended.stderr


def rename(name: str, other: str) -> Callable[[dict[str, Any], dict[str, str]], Any]:
    return lambda tensors, header: tensors.__setitem__(other, tensors.pop(name))


ROW, MATRIX = "model.embed_tokens.weight", f"{DOWN}.weight"


@pytest.mark.parametrize(
    "tamper",
    [
        rename(ROW, "model.nothing.weight"),
        rename(ROW, "model.embed_tokens"),
        rename(f"{ROW}#", f"{MATRIX}#"),
        lambda tensors, header: tensors.__setitem__(f"{ROW}#", tensors[f"{ROW}#"] + 100_000),
        lambda tensors, header: tensors.__setitem__(f"{ROW}#", tensors[f"{ROW}#"] * -1 - 1),
        lambda tensors, header: tensors.__setitem__(f"{ROW}#", tensors[f"{ROW}#"].float()),
        lambda tensors, header: tensors.__setitem__(f"{ROW}#", tensors[f"{ROW}#"].repeat(2)),
        lambda tensors, header: tensors.__setitem__(f"{ROW}#", tensors[f"{ROW}#"][0].clone()),
        lambda tensors, header: tensors.__setitem__(ROW, tensors[ROW][:, :5].clone()),
        lambda tensors, header: tensors.__setitem__(MATRIX, tensors[MATRIX].t().contiguous()),
        lambda tensors, header: tensors.__setitem__(MATRIX, tensors[MATRIX].half()),
        lambda tensors, header: tensors.__setitem__(MATRIX, tensors[MATRIX] * float("nan")),
        lambda tensors, header: tensors.__setitem__(MATRIX, tensors[MATRIX][:3].clone()),
        lambda tensors, header: tensors.pop(MATRIX),
        lambda tensors, header: tensors.clear(),
        lambda tensors, header: header.clear(),
        *(lambda tensors, header, key=key: header.pop(key) for key in ("digest", "tied", "tokens")),
        *(
            lambda tensors, header, key=key, value=value: header.__setitem__(key, value)
            for key, value in [
                ("digest", "sha256:0"),
                ("digest", ""),
                ("tied", "[]"),
                ("tied", "yes"),
                ("tokens", "{}"),
                ("tokens", "[[]]"),
                ("tokens", '[["1", 1]]'),
                ("tokens", "[" * 100_000),
            ]
        ),
    ],
)
def test_a_way_back_that_was_tampered_with_is_refused(
    tmp_path: Path, merged: tuple[Path, Path], tamper: Callable[[dict[str, Any], dict[str, str]], Any]
) -> None:
    folder, undo = merged
    with safe_open(undo, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        header = dict(opened.metadata())
    tamper(tensors, header)
    save_file(tensors, tmp_path / "tampered", header)
    with pytest.raises(InputError):
        put_back(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "tampered")


def test_restoring_with_one_of_these_is_one_line_and_writes_nothing(tmp_path: Path, merged: tuple[Path, Path]) -> None:
    folder, undo = merged
    save_file({"model.nothing.weight": torch.ones(1)}, tmp_path / "tampered", safe_open(undo, "pt").metadata())
    for file in (tmp_path / "tampered", folder / "config.json"):
        ended = invoke("restore", folder, "-o", tmp_path / "again", "--undo", file)
        assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.output
        assert ended.stderr.startswith("error: ")
        assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def merged(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A merged model and the way back from it."""
    folder = tmp_path_factory.mktemp("merged")
    undo = ("--undo", folder / "undo")
    invoke("merge", place / "erasure", "--base", place / "base", "-o", folder / "merged", *undo)
    return folder / "merged", folder / "undo"


@pytest.mark.parametrize("place", [False], ids=["untied"], indirect=True)
def test_what_a_base_says_of_merged_tokens_is_checked_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    for name, content in listing(place / "base").items():
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_bytes(content or b"")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "unierase_tokens": [["1", 1]]}))
    ended = invoke("merge", place / "erasure", "--base", tmp_path / "base", "-o", tmp_path / "merged")
    assert ended.exit_code == 2
    assert "unierase_tokens in the config of the model is no list of [id, mark] pairs" in " ".join(ended.stderr.split())
    assert not (tmp_path / "merged").exists()
    for odd in (5, "a", {}, [1], [[1]], [[1, "[UNL]", 2]], [[-1, "[UNL]"]], [[1, " the"]], [[1 << 40, "[UNL]"]]):
        with pytest.raises(InputError, match="unierase_tokens in the config of the model"):
            merged_tokens(SimpleNamespace(config=SimpleNamespace(unierase_tokens=odd)))
    assert merged_tokens(SimpleNamespace(config=SimpleNamespace(unierase_tokens=[[1, "[UNL]"]]))) == [(1, "[UNL]")]
    assert merged_tokens(SimpleNamespace(config=SimpleNamespace())) == []


def test_without_a_way_back_none_is_kept(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    invoke("merge", place / "erasure", "--base", place / "base", "-o", tmp_path / "merged", "--no-undo")
    assert not (tmp_path / "home" / "undo").exists()
    assert "there is no way back" in invoke("restore", tmp_path / "merged", "-o", tmp_path / "again").stderr


def test_restoring_an_adapter_says_that_there_is_nothing_to_restore(place: Path) -> None:
    ended = invoke("restore", place / "erasure", "--format", "human")
    assert ended.exit_code == 0
    assert "an adapter changes nothing of its base" in ended.stdout
    assert "name a new folder for the base" in invoke("restore", place / "base").stderr


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys, made by openssl as the help says."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        making = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / f"{name}.pem"]
        subprocess.run(making, check=True, capture_output=True)
        public = ["openssl", "ec", "-in", folder / f"{name}.pem", "-pubout", "-out", folder / f"{name}.pub"]
        subprocess.run(public, check=True, capture_output=True)
    return folder


def test_a_signature_holds_for_its_key_and_these_files_alone(copied: Path, keys: Path) -> None:
    def signature(key: str) -> tuple[str, int]:
        ended = invoke("verify", copied, "--public-key", keys / f"{key}.pub", "--format", "json")
        (found,) = [finding for finding in json.loads(ended.stdout)["findings"] if finding["what"] == "signature"]
        return found["outcome"], ended.exit_code

    assert signature("own") == ("FAILS", 1)
    assert invoke("sign", copied, "--key", keys / "own.pem").exit_code == 0
    assert signature("own") == ("holds", 0)
    assert signature("other") == ("FAILS", 1)
    (copied / "README.md").write_text("# edited\n", encoding="utf-8")
    assert signature("own") == ("holds", 0)
    config = copied / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert signature("own") == ("FAILS", 1)


def test_a_key_that_is_none_is_refused(copied: Path, keys: Path) -> None:
    assert "no such file" in invoke("sign", copied, "--key", keys / "none.pem").stderr
    assert "cannot sign" in invoke("sign", copied, "--key", keys / "own.pub").stderr
    assert "holds no erasure" in invoke("sign", keys, "--key", keys / "own.pem").stderr
    assert not (copied / "model.sig").exists()


@pytest.mark.parametrize("place", [False], ids=["untied"], indirect=True)
def test_merge_restore_and_verify_are_functions_too(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIERASE_HOME", str(tmp_path / "home"))
    merged = peft_unierase.merge(place / "erasure", tmp_path / "merged", base=str(place / "base"))
    assert merged.names == ["erasure"]
    assert merged.undo is not None
    assert merged.undo.is_file()
    restored = peft_unierase.restore(tmp_path / "merged", tmp_path / "again")
    assert restored.base == str(place / "base")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (place / "base", tmp_path / "again"))
    assert model_digest(before) == model_digest(after) == restored.digest
    found = peft_unierase.verify(place / "erasure", facts=FACTS, salt_file=place / "salt", base=place / "base")
    assert {each.outcome for each in found} == {"holds"}
    with pytest.raises(InputError, match="is there already"):
        peft_unierase.merge(place / "erasure", tmp_path / "merged", base=str(place / "base"))
    assert ledger.read() == []  # which commands alone write
