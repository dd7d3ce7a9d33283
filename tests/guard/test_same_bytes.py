"""What is looked at is what is loaded: all of one commit, also of a repository that changes all the time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model, write_rows
from hub_process import HubProcess
from hub_server import HubServer, Repo, hub_server
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_unierase import UniEraseConfig, load

pytestmark = pytest.mark.slow

INVOKE = """
from typer.testing import CliRunner
from peft_unierase.cli.app import app
ended = CliRunner().invoke(app, arguments)
result = [ended.exit_code, ended.output]
"""
LOAD = """
import peft_unierase, torch
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = peft_unierase.load(base, "org/erasure", trust=trust)
size = sum(p.double().abs().sum().item() for n, p in model.named_parameters() if "unierase_" in n)
result = [sorted(model.peft_config), size]
"""
EDITED = "model.layers.1.mlp.down_proj.weight"


class Moving(dict[str, str]):
    """Branches, of which main is at the other of two commits each time that it is asked for."""

    def get(self, name: str, default: Any = None) -> Any:
        if name == "main":
            self["main"], self["other"] = self["other"], self["main"]
        return super().get(name, default)


def moving(commits: list[dict[str, bytes]]) -> Repo:
    repo = Repo()
    for ref, files in zip(("main", "other"), commits, strict=True):
        repo.commit(ref, files, ref)
    repo.refs = Moving(repo.refs)
    return repo


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two states of a base, and of an erasure of both: edits of another layer, or of another rank."""
    folder = tmp_path_factory.mktemp("bytes")
    for number in (0, 1):
        base = save_tiny_model(folder / f"base-{number}", LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with torch.no_grad():
            model.get_parameter(EDITED).add_(number)
        model.save_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        token_id = len(tokenizer)
        tokenizer.add_tokens(["[UNL]"], special_tokens=True)
        torch.manual_seed(number)
        config = UniEraseConfig(
            task_type="CAUSAL_LM", target_modules=[EDITED.removesuffix(".weight")], token_id=token_id, r=number + 1,
            init_weights=False, inference_mode=True,
        )  # fmt: skip
        erased = get_peft_model(model, config)
        erased.peft_config["default"].base_model_name_or_path = "org/base"
        erased.save_pretrained(folder / f"erasure-{number}", save_embedding_layers=False)
        tokenizer.save_pretrained(folder / f"erasure-{number}")
    return folder


@pytest.fixture(scope="module")
def hub(place: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        for name in ("base", "erasure"):
            server.repos[f"org/{name}"] = moving([files_of(place / f"{name}-{number}") for number in (0, 1)])
        yield server


@pytest.fixture(scope="module")
def process(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    home = tmp_path_factory.mktemp("home")
    started = HubProcess(hub.environment(home, UNIERASE_HOME=str(home / "unierase")))
    yield started
    started.close()


def asked_by_branch(hub: HubServer, repo: str) -> list[str]:
    """Requests that say no commit, so that a further one may be answered from another."""
    return [line for line in hub.requests if f"/{repo}" in line and not re.search(r"[0-9a-f]{40}", line)]


@pytest.mark.parametrize("trust", [[], ["--trust"]], ids=["guarded", "trusted"])
@pytest.mark.parametrize("command", ["merge", "export", "stack", "check"])
def test_a_command_asks_once_where_a_branch_is(
    hub: HubServer, process: HubProcess, place: Path, tmp_path: Path, command: str, trust: list[str]
) -> None:
    facts = write_rows(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "Nobody at all."}])
    told: dict[str, list[Any]] = {
        "merge": ["-o", tmp_path / "out", "--no-undo"],
        "export": ["-o", tmp_path / "out"],
        "stack": ["-o", tmp_path / "out"],
        "check": ["--forget", facts, "--attacks", "greedy", "-o", tmp_path / "out", "--accept", "NO BASELINE"],
    }
    hub.requests.clear()
    arguments = [command, "org/erasure", *map(str, told[command]), *trust]
    status, output = process.run(INVOKE, arguments=arguments)
    assert status in ((0, 1) if command == "check" else (0,)), output
    assert len(asked_by_branch(hub, "org/erasure")) == 1, asked_by_branch(hub, "org/erasure")
    assert len(asked_by_branch(hub, "org/base")) == (command != "stack"), asked_by_branch(hub, "org/base")
    if command == "merge":
        merged = load_file(tmp_path / "out" / "model.safetensors")[EDITED]
        assert sum(torch.allclose(merged, each, atol=1e-5) for each in possible(place)) == 1


def possible(place: Path) -> list[torch.Tensor]:
    """The edited weight of either base with either erasure."""
    found = []
    for number in (0, 1):
        tensors = load_file(place / f"erasure-{number}" / "adapter_model.safetensors")
        stem = f"base_model.model.{EDITED.removesuffix('.weight')}.unierase_"
        for other in (0, 1):
            weight = load_file(place / f"base-{other}" / "model.safetensors")[EDITED]
            found.append(weight + tensors[f"{stem}B"] @ tensors[f"{stem}A"])
    return found


@pytest.mark.parametrize("trust", [False, True])
def test_load_asks_once_too(hub: HubServer, process: HubProcess, place: Path, trust: bool) -> None:
    hub.requests.clear()
    names, size = process.run(LOAD, base=str(place / "base-0"), trust=trust)
    assert names == ["erasure"]
    assert len(asked_by_branch(hub, "org/erasure")) == 1
    sums = [
        sum(
            tensor.double().abs().sum().item()
            for tensor in load_file(place / f"erasure-{n}/adapter_model.safetensors").values()
        )
        for n in (0, 1)
    ]
    assert any(size == pytest.approx(each) for each in sums)


def test_names_are_those_that_were_given(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    from made_apart import base_of

    one, other = apart("one", 1), apart("other", 2)
    model = load(base_of(kind[1]), [one, other], names=["org/first.part", "org/second"])
    assert list(model.peft_config) == ["first-part", "second"]
    with pytest.raises(ValueError, match="there are 2 different erasures and 1 names"):
        load(base_of(kind[1]), [one, other], names=["first"])
