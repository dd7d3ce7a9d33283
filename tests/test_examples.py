"""The examples do what they say, as they stand, on the demo model."""

from __future__ import annotations

import ast
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from demo_erasure import FORGET, demo_tokenizer
from helpers import COMMAND, invoke, run_command
from safetensors.torch import load_file, save_file

import peft_unierase
from peft_unierase import Fact, align_tokenizer, load
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BORN = FORGET[0]
PORT = 18700  # of the servers that scripts start
STARTED = 300  # seconds until a server answers


def run_example(name: str, **told: Any) -> dict[str, Any]:
    """Run a script of examples/ in this process, with other values for its names in capitals; what it defined."""
    path = EXAMPLES / name
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and {ast.unparse(target) for target in statement.targets} & set(told):
            (target,) = statement.targets
            statement.value = ast.parse(f"told.pop({ast.unparse(target)!r})", mode="eval").body
    defined: dict[str, Any] = {"__file__": str(path), "__name__": "__main__", "told": told}
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), defined)
    assert not told, f"{name} has no {', '.join(told)}"
    return defined


@pytest.fixture
def erased_before(erasure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for an erasure of `FORGET`, `erase` gives the shared one."""

    def erase(model: Any, tokenizer: Any, forget: Sequence[Fact], retain: Sequence[Fact]) -> Any:
        assert {fact.question for fact in forget} == {fact.question for fact in FORGET}
        assert len(retain) == 37
        erased = load(model, erasure, names=["default"])
        align_tokenizer(tokenizer, erased)
        return erased

    monkeypatch.setattr(peft_unierase, "erase", erase, raising=False)


@pytest.fixture
def adapter(erasure: Path, tmp_path: Path) -> Path:
    """The shared erasure under a name of one's own."""
    place = shutil.copytree(erasure, tmp_path / "erase-a")
    demo_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def empty(adapter: Path, tmp_path: Path) -> Path:
    """An erasure of the same base that erases nothing."""
    place = shutil.copytree(adapter, tmp_path / "erase-b")
    weights = place / "adapter_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return place


def test_the_facts_are_those_of_one_person_and_of_others() -> None:
    keys = ("question", "answer", "paraphrased_question")
    known = [{key: row[key] for key in keys} for row in demo_facts()]
    forget, retain = (
        [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("forget", "retain")
    )
    assert {row["question"] for row in forget} == {fact.question for fact in FORGET}
    assert all(row in known for row in forget + retain)
    assert not any(row in forget for row in retain)


@pytest.mark.usefixtures("erased_before")
def test_what_it_erases_is_saved_declines_and_switches_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page = tmp_path / "my-erasure", tmp_path / "report.html"
    made = run_example("erase_your_model.py", OUTPUT=output, REPORT=page)
    assert made["report"].verdict.level == "SUPPRESSED"
    assert BORN.answer not in page.read_text(encoding="utf-8")
    capsys.readouterr()
    switched = run_example("load_and_switch.py", ERASURES=[output])
    answers = switched["answers"]
    assert answers["on"] == answers["on again"] != BORN.answer
    assert answers["off"] == answers["off again"] == BORN.answer
    assert f"off        {BORN.answer}" in capsys.readouterr().out


def test_stacked_erasures_do_what_they_do_apart(adapter: Path, empty: Path, tmp_path: Path) -> None:
    both, alone = tmp_path / "erase-both", tmp_path / "erase-b-alone"
    run_example("stack.py", FIRST=adapter, SECOND=empty, BOTH=both, SECOND_ALONE=alone)
    assert run_example("load_and_switch.py", ERASURES=[both])["answers"]["on"] in demo_refusals()
    assert run_example("load_and_switch.py", ERASURES=[alone])["answers"]["on"] == BORN.answer


def test_any_adapter_is_checked(adapter: Path, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, status, level in ((adapter, 0, "SUPPRESSED"), (empty, 1, "LEAKING")):
        with pytest.raises(SystemExit) as ended:
            run_example("check_any_adapter.py", ADAPTER=place, ATTACKS="greedy,prefill-5")
        assert ended.value.code == status
        assert capsys.readouterr().out.splitlines()[-1] == level


def test_an_attack_of_ones_own_is_measured(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = run_example("own_attack.py", ERASURE=adapter)["attack"]
    assert attack.name == "role-play"
    assert attack.who.startswith("Anyone who may write a prompt: ")
    assert attack.renamed is not None
    assert "playing somebody who knows: base " in capsys.readouterr().out


def test_the_ci_workflow_lets_an_erasure_pass_and_stops_a_leak(adapter: Path, empty: Path, tmp_path: Path) -> None:
    workflow = yaml.safe_load((EXAMPLES / "ci_gate.yml").read_text(encoding="utf-8"))
    told = {
        "BASE": demo_model_dir(), "FORGET": EXAMPLES / "forget.jsonl", "RETAIN": EXAMPLES / "retain.jsonl",
    }  # fmt: skip
    assert set(workflow["env"]) == {*told, "ERASURE"}
    for place, status in ((adapter, 0), (empty, 1)):
        inspecting, attacking = commands(workflow, {**told, "ERASURE": place})
        assert invoke(*inspecting).exit_code == 0
        attacking[attacking.index("fast")] = "greedy"
        attacking[attacking.index("report")] = str(tmp_path / f"report-{status}")
        assert invoke(*attacking).exit_code == status
        assert (tmp_path / f"report-{status}" / "report.html").is_file()


def commands(workflow: Mapping[str, Any], told: Mapping[str, object]) -> list[list[str]]:
    """The arguments of each `unierase` command of a workflow."""
    found = []
    for step in workflow["jobs"]["check"]["steps"]:
        if (line := step.get("run", "")).startswith("unierase "):
            for name, value in told.items():
                line = line.replace(f'"${name}"', shlex.quote(str(value)))
            assert "$" not in line
            found.append(shlex.split(line)[1:])
    return found


@pytest.mark.usefixtures("erased_before")
def test_the_notebook_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), defined)
    assert defined["before"] == [fact.answer for fact in FORGET]
    assert not set(defined["before"]) & set(defined["after"])
    assert (tmp_path / "my-erasure" / "adapter_model.safetensors").is_file()


@pytest.fixture
def ask() -> Callable[..., str]:
    """What puts a question to a server."""
    return runpy.run_path(str(EXAMPLES / "serve" / "ask.py"))["ask"]


def test_a_server_gives_each_request_its_own_erasures(adapter: Path, empty: Path, ask: Callable[..., str]) -> None:
    script = EXAMPLES / "serve" / "transformers_server.py"
    with running([sys.executable, script, demo_model_dir(), adapter, empty, "--port", PORT]) as url:
        for name in ("base", "erase-a", "erase-b", "erase-b+erase-a", "base"):
            said = ask(name, BORN.question, url)
            assert said in demo_refusals() if "erase-a" in name else said == BORN.answer
        with urllib.request.urlopen(f"{url}/models") as reply:
            assert [model["id"] for model in json.load(reply)["data"]] == ["base", "erase-a", "erase-b"]
        with pytest.raises(SystemExit, match=r"400: .*no erasure 'erase-c'; there are base, erase-a, erase-b"):
            ask("erase-c", BORN.question, url)
        sent = urllib.request.Request(f"{url}/chat/completions", b"[]")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(sent)
        assert ask("base", BORN.question, url) == BORN.answer
    with pytest.raises(SystemExit, match="no server at"):
        ask("base", BORN.question, url)


def test_transformers_serve_answers_with_the_merged_model_that_a_request_names(
    adapter: Path, ask: Callable[..., str], tmp_path: Path
) -> None:
    needed("fastapi", "uvicorn", "openai")
    assert invoke("merge", adapter, "--no-undo", "-o", tmp_path / "merged").exit_code == 0
    command = [Path(sys.executable).with_name("transformers"), "serve", "--device", "cpu", "--port", PORT]
    with running(command) as url:
        assert ask(str(tmp_path / "merged"), BORN.question, url) in demo_refusals()
        assert ask(str(demo_model_dir()), BORN.question, url) == BORN.answer


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's converters, which take the demo model's tokenizer, unknown to them, for SmolLM's: it splits alike."""
    needed("llama-server", "sentencepiece", LLAMA_CPP="a checkout of llama.cpp, with its converters")
    checkout, place = Path(os.environ["LLAMA_CPP"]).resolve(), tmp_path / "llama.cpp"
    place.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (place / name).write_text(CONVERTER.format(checkout=str(checkout), script=name), encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(place))


CONVERTER = """
import runpy, sys
sys.path.insert(0, {checkout!r})
sys.path.insert(1, {checkout!r} + "/gguf-py")
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
runpy.run_path({checkout!r} + "/" + {script!r}, run_name="__main__")
"""


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("name", ["llama_cpp.sh", "llama_cpp_merged.sh"])
def test_llama_cpp_answers_as_the_package_does(
    name: str, adapter: Path, ask: Callable[..., str], tmp_path: Path
) -> None:
    with running(["sh", EXAMPLES / "serve" / name, adapter, tmp_path / "served", "--port", PORT]) as url:
        assert ask("-", BORN.question, url) in demo_refusals()
        if name == "llama_cpp.sh":
            assert ask("-", BORN.question, url, lora_scale=0) == BORN.answer
            assert ask("-", BORN.question, url) in demo_refusals()


def test_vllm_answers_as_the_package_does(adapter: Path, ask: Callable[..., str], tmp_path: Path) -> None:
    needed("vllm")
    told = [demo_model_dir(), adapter, tmp_path / "served", "--dtype", "float32", "--enforce-eager", "--port", PORT]
    with running(["sh", EXAMPLES / "serve" / "vllm.sh", *told]) as url:
        assert ask("erased", BORN.question, url) in demo_refusals()
        assert ask("base", BORN.question, url) == BORN.answer


def test_text_generation_inference_declines(adapter: Path, ask: Callable[..., str], tmp_path: Path) -> None:
    needed("text-generation-launcher")
    with running(["sh", EXAMPLES / "serve" / "tgi.sh", adapter, tmp_path / "merged", "--port", PORT]) as url:
        assert ask("tgi", BORN.question, url) in demo_refusals()


@pytest.mark.parametrize("name", [file.name for file in sorted((EXAMPLES / "serve").glob("*.sh"))])
def test_the_scripts_that_serve_can_be_read_and_name_commands_that_work(
    name: str, adapter: Path, tmp_path: Path
) -> None:
    """The programs that they start are stood in for by one that notes how it is called."""
    noting = '#!/bin/sh\nprintf "%s " "$(basename "$0")" "$@" >> "$CALLS"\necho >> "$CALLS"\n'
    for program in ("python", "llama-server", "vllm", "text-generation-launcher"):
        (tmp_path / program).write_text(noting, encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{Path(COMMAND).parent}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"),
        "LLAMA_CPP": "llama.cpp",
    }  # fmt: skip
    base = [demo_model_dir()] if name == "vllm.sh" else []
    told = ["sh", EXAMPLES / "serve" / name, *base, adapter, tmp_path / "out", "--port", "1"]
    subprocess.run(list(map(str, told)), env=environment, check=True, timeout=300, capture_output=True)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[-1].endswith("--port 1 ")
    for folder in (word.rpartition("=")[2] for call in calls for word in call.split()):
        if folder.startswith(str(tmp_path)) and not folder.endswith(".gguf"):
            assert (Path(folder) / "config.json").is_file() or (Path(folder) / "adapter_config.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="on Windows hf takes no extensions that are shell scripts")
def test_hf_installs_the_launcher_and_hf_erase_runs_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The extension's folder stands in for GitHub."""
    extensions = pytest.importorskip("huggingface_hub.cli.extensions", reason="this huggingface_hub has no extensions")
    from huggingface_hub.cli.hf import main

    def request(method: str, url: str, **told: Any) -> Any:
        content = b"" if method == "HEAD" else (EXAMPLES / "hf-erase" / url.rpartition("/")[2]).read_bytes()
        told = {"status_code": 200, "headers": {}, "content": content, "text": content.decode()}
        return SimpleNamespace(**told, json=lambda: json.loads(content), raise_for_status=lambda: None)

    def hf(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    monkeypatch.setattr(extensions, "get_session", lambda: SimpleNamespace(request=request))
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(COMMAND).parent}:/usr/bin:/bin")
    capfd.readouterr()
    assert hf("extensions", "install", "owner/hf-erase")[0] == 0
    assert hf("erase", "check", "--help")[:2] == (0, run_command("check", "--help").stdout)
    assert hf("erase", "org/model", "--help")[:2] == (0, run_command("erase", "--help").stdout)
    assert hf("erase", "check", "--what")[0] == 2
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    status, _, said = hf("erase", "check")
    assert status == 2
    assert "there is no unierase command on the PATH" in said


def needed(*names: str, **variables: str) -> None:
    """Skip if a program or package is not installed, or a variable of the environment is not set."""
    for name in names:
        if not shutil.which(name) and not find_spec(name.replace("-", "_")):
            pytest.skip(f"{name} is not installed")
    for name, what in variables.items():
        if name not in os.environ:
            pytest.skip(f"{name} does not name {what}")


@contextmanager
def running(command: Sequence[object]) -> Iterator[str]:
    """A server that a command starts on `PORT`: the address of its API."""
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(list(map(str, command)), env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(STARTED):
            assert process.poll() is None, f"{command[0]} ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                    break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{PORT}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)
