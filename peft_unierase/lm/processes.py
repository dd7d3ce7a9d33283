"""Processes that make one run together, as `accelerate launch` or `torchrun` starts them.

Each holds the whole base and runs the whole program with the same seeds. What costs time is a list of pieces of work.
A process does some of them, as one process alone would do them, and all get all results. So what comes out does not
depend on how many processes there are. The first of them alone writes files and shows progress.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import InputError, ProcessError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A process that was killed is noticed at once, by its connections and by the launcher. One that works is waited for.
PATIENCE = timedelta(days=7)
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
SPLIT = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


@dataclass(frozen=True)
class Processes:
    """Which process of how many this one is; by default the only one.

    Attributes:
        number: From 0 on. That of the main process is 0.
        count: How many there are.
        device: Where this one is to have its base.
    """

    number: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.number == 0

    def each(
        self, items: Iterable[Item], work: Callable[[Item], Result], costs: Sequence[float] | None = None
    ) -> list[Result]:
        """What `work` gives for each item, in their order; every process does its share and gets all results.

        All processes must come here with the same items. An error in one of them is raised in all.

        Args:
            items: What is to be done.
            work: Does it, without a call to another process. What it gives must be picklable.
            costs: How long each takes, in any unit; by default one as long as another.
        """
        if self.count == 1:
            return [work(item) for item in items]

        def share() -> dict[int, Result]:
            todo = list(items)
            owners = shared(costs or [1.0] * len(todo), self.count)
            return {n: work(todo[n]) for n, owner in enumerate(owners) if owner == self.number}

        own = _tried(share)
        parts = self._exchanged(own)
        parts[self.number] = own  # whose error has its traceback
        found: dict[int, Result] = {}
        for part in parts:
            found.update(_result(part))
        return [found[number] for number in sorted(found)]

    def gathered(self, own: Result) -> list[Result]:
        """What every process has of its own, in their order."""
        return self._exchanged(own) if self.count > 1 else [own]

    def from_main(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, which alone does it; an error of it is raised in all."""
        if self.count == 1:
            return work()
        found = self._exchanged(_tried(work) if self.main else None, every=False)[0]
        result: Result = _result(found)
        return result

    def device_map(self, wanted: str | None) -> str | None:
        """Where a base is loaded to; by default this process's device, if there are several processes.

        Raises:
            ValueError: All devices are wanted, which every process would take.
        """
        if self.count == 1:
            return wanted
        if wanted in SPREADING:
            raise InputError(
                f"device_map {wanted!r} spreads a base over all devices, and {self.count} processes would each do so; "
                "leave it out, so that each has a device of its own, or start one process"
            )
        return wanted or (None if self.device == "cpu" else self.device)

    def steps(self, advance: Callable[[int], object]) -> Callable[[int], object]:
        """A listener for steps of shared work, of which a process sees its own only."""
        return advance if self.count == 1 else lambda done: advance(done * self.count)

    def _exchanged(self, own: Any, every: bool = True) -> list[Any]:
        """What all processes gave, in their order; or, not every one, what the main process gave."""
        import torch

        told = io.BytesIO()
        torch.save(own, told)
        found: list[Any] = [None] * self.count if every else [told.getvalue()]
        with self._connected():
            if every:
                torch.distributed.all_gather_object(found, told.getvalue())
            else:
                torch.distributed.broadcast_object_list(found, src=0)

        def here(storage: Any, location: str) -> Any:
            """Put what another process has on its accelerator on that of this one."""
            return storage if location == "cpu" else storage.to(device=self.device)

        return [torch.load(io.BytesIO(part), map_location=here, weights_only=False) for part in found]

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn the error of a connection that was closed into one that says so."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessError(
                f"another of the {self.count} processes of this run was killed or has failed (what it had to say "
                "stands above); start the run again"
            ) from error


ALONE = Processes()


def launched() -> Processes:
    """This process among those of the same launch; the first call connects them.

    Raises:
        ValueError: The launcher is to split the base itself over processes.
    """
    if told()[1] == 1:
        return ALONE
    for name, library in SPLIT.items():
        if os.environ.get(name, "").lower() == "true":
            raise InputError(
                f"the launcher is set to {library}, which splits a base over processes, and every process needs the "
                "whole one; launch without it. A base that no device holds can be quantised, or be spread with "
                "`device_map` in one process"
            )
    import torch
    from accelerate import PartialState

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes != told()[1]:
        raise InputError(
            f"the launcher started {told()[1]} processes, and accelerate connects {state.num_processes}; start one "
            "process, or launch them on the CPU (ACCELERATE_USE_CPU=true)"
        )
    return Processes(state.process_index, state.num_processes, str(state.device))


def told() -> tuple[int, int]:
    """Number of this process and their count, as the launcher says; nothing is loaded or connected."""
    number, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(number), int(count)) if number.isdigit() and count.isdigit() and int(count) > 1 else (0, 1)


def shared(costs: Sequence[float], count: int) -> list[int]:
    """Which of so many processes does which item: the longest first, each by the one that has least to do."""
    owners, loads = [0] * len(costs), [0.0] * count
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def _tried(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What work gives, or the error that it ended with, so that nobody waits for a process that has failed."""
    try:
        return work(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever a library's error lacks for it
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _result(tried: tuple[Any, Exception | None]) -> Any:
    result, error = tried
    if error is not None:
        raise error
    return result
