"""What the parts share: a tally, a tiny base with clean erasures, and commands in processes of their own.

A command runs in a fork of this process, which has imported all that it needs: it starts in milliseconds, can be killed
at any moment, has bounds on time and memory, and takes nothing of what it does back into this process. So nothing here
may start threads before it forks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
WORKERS = 2
WAITING = 500  # looks in a row, 2 ms apart, after which what waits is said to hang
MEMORY = 4 << 30  # beyond what this process has already
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
SENT = ("socket.connect", "ctypes.dlsym")


@dataclass
class Tally:
    """What was tried and what went wrong.

    Attributes:
        counts: What was tried, by its name in the report.
        violations: One text each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @staticmethod
    def failed(what: object, trace: str) -> Tally:
        """Of something that could not be tried, which counts as a violation."""
        found = Tally()
        found.hold(False, f"{what}: it could not be tried: {trace}")
        return found

    def add(self, other: Tally) -> None:
        """Add what a worker found, which has said it already."""
        self.counts.update(other.counts)
        self.violations.extend(other.violations)

    def hold(self, holds: bool, text: str) -> bool:
        """Note a violation unless something holds, and return whether it does."""
        if not holds:
            self.violations.append(text)
            print(f"VIOLATION  {text}", flush=True)
        return holds


@dataclass(frozen=True)
class Ended:
    """How a forked call ended.

    Attributes:
        how: `"ended"`, `"killed"` by its own hand (see [`Kill`]), `"hangs"`, `"memory"` or `"died"`.
        status: The exit status if it ended.
        text: What it wrote to stdout and stderr.
        seconds: How long it took.
        events: How many changes of files, and calls to a hub, it made.
    """

    how: str
    status: int
    text: str
    seconds: float
    events: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether it ended by itself and without a traceback."""
        return self.how == "ended" and self.status in (0, 1, 2) and "Traceback" not in self.text


@dataclass(frozen=True)
class Kill:
    """When a call is killed with signal 9.

    Attributes:
        event: Before which change of a file, counted from 1; 0 for none.
        seconds: After how long; 0 for never.
    """

    event: int = 0
    seconds: float = 0.0


def forked(
    call: Callable[[], int],
    folder: Path,
    kill: Kill | None = None,
    environment: dict[str, str] | None = None,
    stdin: bytes = b"",
    seconds: float = SECONDS,
) -> Ended:
    """Run a call in a fork of this process.

    Args:
        call: What to run; returns an exit status.
        folder: Where it may write what it says.
        kill: When to kill it.
        environment: Variables to set for it.
        stdin: What it can read there.
        seconds: Of processor time that it may take, and after which it may no longer wait for something.
    """
    said, counted, given = (folder / f".{name}" for name in ("said", "events", "given"))
    for file, content in ((given, stdin), (counted, b""), (said, b"")):
        file.write_bytes(content)
    started = time.perf_counter()
    child = os.fork()
    if not child:
        status = 99
        try:
            status = _in_child(call, said, counted, given, kill or Kill(), environment or {})
        finally:
            os._exit(status)
    limit = kill.seconds if kill and kill.seconds else seconds
    waiting = ended = code = 0
    while not ended:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        waiting = waiting + 1 if _waits(child) else 0
        late = time.perf_counter() - started > limit
        if late and (limit != seconds or waiting > WAITING or _processor_seconds(child) > seconds):
            os.kill(child, signal.SIGKILL)
            ended, code = os.waitpid(child, 0)
        time.sleep(0.002)
    taken = time.perf_counter() - started
    text = said.read_text(encoding="utf-8", errors="backslashreplace")
    events = len(counted.read_bytes())
    status = os.waitstatus_to_exitcode(code)
    how = "ended"
    if status == -signal.SIGKILL:
        how = "killed" if kill and (kill.event or taken >= limit) else "hangs"
    elif status < 0 or status == 99:
        how = "died"
    elif "MemoryError" in text or "can't allocate memory" in text:
        how = "memory"
    return Ended(how, status, text, taken, events)


def _waits(process: int) -> bool:
    """Whether it waits for something else than the processor, so that a busy machine hangs nothing."""
    return _stat(process)[0] != "R"


def _processor_seconds(process: int) -> float:
    user, system = _stat(process)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """The fields of `/proc/PID/stat` behind the name, which may hold anything."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()


def _in_child(
    call: Callable[[], int], said: Path, counted: Path, given: Path, kill: Kill, environment: dict[str, str]
) -> int:
    os.environ.update(environment)
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(given, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    import torch

    # Threads that load a base would otherwise race for the thread pool that a fork leaves to be made anew.
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    events = os.open(counted, os.O_WRONLY | os.O_APPEND)
    number = 0

    def hook(name: str, told: tuple[Any, ...]) -> None:
        nonlocal number
        writes = name == "open" and isinstance(told[1], str) and any(letter in told[1] for letter in "wax+")
        opens = name == "open" and told[1] is None and told[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or opens or name in CHANGES or name in SENT:
            number += 1
            os.write(events, b".")
            if number == kill.event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        return call()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def shared(
    items: Sequence[Any], call: Callable[[Any], Any], otherwise: Callable[[Any, str], Any], workers: int = WORKERS
) -> list[Any]:
    """What a call gives for each item, in their order, by several processes.

    Args:
        items: The items.
        call: Called with each of them.
        otherwise: Called with the item and a traceback where that raises.
        workers: How many processes.
    """
    started = []
    for worker in range(min(workers, len(items))):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                with os.fdopen(writing, "wb") as out:
                    for item in items[worker::workers]:
                        try:
                            given = call(item)
                        except BaseException:
                            given = otherwise(item, traceback.format_exc())
                        pickle.dump(given, out)
                        out.flush()
            finally:
                os._exit(0)
        os.close(writing)
        started.append((child, os.fdopen(reading, "rb")))
    found = [pickle.load(started[number % workers][1]) for number in range(len(items))]
    for child, reading_end in started:
        os.waitpid(child, 0)
        reading_end.close()
    return found


def command(*arguments: object) -> Callable[[], int]:
    """A call of the `unierase` command, with an erasure in so few steps that it takes a second or two."""

    def call() -> int:
        from peft_unierase.cli.app import app

        _make_hasty()
        app([str(argument) for argument in arguments])
        return 0

    return call


def _make_hasty() -> None:
    """Let the default recipe take as few steps as there may be; the erasure is a bad one, and made like all others."""
    import importlib

    from peft_unierase.engine import RECIPES, DistillSettings

    wanted = {"samples": 0, "steps": 1, "steps_per_fact": 0.0}
    there = {field.name for field in dataclasses.fields(DistillSettings)}
    made = [(name, type(value), value) for name, value in wanted.items() if name in there]
    RECIPES["distill"] = dataclasses.make_dataclass("Hasty", made, bases=(DistillSettings,), frozen=True)
    importlib.import_module("peft_unierase.engine.run_facts").neighbour_rounds = lambda facts: 1


def import_all() -> None:
    """Import what commands need, so that forks need not."""
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401

    import peft_unierase
    import peft_unierase.checking
    import peft_unierase.cli.check
    import peft_unierase.cli.erase
    import peft_unierase.cli.finish
    import peft_unierase.engine
    import peft_unierase.hub.push
    import peft_unierase.hub.stack  # noqa: F401
    from peft_unierase.cli.base import prepare_libraries

    torch.set_num_threads(1)
    prepare_libraries()


@contextmanager
def workshop() -> Iterator[Path]:
    """A folder for everything, with a home for records in it, that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="unierase-hardening-") as name:
        folder = Path(name)
        os.environ["UNIERASE_HOME"] = str(folder / "home")
        os.environ["HF_HOME"] = str(folder / "hub")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        yield folder


def tiny_base(folder: Path) -> Path:
    """A llama of two layers and random weights, with a tokenizer."""
    from helpers import save_tiny_model
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"intermediate_size": 32, "hidden_size": 64, "num_hidden_layers": 2}
    return save_tiny_model(folder, LlamaForCausalLM, LlamaConfig, **settings)


def clean_erasure(base: Path, folder: Path, seed: int = 1, token: int = 400) -> Path:
    """An erasure of random weights on that base, with everything that `unierase erase` writes."""
    import torch
    from made_apart import base_of, config_of
    from peft import get_peft_model
    from transformers import AutoTokenizer

    from peft_unierase.adapter.fingerprint import base_fingerprint
    from peft_unierase.hub.card import erasure_card
    from peft_unierase.hub.folder import save_erasure

    torch.manual_seed(seed)
    model = base_of(base)
    config = config_of(model, token_id=token, token=f"[UNL-{token}]", spare_tokens=[[token + 3, f"[UNL-{token + 3}]"]])
    config.base_fingerprint = base_fingerprint(model, list(config.target_modules or ()))
    config.base_dtype = "float32"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), token)])
    tokenizer.add_special_tokens({"additional_special_tokens": [config.token]})
    told: dict[str, Any] = {"version": "0", "recipe": "none", "counts": {"forget": 1}}
    told |= {"token": {"id": token, "text": config.token}, "created": "2026-01-31T12:00:00Z"}
    card = erasure_card(base_model="org/base", name=folder.name, record=told)
    facts = {"algorithm": "hmac-sha256", "digests": ["0" * 64]}
    save_erasure(get_peft_model(model, config), tokenizer, folder, told, str(card), facts=lambda adapter: facts)
    return folder


def state_of(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: bytes of files, `None` for folders."""
    from helpers import listing

    return listing(folder) if folder.is_dir() else {}


def draw(seed: int, *names: object) -> random.Random:
    """A generator of its own for each thing that is drawn."""
    return random.Random(f"{seed} {' '.join(map(str, names))}")


def last_line(text: str) -> str:
    """The last line of what a call said, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def write_facts(file: Path, facts: Sequence[dict[str, str]]) -> Path:
    """A file of facts."""
    file.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    return file
