"""Erasures on a hub: pushed whole or not at all, loaded from there in every way, errors that lead on."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from helpers import run_command, save_tiny_model, write_rows
from hub_process import HubProcess
from hub_server import OTHER_TOKEN, HubServer, hub_server
from huggingface_hub import ModelCard
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from test_card import FULL
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_unierase import UniEraseConfig
from peft_unierase.hub import erasure_card
from peft_unierase.hub.folder import save_erasure
from peft_unierase.hub.push import check_folder
from peft_unierase.hub.repo_card import empty_sections, repo_card
from peft_unierase.hub.results import eval_results
from peft_unierase.records.record import write_record
from peft_unierase.records.sign import sign, verify_signature
from peft_unierase.storage.digests import recorded_digests

pytestmark = pytest.mark.slow

FILES = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "erasure.json",
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PUSH = """
from peft_unierase.hub.push import push_erasure
commit = push_erasure(folder, repo, **told)
result = {"url": str(commit), "oid": commit.oid, "pr_url": commit.pr_url, "repo": commit.repo_url.repo_id}
"""
LOADING = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[3, 4, 5, 6, 7, 8]])).logits.tolist()
def base():
    return AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
"""
LOAD = "result = logits(PeftModel.from_pretrained(base(), source, **told))"
INVOKE = """
from typer.testing import CliRunner
from peft_unierase.cli.app import app
ended = CliRunner().invoke(app, arguments)
result = [ended.exit_code, ended.stdout, ended.stderr]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two erasures of random weights that were made apart, saved as `unierase erase` saves them."""
    folder = tmp_path_factory.mktemp("push")
    save_tiny_model(folder / "base", LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
    for seed, name in enumerate(("erase-a", "erase-b"), start=1):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        spare = len(tokenizer)
        config = UniEraseConfig(
            task_type="CAUSAL_LM",
            target_modules=["model.layers.1.mlp.down_proj"],
            token_id=spare,
            spare_tokens=[[spare + 1, "[UNL-2]"]],
            init_weights=False,
        )
        tokenizer.add_tokens(["[UNL]"], special_tokens=True)
        record = {**copy.deepcopy(FULL), "token": {"text": "[UNL]", "id": spare}}
        card = erasure_card(base_model=str(folder / "base"), name=str(folder / name), record=record)
        save_erasure(get_peft_model(base, config), tokenizer, folder / name, record, str(card))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def owner(hub: HubServer, home: Path, place: Path) -> Iterator[HubProcess]:
    """A process of the one who may write to org, with the plugin."""
    process = HubProcess(hub.environment(home))
    process.run(f"base_path = {str(place / 'base')!r}\nimport peft_unierase\n" + LOADING)
    yield process
    process.close()


def record(folder: Path, **changes: Any) -> None:
    """The record of a folder anew, after files in it were changed."""
    predicate = json.loads((folder / "erasure.json").read_text(encoding="utf-8"))["predicate"]
    write_record(folder, {**predicate, **changes})


@pytest.fixture
def push(owner: HubProcess) -> Callable[..., dict[str, Any]]:
    """Pushes; returns what came of it and fails if it failed."""

    def run(folder: Path, repo: str, **told: Any) -> dict[str, Any]:
        return owner.run(PUSH, folder=str(folder), repo=repo, told=told)

    return run


@pytest.fixture
def try_push(owner: HubProcess) -> Callable[..., dict[str, Any]]:
    """Pushes; returns also errors and warnings."""

    def run(folder: Path, repo: str, **told: Any) -> dict[str, Any]:
        return owner.try_run(PUSH, folder=str(folder), repo=repo, told=told)

    return run


@pytest.fixture(scope="module")
def pushed(owner: HubProcess, place: Path) -> list[dict[str, Any]]:
    """Both erasures on the hub, as org/erase-a and org/erase-b."""
    return [owner.run(PUSH, folder=str(place / name), repo=f"org/{name}", told={}) for name in ("erase-a", "erase-b")]


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """A copy of the first erasure, to be changed."""
    return Path(shutil.copytree(place / "erase-a", tmp_path / "erase-a"))


def card_of(hub: HubServer, repo: str, revision: str = "main") -> ModelCard:
    return ModelCard(hub.repos[repo].files(revision)["README.md"].decode())


def edit(hub: HubServer, repo: str, **files: str | None) -> None:
    """A commit of the owner's, made in a browser; `__` in a name stands for a dot."""
    found = hub.repos[repo]
    new = {name.replace("__", "."): text.encode() for name, text in files.items() if text is not None}
    found.commit("main", {**found.files(), **new}, "edit in the browser")


# What a repository holds


def test_one_commit_holds_everything_and_no_path_of_this_machine(
    hub: HubServer, pushed: list[dict[str, Any]], place: Path
) -> None:
    repo = hub.repos["org/erase-a"]
    assert repo.messages[1:] == [message for message in repo.messages if message.startswith("Push an erasure with")]
    assert len(repo.messages) == 2
    files = repo.files()
    assert files.keys() == FILES
    assert pushed[0]["url"] == f"{hub.url}/org/erase-a/commit/{repo.refs['main']}"
    changed = {".gitattributes", "README.md", "adapter_config.json", "lora/adapter_config.json", "erasure.json"}
    for name in FILES - changed:
        assert files[name] == (place / "erase-a" / name).read_bytes()
    digests = recorded_digests(json.loads(files["erasure.json"]))
    assert digests == {name: hashlib.sha256(files[name]).hexdigest() for name in digests}
    assert digests.keys() == FILES - {".gitattributes", "README.md", "erasure.json", "report.json"}
    assert not [name for name, content in files.items() if str(place).encode() in content]
    assert json.loads(files["lora/adapter_config.json"])["base_model_name_or_path"] == "base"
    assert files["adapter_model.safetensors"] in hub.large.values()


def test_the_card_bears_the_name_of_the_repository(hub: HubServer, pushed: list[dict[str, Any]]) -> None:
    text = card_of(hub, "org/erase-a").text
    assert "\n# erase-a\n" in text
    assert 'peft_unierase.load(base, "org/erase-a")' in text
    assert 'PeftModel.from_pretrained(base, "org/erase-a")' in text
    assert 'AutoTokenizer.from_pretrained("org/erase-a")' in text
    assert '"erase-a"' not in text


def test_figures_of_the_check_are_evaluation_results(hub: HubServer, pushed: list[dict[str, Any]]) -> None:
    data: Any = card_of(hub, "org/erase-a").data
    found = {(each.dataset_name, each.metric_name): each.metric_value for each in data.eval_results}
    assert found == {
        ("forget", "recall"): 0.09,
        ("neutral text", "perplexity"): 7.1,
        ("attacks", "ROUGE-L recall: the question"): 0.09,
        ("attacks", "ROUGE-L recall: 5 tokens given"): 0.7,
    }
    assert data.model_name == "erase-a"


@pytest.mark.parametrize("check", [None, {"verdict": None, "not_run": "--no-check was given"}])
def test_what_was_not_checked_has_no_evaluation_results(check: dict[str, Any] | None) -> None:
    assert eval_results({**FULL, "check": check}) == []
    assert "model-index" not in repo_card("---\nlicense: mit\n---\ntext\n", "org/x", [])


def test_values_that_are_no_numbers_are_no_evaluation_results() -> None:
    record = copy.deepcopy(FULL)
    record["check"]["figures"][0]["erased"] = float("inf")
    assert next(each.metric_name for each in eval_results(record)) == "perplexity"


# Loading


@pytest.fixture(scope="module")
def wanted(owner: HubProcess, place: Path) -> list[Any]:
    """Logits with each of the two folders."""
    return [owner.run(LOAD, source=str(place / name), told={}) for name in ("erase-a", "erase-b")]


def test_it_loads_from_the_hub_and_offline_from_the_cache(
    hub: HubServer, owner: HubProcess, pushed: list[dict[str, Any]], wanted: list[Any], home: Path, place: Path
) -> None:
    assert owner.run("result = logits(base())") != wanted[0] != wanted[1]
    assert owner.run(LOAD, source="org/erase-a", told={}) == wanted[0]
    asked = len(hub.requests)
    offline = HubProcess(hub.environment(home, HF_HUB_OFFLINE="1"))
    offline.run(f"base_path = {str(place / 'base')!r}\nimport peft_unierase\n" + LOADING)
    assert offline.run(LOAD, source="org/erase-a", told={}) == wanted[0]
    told = offline.try_run(PUSH, folder=str(place / "erase-a"), repo="org/erase-a", told={})
    assert told["error"] == "HF_HUB_OFFLINE is set, and pushing needs the Hub; unset it and push again"
    offline.close()
    assert len(hub.requests) == asked


def test_its_lora_loads_where_the_plugin_is_not_known(
    hub: HubServer, pushed: list[dict[str, Any]], wanted: list[Any], place: Path, tmp_path: Path
) -> None:
    plain = HubProcess(hub.environment(tmp_path, token=None))
    plain.run(f"base_path = {str(place / 'base')!r}\n" + LOADING)
    found = plain.run(LOAD, source="org/erase-a", told={"subfolder": "lora"})
    assert torch.allclose(torch.tensor(found), torch.tensor(wanted[0]), atol=1e-4)
    native = plain.try_run(LOAD, source="org/erase-a", told={})
    assert (native["type"], native["error"]) == ("KeyError", "'UNIERASE'")
    assert plain.run("import sys; result = 'peft_unierase' in sys.modules") is False
    plain.close()


def test_a_revision_is_a_branch_of_its_own(
    hub: HubServer, owner: HubProcess, push: Any, pushed: list[dict[str, Any]], wanted: list[Any], place: Path
) -> None:
    before = hub.repos["org/erase-a"].refs["main"]
    push(place / "erase-b", "org/erase-a", revision="second")
    assert hub.repos["org/erase-a"].refs["main"] == before
    assert owner.run(LOAD, source="org/erase-a", told={"revision": "second"}) == wanted[1]
    assert owner.run(LOAD, source="org/erase-a", told={}) == wanted[0]


def test_several_load_from_the_hub_and_those_that_are_told_are_on(
    owner: HubProcess, pushed: list[dict[str, Any]], wanted: list[Any]
) -> None:
    code = "model = peft_unierase.load(base(), sources)\nresult = [list(model.peft_config), logits(model)]"
    assert owner.run(code, sources={"org/erase-a": True, "org/erase-b": False}) == [["erase-a", "erase-b"], wanted[0]]


def test_commands_take_ids_of_the_hub(
    owner: HubProcess, pushed: list[dict[str, Any]], wanted: list[Any], place: Path, tmp_path: Path
) -> None:
    named = ("--base", str(place / "base"))
    told = ["merge", "org/erase-a", "-o", str(tmp_path / "merged"), *named]
    code, _, talk = owner.run(INVOKE, arguments=told)
    assert code == 0, talk
    found = owner.run(f"result = logits(AutoModelForCausalLM.from_pretrained({str(tmp_path / 'merged')!r}))")
    assert torch.allclose(torch.tensor(found), torch.tensor(wanted[0]), atol=1e-4)

    told = ["stack", "org/erase-a", "org/erase-b", "-o", str(tmp_path / "both")]
    code, data, talk = owner.run(INVOKE, arguments=told)
    assert code == 0, talk
    names = json.loads(data)["erasures"]
    assert names == ["erase-a", "erase-b"]
    assert json.loads((tmp_path / "both" / "erasure.json").read_text())["predicate"]["fused"].keys() == set(names)

    forget = write_rows(tmp_path / "forget.jsonl", [{"question": "Where?", "answer": "In Paris."}] * 2)
    told = ["check", "org/erase-a", *named, "--forget", str(forget), "--attacks", "greedy", "--format", "json"]
    code, data, talk = owner.run(INVOKE, arguments=told)
    assert json.loads(data)["verdict"]["level"] == "NO BASELINE", talk


def test_a_stack_can_be_pushed_and_loads(
    hub: HubServer, owner: HubProcess, push: Any, pushed: list[dict[str, Any]], tmp_path: Path
) -> None:
    owner.run("peft_unierase.stack('org/erase-a', 'org/erase-b').save(folder)", folder=str(tmp_path / "both"))
    push(tmp_path / "both", "org/erase-both")
    assert hub.repos["org/erase-both"].files().keys() == {
        name for name in FILES if not name.startswith(("lora/", "report"))
    }
    assert 'peft_unierase.load(base, "org/erase-both")' in card_of(hub, "org/erase-both").text
    local = owner.run(LOAD, source=str(tmp_path / "both"), told={})
    assert owner.run(LOAD, source="org/erase-both", told={}) == local


# Pushing again


def test_pushing_the_same_again_makes_no_commit(hub: HubServer, push: Any, place: Path) -> None:
    first = push(place / "erase-a", "org/again")
    assert push(place / "erase-a", "org/again")["oid"] == first["oid"]
    assert len(hub.repos["org/again"].messages) == 2


def test_a_licence_of_another_name_is_left_out_and_not_refused(hub: HubServer, push: Any, copied: Path) -> None:
    (copied / "LICENSE-MIT").write_text("all rights reserved\n")
    push(copied, "org/licences")
    assert "LICENSE-MIT" not in hub.repos["org/licences"].files()


def test_files_that_are_gone_go_and_those_of_others_stay(hub: HubServer, push: Any, copied: Path) -> None:
    (copied / "LICENSE").write_text("all rights reserved\n")
    push(copied, "org/pruned")
    edit(hub, "org/pruned", notes__md="mine", vocab__json="{}")
    shutil.rmtree(copied / "lora")
    (copied / "LICENSE").unlink()
    record(copied)
    push(copied, "org/pruned")
    files = hub.repos["org/pruned"].files()
    assert files.keys() == {name for name in FILES if not name.startswith("lora/")} | {"notes.md", "LICENSE"}
    assert len(hub.repos["org/pruned"].messages) == 4  # additions and deletions are one commit


def test_what_the_owner_edited_in_the_card_stays_and_what_was_measured_is_new(
    hub: HubServer, push: Any, copied: Path
) -> None:
    push(copied, "org/edited")
    text = hub.repos["org/edited"].files()["README.md"].decode()
    text = text.replace("---\n", "---\nlicense: mit\nlanguage: en\n", 1)
    text = text.replace("40 facts, each a question", "Forty novels, each a question")
    text = text.replace("## Limits\n", "## Thanks\n\nTo everyone.\n\n## Limits\n")
    text = text.replace("**SUPPRESSED**", "**ERASED**")
    edit(hub, "org/edited", README__md=text)
    new = (copied / "README.md").read_text().replace("It suppresses.", "It does suppress.")
    (copied / "README.md").write_text(new)
    push(copied, "org/edited")
    push(copied, "org/edited")
    card = card_of(hub, "org/edited")
    assert "Forty novels" in card.text
    assert card.text.count("## Thanks\n\nTo everyone.\n\n") == 1
    assert "**SUPPRESSED**" in card.text
    assert "It does suppress." in card.text
    assert {"license": "mit", "language": "en", "library_name": "peft"}.items() <= card.data.to_dict().items()
    push(copied, "org/edited", overwrite_card=True)
    assert "40 facts" in card_of(hub, "org/edited").text
    assert "## Thanks" not in card_of(hub, "org/edited").text


def test_of_a_card_that_is_not_ours_the_metadata_stays(
    hub: HubServer, owner: HubProcess, push: Any, place: Path
) -> None:
    owner.run("from huggingface_hub import HfApi; HfApi().create_repo('org/foreign')")
    metric = {"metrics": [{"type": "c", "value": 1}], "task": {"type": "a"}, "dataset": {"type": "b", "name": "B"}}
    old = {"license": "llama3", "tags": ["mine"], "model-index": [{"name": "x", "results": [metric]}]}
    edit(hub, "org/foreign", README__md=f"---\n{json.dumps(old)}\n---\n# Blank\n\n## Blank\n")
    push(place / "erase-a", "org/foreign")
    card: Any = card_of(hub, "org/foreign")
    assert card.data.license == "llama3"
    assert {"mine", "unierase"} <= set(card.data.tags)
    assert "Blank" not in card.text
    assert {each.dataset_type for each in card.data.eval_results} == {"b", "unierase-check"}


def test_somebody_elses_commit_meanwhile_is_not_run_over(
    hub: HubServer, owner: HubProcess, try_push: Any, place: Path, copied: Path
) -> None:
    owner.run(PUSH, folder=str(place / "erase-a"), repo="org/race", told={})
    record(copied, seed=7)
    race = """
from huggingface_hub import HfApi
inner = HfApi.create_commit
def late(self, *told, **more):
    HfApi.create_commit = inner
    self.upload_file(path_or_fileobj=b"1", path_in_repo="n", repo_id="org/race")
    return inner(self, *told, **more)
HfApi.create_commit = late
"""
    owner.run(race)
    ended = try_push(copied, "org/race")
    owner.run("HfApi.create_commit = inner")
    assert "somebody else has changed org/race meanwhile" in ended["error"]
    assert json.loads(hub.repos["org/race"].files()["erasure.json"])["predicate"]["seed"] == 0
    push_again = try_push(copied, "org/race")
    assert "error" not in push_again
    assert "n" in hub.repos["org/race"].files()


# Who may see it, and pull requests


def test_a_private_one_is_seen_by_its_owner_alone(
    hub: HubServer, owner: HubProcess, push: Any, wanted: list[Any], place: Path
) -> None:
    push(place / "erase-a", "org/secret", private=True)
    assert hub.repos["org/secret"].private
    assert owner.run(LOAD, source="org/secret", told={}) == wanted[0]
    code = "from huggingface_hub import HfApi; HfApi(token=token).model_info('org/secret')"
    assert owner.try_run(code, token=OTHER_TOKEN)["type"] == "RepositoryNotFoundError"


def test_private_is_not_pushed_to_a_public_repository(hub: HubServer, push: Any, try_push: Any, place: Path) -> None:
    push(place / "erase-a", "org/public")
    assert (
        "org/public is there already and is public" in try_push(place / "erase-b", "org/public", private=True)["error"]
    )
    assert len(hub.repos["org/public"].messages) == 2


def test_a_pull_request_leaves_the_main_branch_alone(
    hub: HubServer, owner: HubProcess, push: Any, wanted: list[Any], place: Path
) -> None:
    push(place / "erase-a", "org/asked")
    before = hub.repos["org/asked"].refs["main"]
    told = push(place / "erase-b", "org/asked", create_pr=True, token=OTHER_TOKEN, commit_message="a better one")
    assert told["pr_url"] == f"{hub.url}/org/asked/discussions/1"
    assert hub.repos["org/asked"].refs["main"] == before
    assert hub.repos["org/asked"].messages[-1] == "a better one"
    assert owner.run(LOAD, source="org/asked", told={"revision": "refs/pr/1"}) == wanted[1]


# What is refused


def weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "adapter_model.safetensors"
) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("inf")


def as_link(file: Path) -> None:
    target = file.rename(file.parent.parent / "target")
    file.symlink_to(target)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def recorded(spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The same, with a record of what came of it."""

    def both(folder: Path) -> None:
        spoil(folder)
        record(folder)

    return both


@pytest.mark.parametrize("inner", [".", "lora"])
def test_the_size_of_weights_is_known_before_they_are_read(
    inner: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("read before its size was looked at")

    largest = max(tensor.numel() for tensor in load_file(copied / "adapter_model.safetensors").values())
    if inner == "lora":
        monkeypatch.setattr("peft_unierase.guard.lora.safe_open", fails)
        weights(copied / inner, lambda tensors: tensors.update(more=torch.zeros(1 << 20)))
    else:
        monkeypatch.setattr("peft_unierase.guard.weights.safe_open", fails)
    record(copied)
    monkeypatch.setattr("safetensors.safe_open", fails)
    monkeypatch.setattr("peft_unierase.guard.files.MAX_PARAMETERS", 1 << 19 if inner == "lora" else largest)
    with pytest.raises(ValueError, match=r"more than .* parameters in "):
        check_folder(copied)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "erase-a is no folder; name one that"),
        (
            lambda f: (f / "adapter_config.json").unlink(),
            "holds no erasure: it has no adapter_config.json of type UNIERASE",
        ),
        (lambda f: rewrite(f / "adapter_config.json", "UNIERASE", "LORA"), "holds no erasure"),
        (lambda f: (f / "erasure.json").unlink(), "lacks erasure.json; `unierase erase` and"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "lacks adapter_model.safetensors"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "lacks tokenizer_config.json"),
        (lambda f: (f / "README.md").unlink(), "lacks README.md"),
        (lambda f: (f / "erasure.json").write_text("{"), "erasure.json is no JSON ("),
        (lambda f: (f / "erasure.json").write_text("[]"), "erasure.json is no JSON object"),
        (
            recorded(lambda f: os.truncate(f / "adapter_model.safetensors", 900)),
            "adapter_model.safetensors is not as long as its header says",
        ),
        (recorded(lambda f: weights(f, infinite)), "values that are not finite: base_model"),
        (recorded(lambda f: weights(f / "lora", infinite)), "values that are not finite or huge"),
        (
            recorded(lambda f: rewrite(f / "lora" / "adapter_config.json", '"LORA"', '"LOHA"')),
            "a LoRA form of another type",
        ),
        (
            lambda f: weights(f, infinite),
            "adapter_model.safetensors changed since (`unierase verify",
        ),
        (lambda f: (f / "vocab.json").write_text("{}"), "vocab.json changed since (`unierase verify"),
        (lambda f: as_folder(f / "tokenizer.json"), "tokenizer.json changed since (`unierase verify"),
        (lambda f: as_link(f / "adapter_model.safetensors"), "is a link; put the file itself there"),
        (lambda f: as_link(f / "lora"), "lora is a link"),
        (
            lambda f: (f / "report.json").write_text('{"examples": [{"question": "?"}]}'),
            "--no-examples`), or take the report",
        ),
        (
            lambda f: rewrite(f / "README.md", "## Limits\n", "## Limits\n\n## More\n"),
            "says nothing under ## Limits; fill",
        ),
        (lambda f: rewrite(f / "README.md", "library_name", "library_name: ["), "README.md cannot be read"),
    ],
)
def test_a_broken_folder_asks_nothing_of_the_hub(
    spoil: Callable[[Path], Any], message: str, hub: HubServer, try_push: Any, copied: Path
) -> None:
    spoil(copied)
    before = list(hub.requests)
    ended = try_push(copied, "org/broken")
    assert message in ended["error"]
    assert ended["type"] == "InputError"
    assert hub.requests == before


def test_a_card_that_the_hub_refuses_makes_no_repository(hub: HubServer, try_push: Any, copied: Path) -> None:
    rewrite(copied / "README.md", "library_name", "base_model: /home/wilma/tiny\nlibrary_name")
    ended = try_push(copied, "org/refused")
    assert 'does not accept the metadata of README.md ("base_model" must be a model id)' in ended["error"]
    assert "org/refused" not in hub.repos


def test_nothing_else_in_the_folder_goes_up(hub: HubServer, push: Any, copied: Path) -> None:
    others = ["salt", "ledger.jsonl", "adapter_model.bin", ".env", "x.safetensors", "report.html"]
    for name in [*others, "lora/more/adapter_config.json", "LICENSE.d/salt"]:
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("secret")
    (copied / "report.json").write_text('{"examples": []}')
    push(copied, "org/strict")
    assert hub.repos["org/strict"].files().keys() == FILES | {"report.json"}


@pytest.mark.parametrize(
    ("repo", "told", "message"),
    [
        (
            "org/x",
            {"token": "hf_wrong"},
            "does not accept the token (Invalid credentials in Authorization header); run `hf",
        ),
        ("org/x", {"token": False}, "wants a token, and there is none (Invalid username or password.); run `hf auth"),
        ("nobody/x", {}, "the token may not write to nobody/x (You don't have the rights"),
        ("org/new", {"token": OTHER_TOKEN}, "the token may not write to org/new"),
        ("org/x/y", {}, "'org/x/y' is no repository id; write owner/name"),
        ("org/--x", {}, "'org/--x' is no repository id"),
        ("org/x", {"revision": "dev", "create_pr": True}, "a pull request goes to the main branch"),
        ("org/erase-a", {"revision": "refs/pr/77"}, "org/erase-a has no such revision"),
    ],
)
def test_errors_say_what_to_do_next(
    repo: str, told: dict[str, Any], message: str, hub: HubServer, try_push: Any, pushed: Any, place: Path
) -> None:
    before = {name: len(found.messages) for name, found in hub.repos.items()}
    ended = try_push(place / "erase-a", repo, **told)
    assert message in ended["error"]
    assert (ended["type"], ended["warnings"]) == ("InputError", [])  # and it is not tried again
    assert {name: len(found.messages) for name, found in hub.repos.items()} == before


# Broken connections


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("POST /api/validate-yaml", "early"),
        ("POST /api/repos/create", "early"),
        ("POST /api/repos/create", "late"),
        ("POST /api/repos/create", "503"),
        ("/preupload/", "early"),
        ("PUT /large/", "early"),
        ("/commit/", "early"),
        ("/commit/", "late"),
    ],
)
def test_a_broken_connection_is_tried_again_and_nothing_is_done_twice(
    what: str, how: str, hub: HubServer, try_push: Any, copied: Path
) -> None:
    # New to the hub, and to the guard still what the LoRA form is.
    weights(copied, lambda tensors: next(iter(tensors.values())).view(-1)[0].add_(1e-6 * (1 + len(hub.large))))
    record(copied)
    repo = f"org/broken-{len(hub.repos)}"
    hub.break_once(what, how)
    ended = try_push(copied, repo)
    assert hub.breaks == []
    assert "error" not in ended
    assert len(hub.repos[repo].messages) == 2
    assert hub.repos[repo].files().keys() == FILES
    assert ended["result"]["oid"] == hub.repos[repo].refs["main"]


def test_a_pull_request_is_not_opened_twice(hub: HubServer, push: Any, try_push: Any, place: Path) -> None:
    push(place / "erase-a", "org/once")
    hub.break_once("/commit/", "late")
    ended = try_push(place / "erase-b", "org/once", create_pr=True)
    assert ended["type"] == "ConnectionError"
    assert "look at org/once there, and push again if the commit has not arrived" in ended["error"]
    assert hub.repos["org/once"].pull_requests == 1


def test_a_hub_without_xet_is_named_as_one(hub: HubServer, owner: HubProcess, try_push: Any, place: Path) -> None:
    owner.run("import huggingface_hub.constants; huggingface_hub.constants.HF_HUB_DISABLE_XET = False")
    hub.large.clear()
    ended = try_push(place / "erase-a", "org/xet")
    owner.run("huggingface_hub.constants.HF_HUB_DISABLE_XET = True")
    assert ended["type"] == "ConnectionError"
    assert f"with HF_HUB_DISABLE_XET=1 in the environment if {hub.url} does not know Xet" in ended["error"]


# Signed


@pytest.fixture
def signed(copied: Path, tmp_path: Path) -> Path:
    """The copy with a base that has a name on the Hub and with a licence, signed."""
    for name in ("adapter_config.json", "lora/adapter_config.json"):
        config = json.loads((copied / name).read_text(encoding="utf-8"))
        (copied / name).write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}), encoding="utf-8")
    (copied / "LICENSE").write_text("all rights reserved\n")
    record(copied)
    key = ec.generate_private_key(ec.SECP256R1())
    form = PrivateFormat.TraditionalOpenSSL
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    sign(copied, tmp_path / "key.pem")
    return copied


def test_a_signature_holds_behind_a_push_and_a_pull(owner: HubProcess, push: Any, signed: Path, tmp_path: Path) -> None:
    """Also though what is pulled lies behind links, which a signature otherwise does not allow."""
    push(signed, "org/signed")
    told = ["verify", "org/signed", "--public-key", str(tmp_path / "key.pub"), "--format", "json"]
    code, data, talk = owner.run(INVOKE, arguments=told)
    assert code == 0, data + talk
    (found,) = [each for each in json.loads(data)["findings"] if each["what"] == "signature"]
    assert found["outcome"] == "holds"


def test_a_signature_does_not_hold_where_a_link_leads_elsewhere(signed: Path, tmp_path: Path) -> None:
    weights = (signed / "adapter_model.safetensors").rename(tmp_path / "weights")
    (signed / "adapter_model.safetensors").symlink_to(weights)
    found = verify_signature(signed, tmp_path / "key.pub")
    assert found.outcome == "FAILS"
    assert "it is a symlink" in found.why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "notes.txt").write_text("mine"), r"would not hold there: notes\.txt\. Take out"),
        (lambda folder: (folder / "LICENSE").write_text("mit\n"), r"would not hold there: LICENSE\. Take out"),
        (lambda folder: (folder / "NOTICE").write_text("mine"), r"would not hold there: NOTICE\. Take out"),
        (lambda folder: (folder / "LICENSE").unlink(), r"would not hold there: LICENSE\. Take out"),
    ],
    ids=["not-pushed", "edited", "added", "gone"],
)
def test_a_signature_that_would_not_hold_is_not_pushed(
    try_push: Any, signed: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(signed)
    if (signed / "notes.txt").exists():
        sign(signed, tmp_path / "key.pem")
    assert re.search(message, try_push(signed, "org/refused")["error"])


def test_what_is_no_signature_is_not_pushed(try_push: Any, signed: Path) -> None:
    (signed / "model.sig").write_text("{}")
    assert "is no signature that `unierase sign` made" in try_push(signed, "org/refused")["error"]


def test_a_signed_base_that_is_named_by_a_path_is_not_pushed(try_push: Any, signed: Path, tmp_path: Path) -> None:
    for file in (signed / "adapter_config.json", signed / "lora" / "adapter_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "base")}), encoding="utf-8")
    record(signed)
    sign(signed, tmp_path / "key.pem")
    assert "Name the base with `unierase erase --base-id`" in try_push(signed, "org/refused")["error"]


# The command


def test_the_command_pushes(hub: HubServer, home: Path, place: Path, copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    ended = run_command(
        "push", copied, "org/by-command", "--private", "--message", "by hand", environment=hub.environment(home)
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["url"] == f"{hub.url}/org/by-command/commit/{told['commit']}"
    assert set(told["files"]) == FILES - {".gitattributes"}
    assert told["left_out"] == ["notes.txt"]
    assert "no part of an erasure: notes.txt" in ended.stderr
    assert hub.repos["org/by-command"].private
    assert hub.repos["org/by-command"].messages[-1] == "by hand"


def test_the_command_hashes_each_file_once(owner: HubProcess, signed: Path) -> None:
    count = """
from peft_unierase.storage import digests
opened, inner = [], digests.open_plain
digests.open_plain = lambda file: opened.append(str(file)) or inner(file)
"""
    owner.run(count)
    code, _, talk = owner.run(INVOKE, arguments=["push", str(signed), "org/hashed"])
    opened = owner.run("digests.open_plain = inner; result = opened")
    assert code == 0, talk
    assert str(signed / "adapter_model.safetensors") in opened
    assert len(opened) == len(set(opened))


def test_the_command_shows_how_to_load_it(hub: HubServer, owner: HubProcess, pushed: Any, place: Path) -> None:
    told = ["push", str(place / "erase-b"), "org/erase-a", "--create-pr", "--format", "human"]
    code, data, _ = owner.run(INVOKE, arguments=told)
    assert code == 0
    number = hub.repos["org/erase-a"].pull_requests
    assert f"org/erase-a: {hub.url}/org/erase-a/discussions/{number}." in data
    assert f'peft_unierase.load(base, "org/erase-a", revision="refs/pr/{number}")' in data


def test_the_command_says_what_was_wrong(hub: HubServer, owner: HubProcess, place: Path) -> None:
    told = ["push", str(place / "erase-a"), "org/none", "--token", "hf_wrong"]
    code, data, talk = owner.run(INVOKE, arguments=told)
    assert (code, data) == (2, "")
    assert talk.startswith(f"error: {hub.url} does not accept the token")
    told = ["push", str(place / "base"), "org/none"]
    code, data, talk = owner.run(INVOKE, arguments=told)
    assert (code, data) == (2, "")
    assert "base holds no erasure" in talk
    owner.run("import huggingface_hub.constants; huggingface_hub.constants.HF_HUB_OFFLINE = True")
    code, data, talk = owner.run(INVOKE, arguments=["push", str(place / "erase-a"), "org/none"])
    owner.run("huggingface_hub.constants.HF_HUB_OFFLINE = False")
    assert (code, data) == (2, "")
    assert talk == "error: HF_HUB_OFFLINE is set, and pushing needs the Hub; unset it and push again\n"


# PEFT's own way


def test_what_pefts_own_push_gives_today(
    hub: HubServer, owner: HubProcess, push: Any, wanted: list[Any], place: Path
) -> None:
    """If this fails, PEFT's or transformers' `push_to_hub` has changed: see docs/guides/sharing-and-loading.md."""
    code = "PeftModel.from_pretrained(base(), source).push_to_hub(repo)"
    owner.run(code, source=str(place / "erase-a"), repo="org/by-peft")
    files = hub.repos["org/by-peft"].files()
    assert files.keys() == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert card_of(hub, "org/by-peft").data.to_dict() == {"library_name": "transformers", "tags": []}
    assert str(place).encode() in files["adapter_config.json"]
    assert owner.run(LOAD, source="org/by-peft", told={}) == wanted[0]

    push(place / "erase-b", "org/then-peft")
    ours = hub.repos["org/then-peft"].files()
    owner.run(code, source=str(place / "erase-a"), repo="org/then-peft")
    files = hub.repos["org/then-peft"].files()
    assert {name for name in files if files[name] != ours[name]} == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(AssertionError, match=r"a file that is not the recorded one: adapter_model\.safetensors"):
        owner.run(LOAD, source="org/then-peft", told={})


# The card, without a hub


def test_a_heading_in_code_is_no_section() -> None:
    assert empty_sections("# One\n\n```sh\n## no heading\n## nor this\n```\n") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# One\n\n## Two\n\ntext\n", []),
        ("# One\n\ntext\n\n## Two\n\n## Three\n\ntext\n", ["## Two"]),
        ("# One\n\ntext\n\n## Two\n", ["## Two"]),
        ("# One\n\n## Two\n\n[More Information Needed]\n", ["## Two"]),
        ("# One\n\n## Two\n\n- **By:** [More Information Needed]\n\n## Three\n\ntext\n", ["## Two"]),
    ],
)
def test_empty_sections_are_found(text: str, found: list[str]) -> None:
    assert empty_sections(text) == found


def test_headings_with_dashes_do_not_break_the_comment() -> None:
    once = repo_card("# x\n\n## a -- b --> c\n\ntext\n", "org/x", [])
    assert once.count("-->") == 2
    edited = once.replace("text", "mine")
    again = repo_card("# x\n\n## a -- b --> c\n\nother\n", "org/x", [], edited)
    assert "mine" in again
    assert "other" not in again
    assert "other" in repo_card("# x\n\n## a -- b --> c\n\nother\n", "org/x", [], once)
