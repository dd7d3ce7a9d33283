"""Processes of one launch, as `torchrun` starts them: what tests start, and what each of them does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENVIRONMENT, save_tiny_model
from hurried import hurry
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_unierase import Fact, InputError, check, erase
from peft_unierase.checking import CheckReport
from peft_unierase.cli import main as command
from peft_unierase.demo import demo_facts
from peft_unierase.engine.distill import placing, recipe
from peft_unierase.engine.distill.fit import Fitting
from peft_unierase.lm.gradients import added_up
from peft_unierase.lm.processes import Processes, launched

ROWS = demo_facts()
FORGET = [Fact(row["question"], row["answer"]) for row in ROWS if row["subject"] == ROWS[0]["subject"]][:3]
RETAIN = [Fact(row["question"], row["answer"]) for row in ROWS if row["subject"] != ROWS[0]["subject"]][::16]
ATTACKS = ("plain", "ban", "directions", "member-loss", "relearn-tenth")
STEPS, CHUNK = 6, 2


def launch(folder: Path, *, count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Run this file in so many processes that know of each other; see [`main`]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    running = []
    for number in map(str, range(count)):
        own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        running.append(
            subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                env={**ENVIRONMENT, **address, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = []
    for process in running:
        out, err = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


def tiny_base(folder: Path) -> Path:
    """A tiny model of random weights, saved once."""
    return save_tiny_model(folder, LlamaForCausalLM, LlamaConfig) if not folder.exists() else folder


def do_little(patch: pytest.MonkeyPatch) -> None:
    """Let erasures read little, take few steps, and keep them in small chunks."""
    hurry(patch, samples=12, steps=STEPS)
    patch.setattr(placing, "RENAMED", 16)
    patch.setattr(recipe, "CHUNK", CHUNK)


def erase_and_check(base: Path) -> tuple[PeftModel, CheckReport]:
    """An erasure of the tiny model, and what the check says of it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    erased = erase(model, tokenizer, FORGET, RETAIN, samples_cache=False, keep_unknown=True, progress=False)
    unseen = [Fact(fact.question, "Quite another answer.") for fact in RETAIN[:4]]
    return erased, check(erased, tokenizer, FORGET, RETAIN[:5], attacks=ATTACKS, unseen=unseen, progress=False)


def adapter_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """All tensors of the erasure."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".unierase_" in name}


def report_of(report: CheckReport) -> dict[str, Any]:
    """A report without what tells when it was made."""
    record = report.record(times=False)
    return {name: value for name, value in record.items() if name != "created"}


def share(processes: Processes) -> dict[str, Any]:
    """What the parts of a run that processes share give."""
    done: list[int] = []
    layer, unused = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(1, 1)

    def add(item: int) -> float:
        loss = layer(torch.full((3,), float(item))).sum()
        loss.backward()
        return float(item)

    model = torch.nn.ModuleList([layer, unused])
    losses = added_up(model, [1, 2, 4], add, [1.0, 1.0, 5.0], processes)
    squares = processes.each(range(5), lambda item: (done.append(item), item * item)[1])
    found: dict[str, Any] = {
        "squares": squares,
        "done": done,
        "main": processes.from_main(lambda: os.environ["RANK"]),
        "losses": losses,
        "gradients": [layer.weight.grad, unused.weight.grad],
        "tensors": processes.gathered(torch.full((2,), float(processes.number))),
    }

    def fail(item: int) -> int:
        if item == 1:  # which the second process does
            raise InputError("item 1 is wrong")
        return item

    for name, work in (("each", lambda: processes.each(range(4), fail)), ("main", lambda: processes.from_main(wrong))):
        try:
            work()
        except InputError as error:
            found[f"error of {name}"] = str(error)
    return found


def wrong() -> None:
    raise InputError("the main process is wrong")


def die_in_the_fit(patch: pytest.MonkeyPatch) -> None:
    """Let the second process be killed after the first chunk of steps."""
    step, steps = Fitting.step, []

    def dying(self: Fitting) -> None:
        steps.append(1)
        if len(steps) == CHUNK + 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    patch.setattr(Fitting, "step", dying)


def main(arguments: Sequence[str]) -> None:
    """Share what there is to share, write what came of it, and give a command in which the second process is killed.

    Args:
        arguments: A folder with the tiny model, and the command's arguments in the file `command`.
    """
    folder, patch = Path(arguments[0]), pytest.MonkeyPatch()
    do_little(patch)
    processes = launched()
    found: dict[str, Any] = {"shared": share(processes)}
    erased, report = erase_and_check(folder / "base")
    torch.save({**found, "adapter": adapter_of(erased), "report": report_of(report)}, folder / f"{processes.number}.pt")
    die_in_the_fit(patch)
    sys.argv = ["unierase", *(folder / "command").read_text(encoding="utf-8").split("\n")]
    command()


if __name__ == "__main__":
    main(sys.argv[1:])
