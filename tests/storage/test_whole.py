"""Folders and files are written whole or not at all, whoever is killed, and by one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ENVIRONMENT, listing

from peft_unierase.errors import InputError
from peft_unierase.hub.folder import check_output
from peft_unierase.storage import whole
from peft_unierase.storage.output import check_new, write_folder
from peft_unierase.storage.whole import claimed, whole_file, whole_folder

ENDED = 4_190_000  # no process has this number: it is beyond what a system gives by default
WRITING = """
import os, sys
from pathlib import Path
import unierase_command  # whose process needs no torch yet
from peft_unierase.storage import whole
from peft_unierase.storage.output import write_folder
whole.exchange = {exchange}
def write(place):
    (place / "adapter_config.json").write_text('{{"peft_type": "UNIERASE", "new": true}}')
{patch}
write_folder(Path(sys.argv[1]), write, replace=True)
"""
KILL = "os.kill(os.getpid(), 9)"


def erasure(folder: Path, **told: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "UNIERASE", **told}), encoding="utf-8")
    return folder


def is_new(folder: Path) -> bool:
    return "new" in json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("exchange", "patch"),
    [
        ("whole.exchange", f"    {KILL}"),
        ("whole.exchange", f"whole._remove = lambda path: {KILL}"),
        ("lambda *told: False", f"rename = Path.rename; Path.rename = lambda *told: (rename(*told), {KILL})"),
    ],
    ids=["before", "after the exchange", "between two renames"],
)
def test_a_process_killed_while_it_replaces_a_folder_leaves_one_of_the_two(
    tmp_path: Path, exchange: str, patch: str
) -> None:
    folder = erasure(tmp_path / "erasure")
    code = WRITING.format(exchange=exchange, patch=patch)
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], env=ENVIRONMENT, capture_output=True, check=False)
    assert ended.returncode == -9, ended.stderr
    if "told" not in exchange:
        assert folder.exists()
    check_output(folder, overwrite=True)  # as the next start does
    assert is_new(folder) is ("_remove" in patch)
    assert list(tmp_path.iterdir()) == [folder]


def test_the_new_folder_is_there_in_one_step_or_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for exchange in (whole.exchange, lambda one, other: False):
        monkeypatch.setattr(whole, "exchange", exchange)
        folder = erasure(tmp_path / "erasure")
        write_folder(folder, lambda place: (place / "adapter_config.json").write_text('{"new": 1}'), replace=True)
        assert is_new(folder)
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "adapter_config.json").unlink()
        folder.rmdir()


def test_where_the_system_can_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = erasure(tmp_path / "one"), erasure(tmp_path / "other", new=True)
    if not whole.exchange(one, other):
        pytest.skip("this system or file system cannot")
    assert (is_new(one), is_new(other)) == (True, False)
    assert not whole.exchange(one, tmp_path / "nowhere")


@pytest.mark.parametrize("start", [check_new, check_output, lambda folder: write_folder(folder, lambda place: None)])
def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path, start: Callable[[Path], Any]) -> None:
    for name in (f".out.partial-{ENDED}", f".out.replaced-{ENDED}", f".out.partial-{os.getpid()}"):
        erasure(tmp_path / name)
    kept = [
        f".out.partial-{os.getppid()}",
        f".other.partial-{ENDED}",
        ".out.partial-",
        ".out.partial-x",
        "out.partial-1",
    ]
    for name in kept:
        erasure(tmp_path / name)
    (tmp_path / "out").mkdir()
    start(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_what_was_replaced_comes_back_if_nothing_took_its_place(tmp_path: Path) -> None:
    erasure(tmp_path / f".out.replaced-{ENDED}")
    with pytest.raises(InputError, match="already holds an erasure"):
        check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_second_of_two_writers_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as place:
        for start in (check_new, check_output, lambda folder: whole_folder(folder).__enter__()):
            with pytest.raises(InputError, match=r"another process is writing to .*out; wait"):
                start(tmp_path / "out")
        (place / "first").touch()
    assert listing(tmp_path) == {"out": None, "out/first": b""}


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_appeared_meanwhile_is_not_replaced_unless_that_was_asked_for(
    tmp_path: Path, replace: bool
) -> None:
    def write(place: Path) -> None:
        (place / "second").touch()
        erasure(tmp_path / "out")

    if replace:
        write_folder(tmp_path / "out", write, replace=True)
        assert listing(tmp_path) == {"out": None, "out/second": b""}
        return
    with pytest.raises(InputError, match=r"another process has written to .* meanwhile"):
        write_folder(tmp_path / "out", write)
    assert sorted(listing(tmp_path)) == ["out", "out/adapter_config.json"]


def test_a_place_is_one_command_s_from_its_start_to_its_end(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        with pytest.raises(InputError, match="another command is writing to"), claimed(tmp_path / "x" / ".." / "out"):
            pass
        with claimed(tmp_path / "other"):
            pass
    with claimed(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_for_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    def write(place: Path) -> None:
        (place / "lora").mkdir()
        for file in (place / "weights", place / "lora" / "weights"):
            file.touch(mode=0o600)  # as safetensors does

    before = os.umask(umask)
    try:
        write_folder(tmp_path / "out", write)
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert [file.stat().st_mode & 0o777 for file in files] == [mode, mode]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    erasure(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    write_folder(
        tmp_path / "link", lambda place: (place / "adapter_config.json").write_text('{"new": 1}'), replace=True
    )
    assert (tmp_path / "link").is_symlink()
    assert is_new(tmp_path / "there")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 240, "我" * 85, "a/" + "y" * 300 + "/b", "/".join(["z" * 200] * 25), "a\0b"]
)
def test_a_name_that_no_file_can_have_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    for check in (check_new, check_output):
        with pytest.raises(InputError, match=r"bytes, and at most|too long for the system|null byte"):
            check(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_longest_name_that_passes_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * (whole.LONGEST_NAME - whole.OUR_MARKS))
    check_new(folder)
    write_folder(folder, lambda place: None)
    assert folder.is_dir()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / f".file.partial-{ENDED}").touch()
    with whole_file(tmp_path / "file", 0o600) as place:
        place.write_text("one", encoding="utf-8")

    def half() -> None:
        with whole_file(tmp_path / "file", 0o600) as place:
            place.write_text("half", encoding="utf-8")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half()
    assert listing(tmp_path) == {"file": b"one"}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
