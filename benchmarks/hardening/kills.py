"""Commands that are killed with signal 9 at random points, and what must be true afterwards.

Half of the kills come before a random change of a file (or call to a hub), half after a random time. A fork that is
killed leaves what a process leaves: no `finally` runs, nothing is flushed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop import (
    Ended,
    Kill,
    Tally,
    clean_erasure,
    command,
    draw,
    forked,
    last_line,
    shared,
    state_of,
    tiny_base,
    write_facts,
)

REPO = "org/erasure"
OWN = (".said", ".events", ".given")  # of the fork
SECONDS = 300.0  # for a command that is not killed; an erasure takes a few


@dataclass(frozen=True)
class Killed:
    """One command under attack.

    Attributes:
        name: Its name.
        arguments: Its command line.
        output: What it writes; a hub's repository if `None`.
        prepare: Makes everything as it is before the command, in the folder of one attempt.
        whole: What is wrong with the output; empty if nothing is.
    """

    name: str
    arguments: Callable[[Path], list[object]]
    output: str | None
    prepare: Callable[[Path], None]
    whole: Callable[[Path], str]


def run(tally: Tally, folder: Path, cases: int, seed: int, only: str | None = None) -> None:
    """Kill every command in turn, `cases` times in all."""
    attacked = {each.name: each for each in _attacked(folder) if only in (None, each.name)}
    measured = {}
    for name, each in attacked.items():
        place = folder / f"whole-{_slug(name)}"
        _before(each, place)
        ended = forked(command(*each.arguments(place)), place, seconds=SECONDS)
        if not tally.hold(ended.is_clean and ended.status == 0, f"{name}: it fails unkilled: {last_line(ended.text)}"):
            print(ended.text[-2000:])
            continue
        tally.hold(not (wrong := each.whole(place)), f"{name}: what it writes unkilled is not whole: {wrong}")
        tally.hold(_done(place, name) == 1, f"{name}: its line is not in the ledger")
        measured[name] = ended

    def kill(number: int) -> Tally:
        own, name = Tally(), [*measured][number % len(measured)]
        _kill_once(own, attacked[name], measured[name], folder / f"{number:04d}-{_slug(name)}", seed, number)
        return own

    for found in shared(range(cases if measured else 0), kill, Tally.failed):
        tally.add(found)


def _kill_once(tally: Tally, attacked: Killed, whole: Ended, place: Path, seed: int, number: int) -> None:
    generator = draw(seed, "kill", number)
    before = _before(attacked, place)
    untouched = {name: _digest(place / name) for name in ("in", "base") if (place / name).exists()}
    by_event = whole.events and generator.random() < 0.5
    kill = (
        Kill(event=generator.randint(1, whole.events))
        if by_event
        else Kill(seconds=generator.uniform(0.02, whole.seconds))
    )
    ended = forked(command(*attacked.arguments(place)), place, kill)
    tally.counts["kills"] += ended.how == "killed"
    tally.counts[f"kills of {attacked.name}"] += ended.how == "killed"
    tally.counts["commands that ended before their kill"] += ended.how != "killed"
    where = f"{attacked.name}, kill {number} ({kill})"
    there = attacked.output is not None and (place / attacked.output).exists()
    if there or attacked.output is None:
        tally.hold(not (wrong := attacked.whole(place)), f"{where}: a part is visible: {wrong}")
    for name, digest in untouched.items():
        tally.hold(_digest(place / name) == digest, f"{where}: it changed {name}")
    _check_ledger(tally, place, before, where)
    noted = _done(place, attacked.name) > 0
    again = forked(command(*attacked.arguments(place)), place, seconds=SECONDS)
    # Killed when all was written, its line in the ledger too, it has nothing left to do and says so.
    refused = noted and there and again.status == 2
    tally.hold(again.is_clean, f"{where}: the same command then fails: {last_line(again.text)}")
    tally.hold(again.status == 0 or refused, f"{where}: it is not resumed: {last_line(again.text)}")
    tally.hold(not (wrong := attacked.whole(place)), f"{where}: not whole after the same command again: {wrong}")
    _check_ledger(tally, place, before, f"{where}, again")
    if again.status == 0:
        tally.hold(_done(place, attacked.name) > 0, f"{where}: the ledger has no line of it")
        left = [path.name for path in place.iterdir() if path.name.startswith(".") and path.name not in OWN]
        tally.hold(not left, f"{where}: left behind: {', '.join(left)}")
    shutil.rmtree(place)


def _before(attacked: Killed, place: Path) -> int:
    """Make everything as it is before a command; how many lines the ledger has."""
    import os

    place.mkdir()
    os.environ["UNIERASE_HOME"] = str(place / "home")
    attacked.prepare(place)
    return len(_ledger(place))


def _ledger(place: Path) -> list[Any]:
    from peft_unierase.records import ledger

    return list(ledger.read(place / "home" / "ledger.jsonl"))


def _done(place: Path, name: str) -> int:
    """How many lines of a ledger are of a command."""
    return sum(line.action == name.split()[0] for line in _ledger(place))


def _check_ledger(tally: Tally, place: Path, before: int, where: str) -> None:
    try:
        lines = len(_ledger(place))
    except Exception as error:
        tally.hold(False, f"{where}: the ledger is broken: {error}")
    else:
        tally.hold(lines >= before, f"{where}: the ledger lost lines: {before} before, {lines} now")


def _attacked(folder: Path) -> list[Killed]:
    from peft_unierase.demo import demo_facts, demo_model_dir

    rows = [{key: row[key] for key in ("question", "answer")} for row in demo_facts()]
    facts, retain = write_facts(folder / "facts.jsonl", rows[:2]), write_facts(folder / "retain.jsonl", rows[60:90])
    base = tiny_base(folder / "base")
    first, second = (clean_erasure(base, folder / name, seed, 400 + seed) for name, seed in (("a", 1), ("b", 2)))
    key = folder / "key.pem"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True, capture_output=True
    )
    public = folder / "key.pub"
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    made = folder / "made"
    made.mkdir()
    _must(forked(command("merge", first, "-o", made / "merged", "--base", base, "--undo", made / "undo"), folder))
    erasing = [demo_model_dir(), facts, "--retain", retain, "--no-check", "--no-samples-cache", "--samples", 0]

    def nothing(place: Path) -> None:
        """There is nothing before."""

    def an_erasure(place: Path) -> None:
        shutil.copytree(first, place / "out")

    def merged(place: Path) -> None:
        shutil.copytree(made / "merged", place / "in")

    def to_sign(place: Path) -> None:
        shutil.copytree(first, place / "out")

    def to_push(place: Path) -> None:
        shutil.copytree(first, place / "in")

    erase = [*erasing, "-o"]
    return [
        Killed("erase", lambda p: ["erase", *erase, p / "out"], "out", nothing, _whole_erasure),
        Killed(
            "erase --overwrite",
            lambda p: ["erase", *erase, p / "out", "--overwrite"],
            "out",
            an_erasure,
            _whole_erasure,
        ),
        Killed(
            "merge",
            lambda p: ["merge", first, "-o", p / "out", "--base", base],
            "out",
            nothing,
            _whole_model(made / "merged", with_undo=True),
        ),
        Killed("stack", lambda p: ["stack", first, second, "-o", p / "out"], "out", nothing, _whole_erasure),
        Killed("export", lambda p: ["export", first, "-o", p / "out", "--base", base], "out", nothing, _whole_lora),
        Killed(
            "restore",
            lambda p: ["restore", p / "in", "-o", p / "out", "--undo", made / "undo"],
            "out",
            merged,
            _whole_model(base),
        ),
        Killed("push", lambda p: ["push", p / "in", _repository(p)], None, to_push, _whole_repository),
        Killed(
            "sign",
            lambda p: ["sign", p / "out", "--key", key],
            "out/model.sig",
            to_sign,
            lambda place: _signed(place / "out", public),
        ),
    ]


def _must(ended: Ended) -> None:
    if ended.status:
        raise RuntimeError(ended.text)


def _slug(name: str) -> str:
    return name.replace(" --", "-")


def _digest(folder: Path) -> str:
    return hashlib.sha256(repr(sorted(state_of(folder).items())).encode()).hexdigest()


def _whole_erasure(place: Path) -> str:
    """The guard passes it, and it is what its record says."""
    from peft_unierase.guard.inspect import inspect_folder
    from peft_unierase.records.compare import verify_files
    from peft_unierase.records.read import read_statement

    try:
        out = place / "out"
        refused = [str(finding) for finding in inspect_folder(out).refused]
        record = read_statement(out)
        if record is None:
            return "it has no record"
        return "; ".join(refused + [each.why for each in verify_files(out, record) if each.outcome == "FAILS"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _whole_lora(place: Path) -> str:
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    try:
        PeftConfig.from_pretrained(str(place / "out"))
        return "" if load_peft_weights(str(place / "out"), device="cpu") else "it has no weights"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _whole_model(like: Path, with_undo: bool = False) -> Callable[[Path], str]:
    """A model with the weights of another one, and if wanted with a way back."""

    def whole(place: Path) -> str:
        import torch
        from safetensors.torch import load_file

        out = place / "out"
        try:
            found, wanted = (load_file(folder / "model.safetensors") for folder in (out, like))
            if found.keys() != wanted.keys() or not all(torch.equal(found[key], wanted[key]) for key in wanted):
                return "its weights are others"
            missing = [name for name in ("config.json", "tokenizer.json") if not (out / name).is_file()]
            if with_undo and (lost := _no_way_back(place)):
                return lost
            return ", ".join(missing)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return whole


def _no_way_back(place: Path) -> str:
    """Why `unierase restore` cannot give the base back; empty if it can."""
    back = place / "back"
    ended = forked(command("restore", place / "out", "-o", back), place)
    shutil.rmtree(back, ignore_errors=True)
    return "" if ended.status == 0 else f"there is no way back: {last_line(ended.text)}"


def _repository(place: Path) -> str:
    return f"{REPO}-{place.name}"


def _whole_repository(place: Path) -> str:
    """The main branch of the repository holds all that the folder does, or nothing yet."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    from peft_unierase.hub.push import check_folder

    try:
        found = set(HfApi().list_repo_files(_repository(place))) - {".gitattributes"}
    except RepositoryNotFoundError:
        return "" if not (place / "home" / "ledger.jsonl").exists() else "there is no repository"
    wanted = set(check_folder(place / "in"))
    return "" if found in (set(), wanted) else f"it has {sorted(found)}, not {sorted(wanted)}"


def _signed(folder: Path, public: Path) -> str:
    from peft_unierase.records.sign import verify_signature

    found = verify_signature(folder, public)
    return "" if found.outcome == "holds" else found.why
