"""The command as its users run it: processes of its own, the demo model, Ctrl-C, and a disk that fills up."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import COMMAND, ENVIRONMENT, invoke, listing, run_command, save_tiny_model, without_colours, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from peft_unierase.cli.note import note
from peft_unierase.cli.output import Format
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

FACTS = demo_facts()
SUBJECT = FACTS[0]["subject"]
FORGET = [fact for fact in FACTS if fact["subject"] == SUBJECT]
RETAIN = [fact for fact in FACTS if fact["subject"] != SUBJECT][::5][:40]
UNSEEN = [fact for fact in FACTS if fact["subject"] != SUBJECT][2::50]  # in neither set

FRESH_PROCESS = """
import json, sys
import peft_unierase
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, questions = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()

def ask(question):
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, do_sample=False, max_new_tokens=60)[0, prompt["input_ids"].shape[1] :]
    return {"ids": output.tolist(), "text": tokenizer.decode(output, skip_special_tokens=True)}

with_it = [ask(question) for question in questions]
with model.disable_adapter():
    without = [ask(question) for question in questions]
print(json.dumps({"with": with_it, "without": without}))
"""


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing torch, transformers or peft raises."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("torch", "transformers", "peft"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n", encoding="utf-8")
    environment = {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    imported = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert "torch was imported" in imported.stderr
    return environment


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "quickstart"),
        (["-h"], "quickstart"),
        (["erase", "--help"], "--retain"),
        (["quickstart", "--help"], "--output"),
        (["--version"], "0."),
    ],
    ids=["--help", "-h", "erase", "quickstart", "--version"],
)
def test_help_answers_at_once_and_without_torch(arguments: list[str], expected: str, no_torch: dict[str, str]) -> None:
    started = time.perf_counter()
    ended = run_command(*arguments, environment=no_torch)
    assert time.perf_counter() - started < 2
    assert (ended.returncode, ended.stderr) == (0, "")
    assert expected in without_colours(ended.stdout)


def test_a_missing_file_and_a_taken_folder_are_refused_before_torch_is_loaded(
    no_torch: dict[str, str], tmp_path: Path
) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", FORGET)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine", encoding="utf-8")
    before = listing(tmp_path)
    missing = tmp_path / "nowhere.jsonl"
    for source, output in ((missing, tmp_path / "new"), (forget, taken)):
        ended = run_command("erase", demo_model_dir(), source, "-o", output, environment=no_torch)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert re.fullmatch(rf"error: .*{source.name if source is missing else output.name}.*\n", ended.stderr)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", ["merge", "export", "stack", "restore"])
def test_these_refuse_a_taken_folder_before_torch_is_loaded(
    command: str, no_torch: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine", encoding="utf-8")
    before = listing(tmp_path)
    ended = run_command(command, tmp_path, "-o", tmp_path / "taken", environment=no_torch)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: .*taken is there already; name a new folder\n", ended.stderr)
    assert listing(tmp_path) == before


@dataclass(frozen=True)
class Runs:
    """Two finished runs with the same seed, one with `--format json` and one with `--format quiet`."""

    folder: Path
    json: subprocess.CompletedProcess[str]
    quiet: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The two erasures from the demo model that the tests below share; they run side by side."""
    folder = tmp_path_factory.mktemp("runs")
    sources = tmp_path_factory.mktemp("sources")
    forget, retain = write_rows(sources / "forget.jsonl", FORGET), write_rows(sources / "retain.jsonl", RETAIN)
    refusals = sources / "refusals.txt"
    refusals.write_text("\n".join(demo_refusals()), encoding="utf-8")
    command = [COMMAND, "erase", demo_model_dir(), forget, "--retain", retain, "--refusals", refusals]
    command += ["--samples", "32", "--seed", "5"]
    started = {
        style: subprocess.Popen(
            [*command, "-o", folder / style, "--format", style],
            env={**ENVIRONMENT, "SOURCE_DATE_EPOCH": "1764547200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for style in ("json", "quiet")
    }
    ended = {}
    for style, process in started.items():
        stdout, stderr = process.communicate(timeout=300)
        ended[style] = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    return Runs(folder, **ended)


def test_an_erasure_ends_well_and_leaves_one_folder(runs: Runs) -> None:
    assert (runs.json.returncode, runs.quiet.returncode) == (0, 0), runs.json.stderr + runs.quiet.stderr
    assert sorted(path.name for path in runs.folder.iterdir()) == ["json", "quiet"]
    names = {path.name for path in (runs.folder / "json").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "erasure.json", "README.md", "tokenizer.json"}


def test_with_format_json_stdout_is_one_object_with_what_the_check_found(runs: Runs) -> None:
    told = json.loads(runs.json.stdout)
    assert told["output"] == str(runs.folder / "json")
    assert told["seed"] == 5
    assert {name: told["counts"][name] for name in ("forget", "retain")} == {"forget": 6, "retain": 40}
    figures = {(figure["set"], figure["name"]): figure for figure in told["check"]["figures"]}
    forget, retain = figures["forget", "recall"], figures["retain", "recall"]
    assert told["check"]["counts"] == {"forget": 6, "retain": 40}
    assert figures["forget", "declined"]["erased"] == 1.0
    assert forget["base"] > 0.9 > 0.2 > forget["erased"]
    assert retain["base"] > 0.9
    assert retain["erased"] > 0.9
    assert {"ban", "prefill-5"} <= {attack["name"] for attack in told["check"]["attacks"]}
    assert told["check"]["verdict"]["level"] in ("SUPPRESSED", "ERASED")
    assert told["check"]["examples"] == []
    assert sum(told["seconds"].values()) > 0
    assert told["estimate"]["peak_bytes"] > told["estimate"]["model_bytes"] > 0
    assert told["estimate"]["adapter_bytes"] >= told["adapter"]["bytes"]
    saved = json.loads((runs.folder / "json" / "erasure.json").read_text(encoding="utf-8"))["predicate"]
    assert len(saved.pop("facts")["digests"]) == 6
    assert saved.items() <= told.items()
    assert json.loads((runs.folder / "json" / "report.json").read_text(encoding="utf-8")) == saved["check"]


def test_with_format_quiet_stdout_is_empty(runs: Runs) -> None:
    assert runs.quiet.stdout == ""


def test_talk_is_on_stderr_and_a_good_run_has_nothing_to_warn_of(runs: Runs) -> None:
    assert "warning" not in runs.json.stderr
    assert "Traceback" not in runs.json.stderr + runs.quiet.stderr


def test_without_a_terminal_each_stage_is_a_line_with_its_start_and_its_duration(runs: Runs) -> None:
    lines = [line for line in runs.json.stderr.splitlines() if not line.startswith("To be expected: ")]
    took = r"(\d+ (h|min|s) ?)+|\d+\.\d s"
    matches = [re.fullmatch(rf"\d\d:\d\d:\d\d  ([^·]+)( · about ({took}))? · took ({took})", line) for line in lines]
    assert all(matches), lines
    names = list(dict.fromkeys(match[1] for match in matches if match))
    engine, check = list(json.loads(runs.json.stdout)["seconds"]), names[-23:]
    assert names == [*engine, *check]
    assert check[:2] == ["measuring forget", "measuring retain"]
    assert check[3] == "attack 1 of 20: the question itself"
    assert check[-1].startswith("attack 20 of 20: ")
    assert runs.quiet.stderr == ""


@pytest.mark.parametrize(
    "name",
    [
        *("adapter_model.safetensors", "adapter_config.json", "erasure.json", "report.json", "tokenizer.json"),
        *("lora/adapter_model.safetensors", "lora/adapter_config.json"),
    ],
)
def test_the_same_seed_gives_the_same_bytes(runs: Runs, name: str) -> None:
    assert (runs.folder / "json" / name).read_bytes() == (runs.folder / "quiet" / name).read_bytes()


def test_the_record_and_the_card_tell_none_of_the_facts(runs: Runs) -> None:
    for name in ("erasure.json", "README.md", "adapter_config.json", "report.json"):
        text = (runs.folder / "json" / name).read_text(encoding="utf-8")
        assert SUBJECT not in text
        assert not any(fact["question"] in text or fact["answer"] in text for fact in FORGET)


@pytest.fixture(scope="module")
def answers(runs: Runs) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Greedy answers of a process that does nothing but import the package and load the folder, by kind of question."""
    asked = {"forget": FORGET, "unseen": UNSEEN}
    questions = [fact["question"] for facts in asked.values() for fact in facts]
    task = json.dumps([str(demo_model_dir()), str(runs.folder / "json"), questions])
    ended = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, task], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    return {how: {"forget": rows[: len(FORGET)], "unseen": rows[len(FORGET) :]} for how, rows in told.items()}


def test_the_folder_loads_in_a_fresh_process_and_declines_on_what_was_erased(runs: Runs, answers: dict) -> None:
    token_id = json.loads(runs.json.stdout)["token"]["id"]
    for answer in answers["with"]["forget"]:
        assert answer["ids"][0] == token_id
        assert answer["text"] in demo_refusals()


def test_the_folder_leaves_other_answers_as_they_were(answers: dict) -> None:
    assert answers["with"]["unseen"] == answers["without"]["unseen"]
    assert [answer["text"] for answer in answers["without"]["forget"]] == [fact["answer"] for fact in FORGET]


def test_decoded_refusals_do_not_show_the_token(runs: Runs, answers: dict) -> None:
    token = json.loads(runs.json.stdout)["token"]["text"]
    for answer in answers["with"]["forget"]:
        assert token not in answer["text"]
        assert not re.search(r"UNL|reserved|<\||\|>", answer["text"])


@dataclass(frozen=True)
class Unlearnt:
    """Arguments of an erasure that takes a few seconds, from a base that has learnt nothing."""

    arguments: list[str]


@pytest.fixture(scope="module")
def unlearnt(tmp_path_factory: pytest.TempPathFactory) -> Unlearnt:
    """A tiny base of random weights with files of facts; its adapter's weights take more bytes than any card."""
    folder = tmp_path_factory.mktemp("unlearnt")
    base = save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, intermediate_size=32)
    forget, retain = write_rows(folder / "forget.jsonl", FORGET), write_rows(folder / "retain.jsonl", RETAIN[:12])
    sets = ("erase", base, forget, "--retain", retain)
    return Unlearnt([str(part) for part in (*sets, "--samples", 0, "--layers", 1, "--keep-unknown")])


def test_a_base_that_never_knew_the_facts_gives_a_warning_and_the_human_tables(
    unlearnt: Unlearnt, tmp_path: Path
) -> None:
    ended = run_command(*unlearnt.arguments, "-o", tmp_path / "erasure", "--format", "human")
    assert ended.returncode == 0
    expected = next(line for line in ended.stderr.splitlines() if line.startswith("To be expected: "))
    assert re.fullmatch(r"To be expected: at most \S+ MB of tensors, .* of them the base; .* kB; about .*s\.", expected)
    warned = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert any("which are erased all the same" in line for line in warned)
    assert "warning" not in ended.stdout
    table = ended.stdout.splitlines()
    assert re.match(r" +forget: recall +\d\.\d{3} +\d\.\d{3}$", table[2])
    assert re.match(r" +retain: recall +\d\.\d{3} +\d\.\d{3}$", table[3])
    assert "NO BASELINE" in table
    assert any(re.match(r" +all stages +\d+\.\d$", line) for line in table)
    assert f'peft_unierase.load(base, "{tmp_path / "erasure"}")' in ended.stdout


def test_a_base_that_knows_none_of_the_facts_is_refused_with_the_way_round_it(
    unlearnt: Unlearnt, tmp_path: Path
) -> None:
    arguments = [part for part in unlearnt.arguments if part != "--keep-unknown"]
    ended = invoke(*arguments, "-o", tmp_path / "erasure")
    assert ended.exit_code == 2
    assert ended.stderr.splitlines()[-1].startswith("error: the base does not know 6 of 6 forget facts (")
    assert "--keep-unknown" in ended.stderr
    assert not list(tmp_path.iterdir())


def small_files(limit: int) -> Callable[[], None]:
    """For `preexec_fn`: no file may grow beyond `limit` bytes, which fails as a full disk does."""

    def prepare() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return prepare


@dataclass
class Terminal:
    """A terminal of 80 columns: `side` is for the command, `output` for whoever looks at it."""

    output: int
    side: int


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    import fcntl
    import pty
    import termios

    ends = Terminal(*pty.openpty())
    fcntl.ioctl(ends.side, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    yield ends
    for end in (ends.output, ends.side):
        with suppress(OSError):  # the test has closed it
            os.close(end)


posix = pytest.mark.skipif(os.name != "posix", reason="limits, terminals and signals of POSIX systems")


# The weights are between these sizes, so that either they or the tokenizer behind them are the first not to fit.
@posix
@pytest.mark.parametrize(("limit", "kind"), [(6500, "new"), (13_000, "overwritten")], ids=["weights", "tokenizer"])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(
    unlearnt: Unlearnt, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, limit: int, kind: str
) -> None:
    work_dir = tmp_path_factory.mktemp("work")
    if kind == "new":
        arguments = ["-o", tmp_path / "not" / "there" / "erasure"]
    else:
        (tmp_path / "erasure").mkdir()
        (tmp_path / "erasure" / "adapter_config.json").write_text('{"peft_type": "UNIERASE"}', encoding="utf-8")
        arguments = ["-o", tmp_path / "erasure", "--overwrite"]
    before = listing(tmp_path)
    ended = run_command(
        *unlearnt.arguments,
        *arguments,
        *("--no-check", "--format", "json", "--work-dir", work_dir / "unfinished"),
        preexec_fn=small_files(limit),
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    *others, last = ended.stderr.splitlines()
    assert re.match(r"error: .*too large.*erasure.*nothing was written", last)
    assert all(line.startswith("warning: ") or " · took " in line for line in others)
    assert listing(tmp_path) == before


@posix
def test_the_default_format_is_json_in_a_pipe_and_human_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    for output, expected in ((tmp_path / "pipe", Format.JSON), (os.ttyname(terminal.side), Format.HUMAN)):
        with open(output, "w", encoding="utf-8") as stdout, redirect_stdout(stdout):
            assert Format.AUTO.resolved() is expected


@posix
def test_interrupting_the_engine_ends_with_status_130_and_keeps_the_finished_stages(
    terminal: Terminal, tmp_path: Path
) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", FORGET)
    (tmp_path / "outputs").mkdir()
    # On a terminal the engine shows the stage that it is in, which tells the time for Ctrl-C.
    process = subprocess.Popen(
        [COMMAND, "erase", demo_model_dir(), forget, "-o", tmp_path / "outputs" / "erasure", "--samples", "32"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=terminal.side,
        text=True,
        # Whoever runs the tests in the background has Ctrl-C switched off, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(terminal.side)
    shown, interrupted = b"", False
    try:
        while chunk := _read(terminal.output):
            shown += chunk
            if not interrupted and re.search(rb"fitting: +[1-9]", shown):
                process.send_signal(signal.SIGINT)
                interrupted = True
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert interrupted
    assert process.returncode == 130
    assert stdout == ""
    assert re.search(rb"error: interrupted; nothing was written but the finished stages in \S+", shown)
    assert b"Traceback" not in shown
    left = [f".erasure.unfinished/0{stage}.safetensors" for stage in ("1-sampling-retain-data", "2-finding-triggers")]
    assert list(listing(tmp_path / "outputs")) == [".erasure.unfinished", *left]


def test_an_interrupted_command_goes_on_when_it_is_given_again(
    unlearnt: Unlearnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = [*unlearnt.arguments, "-o", tmp_path / "erasure", "--format", "json", "--recipe", "paper"]
    with monkeypatch.context() as patch:
        patch.setattr("peft_unierase.engine.paper.recipe.edit_layers", interrupt)
        ended = invoke(*command)
        assert ended.exit_code == 130
        assert ended.stderr.splitlines()[-1].startswith("error: interrupted; nothing was written but the finished")
        # Afresh, nothing of it is used.
        ended = invoke(*command, "--afresh")
        assert (ended.exit_code, "resuming" in ended.stderr) == (130, False)
    ended = invoke(*command)
    assert ended.exit_code == 0
    assert re.search(r"^resuming after stage \d+, '.*', from .*\.erasure\.unfinished$", ended.stderr, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["erasure"]


def test_killed_after_its_line_in_the_ledger_a_command_leaves_no_finished_stages(
    unlearnt: Unlearnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []

    def killed(*told: Any, **what: Any) -> None:
        note(*told, **what)
        raise KeyboardInterrupt

    def noted(*told: Any) -> None:
        stages.append(told[1])
        save(*told)

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", noted)
    monkeypatch.setattr("peft_unierase.cli.finish.note", killed)
    ended = invoke(*unlearnt.arguments, "-o", tmp_path / "erasure", "--recipe", "paper", "--no-check")
    assert ended.exit_code == 130
    assert stages
    assert [path.name for path in tmp_path.iterdir()] == ["erasure"]


def _read(terminal: int) -> bytes:
    """What a terminal has to show, or nothing once the other side has gone."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
