"""Interrupted runs: they go on behind the last finished stage and give what an uninterrupted run gives, to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer
from hurried import ask_little
from safetensors import safe_open

from peft_unierase import DistillSettings, Fact, PaperSettings, erase
from peft_unierase.demo import demo_facts, demo_refusals
from peft_unierase.engine import checkpoint
from peft_unierase.engine.checkpoint import discard, read_stage, stages_in
from peft_unierase.engine.distill import recipe
from peft_unierase.lm.formats import default_formats
from peft_unierase.progress import Stages
from peft_unierase.retain import cache as retain_cache

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")]

ROWS = demo_facts()
SUBJECT = ROWS[0]["subject"]
FORGET = [Fact(row["question"], row["answer"]) for row in ROWS if row["subject"] == SUBJECT][:2]
RETAIN = [Fact(row["question"], row["answer"]) for row in ROWS if row["subject"] != SUBJECT][::32]
RECIPES: dict[str, dict[str, Any]] = {
    # Three chunks of two steps.
    "distill": {"settings": DistillSettings(samples=12, steps=6)},
    "paper": {
        "recipe": "paper",
        "settings": PaperSettings(samples=12, token_steps=2, robust_steps=2, output_steps=2, target_steps=2),
    },
}
STAGES = {
    "distill": [
        "sampling retain data",
        "finding triggers",
        *["fitting"] * 3,
        "solving the output row",
    ],
    "paper": [
        "sampling retain data",
        "learning to decline",
        "finding the null space",
        "fitting the output row",
        "finding targets",
        "editing layers",
        "counting refusals",
    ],
}


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retain_cache, "BLOCK", 12)
        ask_little(patch)
        patch.setattr(recipe, "CHUNK", 2)
        yield


@dataclass
class Run:
    """What a run gave, and the stages it started; those that only read something off the base left out."""

    started: list[str]
    adapter: bytes = b""
    record: str = ""


def run(kind: str, folder: Path, work_dir: Path | None, stop: int | None = None, **changes: Any) -> Run:
    """Erase, and press Ctrl-C in the middle of the stage number `stop` that this run starts."""
    started: list[str] = []
    stage = Stages.stage

    @contextmanager
    def stopping(self: Stages, name: str, total: int | None = None, even: bool = True) -> Iterator[Any]:
        if not name.startswith(("asking", "reading", "recording", "predicting", "measuring", "sampling near")):
            started.append(name)
        with stage(self, name, total, even) as bar:
            if len(started) == stop:
                bar.update = interrupt  # type: ignore[method-assign]
            yield bar
            if len(started) == stop:
                interrupt()

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    # A cache would keep blocks of this size for tests that come after, and go on where the stages do not.
    told = {"refusals": demo_refusals(), "samples_cache": False, "progress": False, **RECIPES[kind], **changes}
    model = told.pop("model", None) or demo_base()
    tokenizer = demo_tokenizer()
    facts = told.pop("forget", FORGET), told.pop("retain", RETAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "stage", stopping)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                erase(model, tokenizer, *facts, work_dir=work_dir, **told)
            return Run(started)
        erased = erase(model, tokenizer, *facts, work_dir=work_dir, **told)
    erased.save_pretrained(folder / "adapter", save_embedding_layers=False)
    files = [folder / "adapter" / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    return Run(started, b"".join(file.read_bytes() for file in files), json.dumps(erased.erasure.record()))


@dataclass(frozen=True)
class Finished:
    """A run that was not interrupted, one that was in each of its stages, and what both wrote."""

    whole: Run
    parts: list[Run]
    whole_work_dir: Path
    work_dir: Path


@pytest.fixture(scope="module", params=list(RECIPES))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def finished(kind: str, small_blocks: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(kind)
    whole, work_dir = run(kind, folder / "whole", folder / "whole-work"), folder / "work"
    stops: Sequence[int | None] = [1, *[2] * (len(whole.started) - 1), None]
    parts = [run(kind, folder / "parts", work_dir, stop) for stop in stops]
    return Finished(whole, parts, folder / "whole-work", work_dir)


def test_interrupted_in_every_stage_a_run_gives_the_same_bytes(finished: Finished, kind: str) -> None:
    assert finished.whole.started == STAGES[kind]
    assert finished.parts[-1].adapter == finished.whole.adapter
    assert finished.parts[-1].record == finished.whole.record


def test_interrupted_in_every_stage_each_stage_gives_the_same_bytes(finished: Finished) -> None:
    # What the adapter ends as may hide what a trial that was not kept did.
    for one, other in zip(sorted(finished.whole_work_dir.iterdir()), sorted(finished.work_dir.iterdir()), strict=True):
        wanted, found = (read_stage(path, digest_in(path)) or {} for path in (one, other))
        assert (one.name, wanted.pop("seconds").keys()) == (other.name, found.pop("seconds").keys())
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name


def digest_in(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return file.metadata()["digest"]


def test_no_finished_stage_is_done_again(finished: Finished, kind: str) -> None:
    names = STAGES[kind]
    expected = [names[max(0, number - 1) : number + 1] for number in range(len(names) + 1)]
    assert [part.started for part in finished.parts] == expected


def test_no_text_of_a_fact_is_in_the_files(finished: Finished, kind: str) -> None:
    files = sorted(finished.work_dir.iterdir())
    assert [file.name[3:].partition(".")[0].replace("-", " ") for file in files] == STAGES[kind]
    for file in files:
        content = file.read_bytes()
        assert not any(text.encode() in content for fact in FORGET for text in (fact.question, fact.answer, SUBJECT))


@pytest.fixture
def work_dir(finished: Finished, tmp_path: Path) -> Path:
    """A copy of what the interrupted runs wrote."""
    return Path(shutil.copytree(finished.work_dir, tmp_path / "work"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def change(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("kind", ["paper"], indirect=True)  # the quickest
@pytest.mark.parametrize(("damage", "number"), [(cut, 3), (change, 4), (lambda content: b"", 1)])
def test_a_damaged_file_and_all_behind_it_are_done_again_with_a_warning(
    finished: Finished, kind: str, work_dir: Path, damage: Any, number: int, tmp_path: Path
) -> None:
    file = sorted(work_dir.iterdir())[number - 1]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged"):
        again = run(kind, tmp_path, work_dir, 2)
    assert again.started == STAGES[kind][number - 1 : number + 1]
    assert len(list(work_dir.iterdir())) == number
    again = run(kind, tmp_path, work_dir)
    assert again.started == STAGES[kind][number:]
    assert again.adapter == finished.whole.adapter


@pytest.mark.parametrize("kind", ["paper"], indirect=True)  # the quickest
def test_where_nothing_can_be_written_the_run_goes_on_with_a_warning(
    finished: Finished, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise checkpoint.SafetensorError("no space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(UserWarning, match=r"could not be resumed from here: .*no space left") as caught:
        again = run(kind, tmp_path, tmp_path / "work")
    assert len([warning for warning in caught if "resumed" in str(warning.message)]) == 1
    assert again.adapter == finished.whole.adapter
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture(scope="module")
def begun(small_blocks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run wrote that was interrupted in its second stage."""
    folder = tmp_path_factory.mktemp("begun")
    run("distill", folder, folder / "work", 2)
    return folder / "work"


def other_weight() -> dict[str, Any]:
    model = demo_base()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] += 1e-3
    return {"model": model}


FORMATS = default_formats(demo_tokenizer())
OTHERS: dict[str, Any] = {
    "a weight": other_weight,
    "forget set": lambda: {"forget": FORGET[1:]},
    "a subject": lambda: {"forget": [replace(FORGET[0], subject=SUBJECT), *FORGET[1:]]},
    "retain set": lambda: {"retain": RETAIN[1:]},
    "refusals": lambda: {"refusals": demo_refusals()[1:]},
    "formats": lambda: {"formats": FORMATS[:1]},
    "settings": lambda: {"settings": replace(RECIPES["distill"]["settings"], retain_weight=3.0)},
    "recipe": lambda: RECIPES["paper"],
    "layers": lambda: {"layers": [2, 3]},
    "seed": lambda: {"seed": 1},
}


def test_the_same_run_is_gone_on_with(begun: Path, tmp_path: Path) -> None:
    assert run("distill", tmp_path, begun, 1).started == ["finding triggers"]


@pytest.mark.parametrize("other", list(OTHERS))
def test_another_run_is_not_gone_on_with(other: str, begun: Path, tmp_path: Path) -> None:
    assert run("distill", tmp_path, begun, 1, **OTHERS[other]()).started == ["sampling retain data"]


def test_what_is_found_is_announced(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work_dir = Path(shutil.copytree(begun, tmp_path / "work"))
    run("distill", tmp_path, work_dir, 1, progress=True)
    lines = capsys.readouterr().err.splitlines()  # loading the base says something too
    resumed, asked, skipped, near, *_, stopped = lines[-8:]
    assert resumed == f"resuming after stage 1, 'sampling retain data', from {work_dir}"
    assert "  asking the base for the facts · took " in asked
    assert skipped.endswith("  sampling retain data · done in an earlier run")
    assert "  sampling near neighbours · took " in near
    assert "  finding triggers · stopped after " in stopped
    run("distill", tmp_path, work_dir, 2, progress=True, seed=1)
    assert f"{work_dir} holds stages of another run" in capsys.readouterr().err
    assert run("distill", tmp_path, work_dir, 1).started == ["sampling retain data"]  # the other run has replaced it


def test_discarding_takes_the_stages_and_nothing_else(begun: Path, tmp_path: Path) -> None:
    work_dir = Path(shutil.copytree(begun, tmp_path / "work"))
    (work_dir / "notes.txt").write_text("mine", encoding="utf-8")
    (work_dir / "02-finding-triggers.safetensors.77.part").write_bytes(b"half")
    assert len(stages_in(work_dir)) == 2
    discard(work_dir)
    assert [path.name for path in work_dir.iterdir()] == ["notes.txt"]
    (work_dir / "notes.txt").unlink()
    discard(work_dir)
    assert not work_dir.exists()
    discard(work_dir)


def test_a_file_in_the_folder_s_place_is_refused_and_the_model_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("mine", encoding="utf-8")
    model = demo_base()
    with pytest.raises(ValueError, match="work is a file; name a folder"):
        run("distill", tmp_path, tmp_path / "work", model=model)
    assert not any("unierase" in name for name, _ in model.named_parameters())
