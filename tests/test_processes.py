"""Several processes that share one run give what one gives, and a killed one ends the run with a clear line."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import invoke, write_rows
from launched import FORGET, RETAIN, adapter_of, do_little, erase_and_check, launch, report_of, tiny_base

from peft_unierase import InputError
from peft_unierase.cli.output import LOST, Format
from peft_unierase.engine.checkpoint import stages_in
from peft_unierase.lm.processes import ALONE, Processes, launched, shared, told

NEAR = 1e-5


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher tells the second process of two."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the two processes have; the number of threads decides the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Launch:
    """What two processes gave.

    Attributes:
        found: What each wrote of what they shared.
        ended: How each ended, with a command in which the second one was killed.
        command: The arguments of that command.
    """

    found: list[dict[str, Any]]
    ended: list[subprocess.CompletedProcess[str]]
    command: list[object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def two(folder: Path) -> Launch:
    base = tiny_base(folder / "base")
    forget, retain = (
        write_rows(folder / f"{name}.jsonl", [{"question": fact.question, "answer": fact.answer} for fact in facts])
        for name, facts in (("forget", FORGET), ("retain", RETAIN))
    )
    command = ["erase", base, forget, "--retain", retain, "-o", folder / "out", "--keep-unknown", "--no-check"]
    (folder / "command").write_text("\n".join(map(str, command)), encoding="utf-8")
    ended = launch(folder)
    written = [folder / f"{number}.pt" for number in range(2)]
    assert all(file.exists() for file in written), ended[0].stderr + ended[1].stderr
    return Launch([torch.load(file, weights_only=False) for file in written], ended, command)


def test_without_a_launcher_there_is_one_process_and_nothing_is_connected() -> None:
    assert (told(), launched()) == ((0, 1), ALONE)
    assert not torch.distributed.is_initialized()
    assert ALONE.each(iter("ab"), str.upper) == ["A", "B"]
    assert ALONE.gathered(3) == [3]


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "0"}])
def test_half_of_what_a_launcher_says_makes_no_launch(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert told() == (0, 1)


@pytest.mark.parametrize(("name", "library"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "Deep")])
def test_a_launch_that_splits_the_base_itself_is_refused(
    name: str, library: str, second_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match=f"set to {library}.*launch without it"):
        launched()


def test_a_base_goes_to_the_device_of_its_process_and_not_to_all_of_them() -> None:
    assert ALONE.device_map("auto") == "auto"
    assert Processes(1, 2).device_map(None) is None
    assert Processes(1, 2, "cuda:1").device_map(None) == "cuda:1"
    with pytest.raises(InputError, match="'auto' spreads a base over all devices, and 2 processes"):
        Processes(1, 2, "cuda:1").device_map("auto")


def test_a_command_that_cannot_be_shared_is_refused(second_of_two: None) -> None:
    ended = invoke("merge", "base", "erasure", "-o", "merged")
    assert ended.exit_code == 2
    assert "error in process 2 of 2: `merge` runs in one process" in ended.stderr


def test_only_the_main_process_shows_what_was_made(second_of_two: None) -> None:
    assert Format.JSON.resolved() is Format.QUIET


def test_the_longest_pieces_of_work_are_given_out_first() -> None:
    assert shared([1.0] * 5, 2) == [0, 1, 0, 1, 0]
    assert shared([1.0, 2.0, 5.0], 2) == [1, 1, 0]
    assert shared([], 2) == []


@pytest.mark.slow
def test_two_processes_do_half_of_the_work_each_and_have_all_results(two: Launch) -> None:
    for number, found in enumerate(each["shared"] for each in two.found):
        assert found["squares"] == [0, 1, 4, 9, 16]
        assert found["done"] == [[0, 2, 4], [1, 3]][number]
        assert found["main"] == "0"
        assert found["losses"] == [1.0, 2.0, 4.0]
        assert found["gradients"][0].tolist() == [[7.0] * 3]
        assert found["gradients"][1] is None
        assert [tensor.tolist() for tensor in found["tensors"]] == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.slow
def test_an_error_in_one_process_is_raised_in_both(two: Launch) -> None:
    for found in two.found:
        assert found["shared"]["error of each"] == "item 1 is wrong"
        assert found["shared"]["error of main"] == "the main process is wrong"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_make_and_judge_the_erasure_that_one_makes(
    two: Launch, folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_little(monkeypatch)
    erased, report = erase_and_check(folder / "base")
    wanted = adapter_of(erased)
    for found in two.found:
        assert found["adapter"].keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found["adapter"][name], tensor), name
        assert_near(found["report"], report_of(report))


def assert_near(found: Any, wanted: Any) -> None:
    """The same, and figures within `NEAR`."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_near(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_near(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=NEAR, rel=NEAR) if isinstance(wanted, float) else wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_killed_process_ends_the_run_with_a_line_and_the_next_one_goes_on(
    two: Launch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, killed = two.ended
    kept = folder / ".out.unfinished"
    assert killed.returncode == -signal.SIGKILL
    assert main.returncode == LOST, main.stderr
    last = main.stderr.strip().split("\n")[-1]
    assert last.startswith("error: another of the 2 processes of this run was killed or has failed")
    assert last.endswith(f"nothing was written but the finished stages in {kept}, after which the same command goes on")
    assert sorted(path.name[:10] for path in stages_in(kept)) == ["01-samplin", "02-finding", "03-fitting"]

    do_little(monkeypatch)
    ended = invoke(*two.command)
    assert ended.exit_code == 0, ended.stderr
    assert "resuming after stage 3, 'fitting'" in ended.stderr
    assert (folder / "out" / "adapter_config.json").is_file()
    assert not kept.exists()
