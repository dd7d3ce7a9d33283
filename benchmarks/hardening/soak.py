"""A thousand operations on one model in one process, and switching beside threads that generate.

After every operation the model with everything off is the base to the bit, and with a set of erasures on it is what
that set gave at first; after a violation the operations go on with a fresh model. Beside a thread that switches every
forward is wholly on or wholly off, those of an answer too, or it is refused with the reason.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from workshop import Tally, clean_erasure, draw, tiny_base

THREADS, FORWARDS = 3, 64
CLOSE = 1e-4  # of logits: several edits add up in an order of their own
NAMES = ("amber", "birch", "cedar")


def run(tally: Tally, folder: Path, cases: int, seed: int, only: str | None = None) -> None:
    """`cases` operations, then the threads; `only` is one of `operations` and `threads`."""
    base = tiny_base(folder / "base")
    erasures = {name: clean_erasure(base, folder / name, n, 400 + n) for n, name in enumerate(NAMES, 1)}
    if only in (None, "operations"):
        Soak(tally, folder, base, erasures, seed).run(cases)
    if only in (None, "threads"):
        _threads(tally, base, erasures)


class Soak:
    """A model, what its states must give, and operations on it."""

    def __init__(self, tally: Tally, folder: Path, base: Path, erasures: dict[str, Path], seed: int) -> None:
        import torch
        from made_apart import base_of, logits

        from peft_unierase import load

        self.tally, self.folder, self.erasures, self.generator = tally, folder, erasures, draw(seed, "soak")
        self.base, self.torch, self.logits = base, torch, logits
        self.plain = logits(base_of(base))
        self.wanted: dict[frozenset[str], Any] = {frozenset(): self.plain}
        for count in range(1, len(NAMES) + 1):
            for names in combinations(NAMES, count):
                self.wanted[frozenset(names)] = logits(load(base_of(base), [erasures[name] for name in names]))
        self._begin()

    def _begin(self) -> None:
        """A fresh model with everything on."""
        from made_apart import base_of

        from peft_unierase import load

        self.model = load(base_of(self.base), [self.erasures[name] for name in NAMES])
        self.state = set(NAMES)

    def run(self, cases: int) -> None:
        """So many operations in a random order, each followed by a look at the model."""
        operations = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]
        for number in range(cases):
            operation: Callable[[], None] = self.generator.choice(operations)
            before = len(self.tally.violations)
            where = f"operation {number}, {operation.__name__[3:]}, on {sorted(self.state)}"
            try:
                operation()
            except Exception as error:
                self.tally.hold(False, f"{where}: {type(error).__name__}: {error}")
            self.tally.counts["operations"] += 1
            self._look(where)
            if len(self.tally.violations) != before:
                self._begin()

    def _look(self, where: str) -> None:
        from peft_unierase.adapter.active import active

        self.tally.hold(set(active(self.model)) == self.state, f"{where}: {active(self.model)} instead of {self.state}")
        self._same(self.logits(self.model), self.state, where)
        with self.model.disable_adapter():
            self._same(self.logits(self.model), (), f"{where}, then off")
        self.tally.hold(set(self.model.peft_config) == set(NAMES), f"{where}: it has {list(self.model.peft_config)}")

    def _same(self, found: Any, names: Any, where: str) -> None:
        wanted = self.wanted[frozenset(names)]
        same = self.torch.equal(found, wanted) if not names else self.torch.allclose(found, wanted, atol=CLOSE)
        self.tally.hold(bool(same), f"{where}: the logits are not those of {sorted(names)}")

    def _draw(self, at_least: int = 0) -> list[str]:
        return self.generator.sample(NAMES, self.generator.randint(at_least, len(NAMES)))

    def _set(self, names: list[str]) -> None:
        from peft_unierase import set_active

        set_active(self.model, names)
        self.state = set(names)

    def do_set(self) -> None:
        self._set(self._draw())

    def do_toggle(self) -> None:
        from peft_unierase import toggle

        name = self.generator.choice(NAMES)
        toggle(self.model, name)
        self.state ^= {name}

    def do_toggle_and_back(self) -> None:
        from peft_unierase import toggle

        for on in (True, False, True):
            toggle(self.model, NAMES[0], on=on)
        self.state |= {NAMES[0]}

    def do_peft_set_adapter(self) -> None:
        name = self.generator.choice(NAMES)
        self._set([name])  # PEFT's own leaves an adapter that was disabled as it is
        self.model.set_adapter(name, inference_mode=True)

    def do_disable_with_an_error(self) -> None:
        try:
            with self.model.disable_adapter():
                raise KeyError
        except KeyError:
            pass

    def do_forward_with_an_error(self) -> None:
        try:
            self.model(input_ids=self.torch.tensor([[10**6]]))
        except Exception:
            self.tally.counts["errors in a forward"] += 1

    def do_generate(self) -> None:
        ids = self.torch.tensor([[3, 4, 5]])
        told = {"attention_mask": self.torch.ones_like(ids), "max_new_tokens": 2, "do_sample": False}
        self.model.generate(input_ids=ids, **told)

    def do_generate_by_row(self) -> None:
        self._set(self._draw())
        rows = [self.generator.choice([*NAMES, "__base__"]) for _ in range(3)]
        ids = self.torch.tensor([[3, 4, 5]] * 3)
        told = {"max_new_tokens": 3, "do_sample": False, "min_new_tokens": 3}
        mask = self.torch.ones_like(ids)
        found = self.model.generate(input_ids=ids, attention_mask=mask, adapter_names=rows, **told)
        before = set(self.state)
        for row, name in zip(found, rows, strict=True):
            self._set([] if name == "__base__" else [name])
            alone = self.model.generate(input_ids=ids[:1], attention_mask=mask[:1], **told)[0]
            self.tally.hold(
                bool(self.torch.equal(row, alone)), f"row {name} of {rows}, {sorted(before)} on: another answer"
            )
        self._set(sorted(before))

    def do_merge(self) -> None:
        self._set(self._draw(1))
        names = sorted(self.state)
        self.model.merge_adapter(adapter_names=names)
        self._same(self.logits(self.model), names, f"merged {names}")
        self.model.unmerge_adapter()

    def do_delete_and_load(self) -> None:
        name = self.generator.choice(NAMES)
        others = [each for each in NAMES if each != name]
        self._set(others)
        self.model.delete_adapter(name)
        self.model.load_adapter(str(self.erasures[name]), name)
        self._set(self._draw())

    def do_load_what_is_refused(self) -> None:
        broken = self.folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(self.erasures[NAMES[0]], broken)
        file = broken / "adapter_model.safetensors"
        kind = self.generator.choice(["cut", "gone", "other"])
        if kind == "gone":
            file.unlink()
        else:
            content = file.read_bytes()
            file.write_bytes(content[:-100] if kind == "cut" else content[:8] + b"{" * 100)
        try:
            self.model.load_adapter(str(broken), "broken")
        except Exception:
            self.tally.counts["adapters refused"] += 1
        else:
            self.tally.hold(False, f"a broken adapter was loaded ({kind})")

    def do_save(self) -> None:
        out = self.folder / "saved"
        shutil.rmtree(out, ignore_errors=True)
        self.model.save_pretrained(out, save_embedding_layers=False)
        name = self.generator.choice(NAMES)
        saved = out / name / "adapter_model.safetensors"
        from safetensors.torch import load_file

        found, wanted = load_file(saved), load_file(self.erasures[name] / "adapter_model.safetensors")
        same = found.keys() == wanted.keys() and all(self.torch.equal(found[key], wanted[key]) for key in wanted)
        self.tally.hold(same, f"saving {name}: other weights than it was loaded with")

    def do_wrong_name(self) -> None:
        from peft_unierase import set_active, toggle

        for call in (lambda: set_active(self.model, ["nowhere"]), lambda: toggle(self.model, "nowhere")):
            try:
                call()
            except ValueError:
                continue
            self.tally.hold(False, "a name that is not there was switched on")

    def do_train_and_eval(self) -> None:
        self.model.train()
        self.model.eval()


def _threads(tally: Tally, base: Path, erasures: dict[str, Path]) -> None:
    """Forwards and short answers while another thread switches: each is wholly on or wholly off."""
    import torch
    from made_apart import IDS, base_of

    from peft_unierase import load, toggle
    from peft_unierase.adapter.active import active

    model = load(base_of(base), erasures[NAMES[0]])
    told: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    # Without a cache, so that every token comes from one forward alone.
    told |= {"attention_mask": torch.ones_like(IDS), "use_cache": False}

    @torch.no_grad()
    def both(ids: Any) -> list[Any]:
        found = []
        for on in (True, False):
            toggle(model, NAMES[0], on=on)
            found.append(model(input_ids=ids).logits)
        return found

    states = both(IDS)
    tally.hold(not torch.equal(*states), "on and off give the same, so this shows nothing")
    answers: set[tuple[int, ...]] = set()
    done, lock = threading.Event(), threading.Lock()
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(FORWARDS):
            try:
                with torch.no_grad():
                    logits = model(input_ids=IDS).logits
                    ids = model.generate(input_ids=IDS, **told)
            except Exception as error:
                named = isinstance(error, (RuntimeError, ValueError)) and "switch" in f"{error}".lower()
                with lock:
                    tally.counts["forwards that were refused by name"] += named
                    if not named:
                        wrong.append(f"{type(error).__name__}: {error}")
                continue
            with lock:
                tally.counts["forwards and answers beside a thread that switches"] += 2
                answers.add(tuple(ids[0].tolist()))
                if not any(torch.equal(logits, each) for each in states):
                    wrong.append("logits that are neither on nor off")

    def switch() -> None:
        while not done.is_set():
            try:
                toggle(model, NAMES[0])
            except (RuntimeError, ValueError) as error:
                with lock:
                    tally.counts["switches that were refused by name"] += 1
                    if "switch" not in f"{error}".lower() and "generat" not in f"{error}".lower():
                        wrong.append(f"{type(error).__name__}: {error}")
            tally.counts["switches"] += 1

    switching = threading.Thread(target=switch)
    asking = [threading.Thread(target=ask) for _ in range(THREADS)]
    switching.start()
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    done.set()
    switching.join()
    for answer in answers:
        for end in range(IDS.shape[1], len(answer)):
            likeliest = {int(each[0, -1].argmax()) for each in both(torch.tensor([answer[:end]]))}
            if answer[end] not in likeliest:
                wrong.append("a token of an answer that is neither on nor off")
    for text in sorted(set(wrong)):
        tally.hold(False, f"beside a thread that switches: {text} ({wrong.count(text)} times)")
    toggle(model, NAMES[0], on=False)
    tally.hold(torch.equal(both(IDS)[1], states[1]), "after the threads, off is not the base")
    tally.hold(active(model) == [], "after the threads, off is not off")
