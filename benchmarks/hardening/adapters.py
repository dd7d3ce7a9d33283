"""Malicious adapters, each in every way that an adapter is taken: what came of it, as a table.

`inspect`, `load`, `merge`, `stack` and `check` must refuse every one, in bounded time and memory, without a traceback,
and leave nothing behind. `PeftModel.from_pretrained`, which is PEFT's, may load one, but only what has weights in its
file, with the values that are there; an adapter that names one of PEFT's own types is PEFT's alone ("not ours"). `push`
hands on what is the caller's own, so it must only end cleanly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cases import WEIGHTS, Case, all_cases, settle
from workshop import Ended, Tally, clean_erasure, command, forked, last_line, shared, tiny_base, write_facts

WAYS = ("inspect", "load", "from_pretrained", "merge", "stack", "check", "push")
REFUSING = ("inspect", "load", "merge", "stack", "check")
REFUSED, CHANGED, OTHER, FOREIGN = 2, 97, 96, 95


def run(tally: Tally, folder: Path, cases: int, seed: int, only: str | None = None) -> None:
    """Try the first `cases` adapters whose names hold `only`; prints the table."""
    base = tiny_base(folder / "base")
    clean = clean_erasure(base, folder / "clean")
    facts = write_facts(folder / "facts.jsonl", [{"question": "Who was it?", "answer": "Nobody at all."}])
    named = {name: case for name, case in all_cases().items() if only is None or only in name}
    rows = []
    for way, ended in _tried(folder / "control", clean, Case(lambda place: None), base, facts).items():
        tally.hold(
            ended.is_clean and ended.status == 0, f"a clean adapter, {way}: {_outcome(ended)}: {ended.text[-600:]}"
        )
    names = [*named][:cases]

    def judged(name: str) -> tuple[str, dict[str, str], list[str]]:
        return _judged(folder, clean, name, named[name], base, facts)

    def untried(name: str, trace: str) -> tuple[str, dict[str, str], list[str]]:
        return name, dict.fromkeys(WAYS, "not tried"), [f"{name}: it could not be tried: {trace}"]

    for name, tried, wrong in shared(names, judged, untried):
        rows.append((name, *(tried[way] for way in WAYS)))
        tally.counts["malicious adapters"] += 1
        tally.counts["ways tried"] += len(tried)
        for way in WAYS:
            tally.counts[f"{way}: {tried[way]}"] += 1
        for text in wrong:
            tally.hold(False, text)
    width = max(map(len, [*names, "adapter"]))
    print("\n" + "  ".join([f"{'adapter':{width}s}", *(f"{way:15s}" for way in WAYS)]).rstrip())
    for name, *outcomes in rows:
        print("  ".join([f"{name:{width}s}", *(f"{outcome:15s}" for outcome in outcomes)]).rstrip())


def _judged(
    folder: Path, clean: Path, name: str, case: Case, base: Path, facts: Path
) -> tuple[str, dict[str, str], list[str]]:
    """The outcome of each way, and what is wrong with it."""
    place = folder / f"case-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    tried = _tried(place, clean, case, base, facts)
    wrong = []
    for way, ended in tried.items():
        outcome = _outcome(ended)
        told = f"{name}, {way}: {outcome}: {last_line(ended.text)}"
        may_pass = case.needs_base and way in ("inspect", "stack")
        sound = outcome == "refused" or (outcome == "passes" and (may_pass or way not in REFUSING))
        sound = sound or (outcome == "not ours" and case.foreign)
        if not sound:
            wrong.append(told)
        if (place / way / "exploded").exists():
            wrong.append(f"{name}, {way}: its code ran")
        if outcome == "refused" and (place / way / "out").exists():
            wrong.append(f"{name}, {way}: it was refused and left something behind")
    os.chdir(folder)
    shutil.rmtree(place, ignore_errors=True)
    return name, {way: _outcome(ended) for way, ended in tried.items()}, wrong


def _outcome(ended: Ended) -> str:
    if ended.how != "ended":
        return ended.how
    if ended.status == CHANGED:
        return "changed base"
    if ended.status == OTHER:
        return "other weights"
    if ended.status == FOREIGN:
        return "not ours"
    if not ended.is_clean:
        return "traceback" if "Traceback" in ended.text else f"status {ended.status}"
    return "refused" if ended.status else "passes"


def _tried(place: Path, clean: Path, case: Case, base: Path, facts: Path) -> dict[str, Ended]:
    found = {}
    for way in WAYS:
        here = place / way
        here.mkdir(parents=True)
        if not (place / "base").exists():
            (place / "base").symlink_to(base)
        adapter = here / "adapter"
        shutil.copytree(clean, adapter)
        os.chdir(here)  # where code that runs leaves its mark
        case.spoil(adapter)
        if not case.as_recorded:
            try:
                settle(adapter)
            except Exception as error:
                (here / "unsettled").write_text(f"{error!r}")
        before = _plain_state(adapter)
        on = [] if case.own_base else ["--base", base]
        calls: dict[str, Callable[[], int]] = {
            "inspect": command("inspect", adapter, "--format", "json"),
            "load": lambda adapter=adapter: _load(base, adapter),
            "from_pretrained": lambda adapter=adapter: _from_pretrained(base, adapter),
            "merge": command("merge", adapter, "-o", here / "out", *on),
            "stack": command("stack", adapter, "-o", here / "out"),
            "check": command(
                "check",
                adapter,
                "--forget",
                facts,
                "--attacks",
                "greedy",
                "--accept",
                "NO BASELINE",
                "--format",
                "json",
                *on,
            ),
            "push": command("push", adapter, f"org/{place.name}"),
        }
        home = {"UNIERASE_HOME": str(here / "home"), "HF_HUB_OFFLINE": "0" if way == "push" else "1"}
        found[way] = forked(calls[way], here, environment=home, stdin=b"y\n" * 20)
        if _plain_state(adapter) != before:
            found[way] = Ended("changed files", 0, "", 0.0)
        os.chdir(place)
    return found


def _plain_state(folder: Path) -> list[tuple[str, int, int]]:
    """Names, kinds and sizes; the bytes may be many gigabytes of nothing."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_size))
    return found


def _load(base: Path, adapter: Path) -> int:
    """The package's own way; what it refuses must leave the base as it was."""
    import torch
    from made_apart import base_of

    from peft_unierase import load

    model = base_of(base)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    try:
        load(model, adapter)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}")
        now = dict(model.named_parameters())
        same = now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
        there = [(name, type(module)) for name, module in model.named_modules()]
        return REFUSED if same and there == modules else CHANGED
    return 0


def _from_pretrained(base: Path, adapter: Path) -> int:
    """PEFT's way: what is loaded has weights in the file, and those; of another type PEFT asks nobody."""
    import torch
    from made_apart import base_of
    from peft import PeftModel
    from safetensors.torch import load_file

    try:
        model = PeftModel.from_pretrained(base_of(base), str(adapter))
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:200]}")
        return REFUSED
    if model.peft_config["default"].peft_type != "UNIERASE":
        return FOREIGN
    file = adapter / WEIGHTS
    stored = load_file(file) if file.is_file() else {}
    own = {
        name.replace(".default", ""): tensor
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if ".unierase_" in name or ".lora_" in name
    }
    own = {name: tensor for name, tensor in own.items() if not name.endswith("_base")}
    same = own.keys() <= stored.keys() and all(torch.equal(own[name], stored[name]) for name in own)
    print(f"loaded {len(own)} tensors, {len(stored)} in the file")
    return 0 if same else OTHER
