"""What is erased from which model, what a method gets for it, and what is asked afterwards.

Every number that decides how long a comparison takes stands here: budgets, attacks, and how many questions are asked.
docs/comparison.md adds them up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import Testbed
from public_facts import DATA, fact_of, read_rows
from smollm2 import NAME as SMOLLM2
from smollm2 import default_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import Fact
from peft_unierase.data.facts import fact_row

from .budget import Budget
from .loaders import Sets

BATCH, STEPS, SINGLE = "batch", "steps", "single"
AN_AUTHOR = 20  # facts of an author of TOFU
MANY = (
    *("greedy", "paraphrase", "plain", "system", "cloze", "choice", "erased-before"),
    *("ban", "prefill-5", "ban-prefill", "few-shot"),
    *("direction", "directions", "scale-0.5", "largest-out", "merged-4-bit", "probe", "relearn-tenth"),
)
FEW = (
    *("greedy", "paraphrase", "plain", "choice", "ban", "prefill-5", "ban-prefill", "few-shot"),
    *("direction", "scale-0.5", "relearn-tenth"),
)
ONE_FACT = ("greedy", "paraphrase", "plain", "ban", "prefill-5", "few-shot")
QUICK = ("greedy", "paraphrase", "plain", "choice", "ban", "prefill-5", "relearn-tenth")
QUICK_FACTS, QUICK_PARTS, QUICK_ASKED = 10, 2, 10


class NotThere(Exception):  # noqa: N818 (nothing went wrong)
    """A task's model or facts are not on this machine; the text says how to get them."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As `--tasks` takes it; its results are in a file of this name.
        title: What tables call it.
        base: The base model's name; pictures join tasks of the same base.
        model: Gives a fresh base in fp32.
        tokenizer: Gives its tokenizer.
        parts: What goes. A batch has one part; steps follow each other on one model; single ones begin anew.
        retain: The sample of what must stay that methods get, `bare` and never measured.
        held_out: What must stay and is measured, by name.
        budget: What a method may use for each part, its search included: `trials` runs of `texts`. A method that tries
            fewer settings has the more texts for each.
        attacks: By the names that `unierase check` knows.
        kind: `batch`, `steps` or `single`.
        near: For each part, or for the batch, what stays nearest to it and the reference model never saw, by name. It
            is asked for its recall and is no part of model utility, which the reference model could not have.
        stride: Ask every Nth question of the forget set.
        reference: Gives the reference model, if there is one.
        refusals: Sentences that decline, beside the built-in ones.
        best: How many of the best methods of another task run by default, beside those most used and ours; `None` for
            all methods.
        settings_from: A task whose chosen settings are taken over instead of a search, if they are stored.
    """

    name: str
    title: str
    base: str
    model: Callable[[], Any]
    tokenizer: Callable[[], Any]
    parts: Sequence[Sequence[Fact]]
    retain: Sequence[Fact]
    held_out: Mapping[str, Sequence[Fact]]
    budget: Budget
    attacks: Sequence[str] = MANY
    kind: str = BATCH
    near: Sequence[Mapping[str, Sequence[Fact]]] = ()
    stride: int = 1
    reference: Callable[[], Any] | None = None
    refusals: Sequence[str] = field(default=(), repr=False)
    best: int | None = None
    settings_from: str | None = None

    @property
    def facts(self) -> int:
        """How many facts go in one erasure after the other, all together."""
        return sum(map(len, self.parts)) if self.kind != SINGLE else max(map(len, self.parts))

    @property
    def asked(self) -> list[Fact]:
        """The facts of all parts that are asked."""
        return [fact for part in self.parts for fact in part][:: self.stride]

    def quick(self) -> Task:
        """The same with few facts, questions and attacks: a trial that says little and takes minutes."""
        each = QUICK_FACTS if self.kind == BATCH else QUICK_FACTS // QUICK_PARTS
        parts = [part[:each] for part in self.parts[:QUICK_PARTS]]
        return replace(
            self,
            name=f"{self.name}-quick",
            title=f"{self.title}, quick",
            parts=parts,
            held_out=_first(self.held_out, QUICK_ASKED),
            near=[_first(sets, QUICK_ASKED) for sets in self.near[:QUICK_PARTS]],
            budget=Budget(texts=20 * each, trials=3, rank=self.budget.rank),
            attacks=[name for name in QUICK if name in self.attacks],
            stride=1,
            settings_from=None,
        )


def _first(sets: Mapping[str, Sequence[Fact]], count: int) -> dict[str, Sequence[Fact]]:
    return {name: facts[:count] for name, facts in sets.items()}


def _thinned(facts: Sequence[Fact], count: int) -> list[Fact]:
    """About so many facts, evenly spread."""
    return list(facts[:: max(1, len(facts) // count)])


def tofu(shared: Path) -> Iterable[Task]:
    """The four tasks of the testbed.

    Raises:
        NotThere: There is no testbed.
    """
    testbed = Testbed(shared)
    if not (testbed.folder / "tofu-mini").is_dir():
        raise NotThere(f"there is no testbed in {testbed.folder}; --shared names the folder that it is in")
    forget = testbed.facts("forget")
    held_out = {
        "retain": _thinned(testbed.facts("retain"), 30),
        "real authors": _thinned(testbed.facts("real_authors"), 20),
        "world facts": _thinned(testbed.facts("world_facts"), 20),
    }
    common = Task(
        name="tofu-40",
        title="tofu-mini, 40 facts",
        base="tofu-mini",
        model=testbed.model,
        tokenizer=testbed.tokenizer,
        parts=[forget[:40]],
        retain=testbed.facts("retain_more"),
        held_out=held_out,
        near=[{"other authors": _thinned(forget[40:], 24)}],
        budget=Budget(texts=1000, trials=3),
        reference=lambda: testbed.model("tofu-mini-retain"),
        refusals=testbed.refusals(),
    )
    yield common
    yield replace(
        common,
        name="tofu-400",
        title="tofu-mini, 400 facts",
        parts=[forget],
        near=(),
        budget=Budget(texts=2000, trials=3),
        attacks=FEW,
        stride=10,
        best=5,
        settings_from=common.name,
    )
    yield replace(
        common,
        name="tofu-steps",
        title="tofu-mini, ten steps of 40 facts",
        parts=[forget[start : start + 40] for start in range(0, 400, 40)],
        near=(),
        budget=Budget(texts=200, trials=3),
        attacks=FEW,
        kind=STEPS,
        stride=10,
        best=0,
        settings_from=common.name,
    )
    numbers = [AN_AUTHOR * author + (7 * author + 1) % AN_AUTHOR for author in (0, 7, 14)]  # as benchmarks/precise.py
    own = [range(number - number % AN_AUTHOR, number - number % AN_AUTHOR + AN_AUTHOR) for number in numbers]
    yield replace(
        common,
        name="tofu-single",
        title="tofu-mini, single facts",
        parts=[[forget[number]] for number in numbers],
        near=[
            {"the author's others": [forget[other] for other in others if other != number]}
            for number, others in zip(numbers, own, strict=True)
        ],
        budget=Budget(texts=100, trials=3),
        attacks=ONE_FACT,
        kind=SINGLE,
        best=0,
        settings_from=common.name,
    )


def authors() -> Task:
    """Ten authors of the public facts, the task of `benchmarks/real_model.py`.

    That one hands no retain facts out. Here every other held-out fact goes to the methods and is not measured.

    Raises:
        NotThere: The model was not fetched.
    """
    folder = default_folder()
    if not (folder / "config.json").is_file():
        raise NotThere(f"there is no {SMOLLM2} in {folder}; `make real-model` fetches it")
    rows = read_rows(DATA / "public_facts.jsonl")
    gone = [row for row in rows if row["kind"] == "author" and "novel" in row["question"]][:10]
    others = [row for row in rows if row not in gone]
    by_kind = {
        "other authors": [fact_of(row) for row in others if row["kind"] == "author"],
        "other facts": [fact_of(row) for row in others if row["kind"] != "author"],
    }
    return Task(
        name="smollm2-authors",
        title=f"{SMOLLM2}, ten authors",
        base=SMOLLM2,
        model=lambda: loaded(folder),
        tokenizer=lambda: AutoTokenizer.from_pretrained(folder),
        parts=[[fact_of(row) for row in gone]],
        retain=[fact for facts in by_kind.values() for fact in facts[::2]],
        held_out={name: _thinned(facts[1::2], 25) for name, facts in by_kind.items()},
        budget=Budget(texts=300, trials=2),
        attacks=FEW,
        best=5,
    )


def own(
    model: str, sets: Sets, title: str, reference: str | None = None, texts: int | None = None, facts: int | None = None
) -> Task:
    """A user's own model and facts.

    Args:
        model: A folder or a name on the Hub.
        sets: What goes, what methods get, what is measured.
        title: What tables call it; the name has a digest of model and facts too.
        reference: The same of a model that was trained without the forget set.
        texts: The budget of a run; by default 40 a fact.
        facts: Only the first so many of the forget set.
    """
    forget = sets.forget[:facts]
    known = [model, *(json.dumps([fact_row(fact) for fact in each]) for each in (forget, sets.retain))]
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]
    return Task(
        name=f"{title}-{digest}",
        title=f"{Path(model).name}, {title}",
        base=Path(model).name,
        model=lambda: loaded(model),
        tokenizer=lambda: AutoTokenizer.from_pretrained(model),
        parts=[forget],
        retain=sets.retain,
        held_out={name: _thinned(each, 40) for name, each in sets.held_out.items() if each},
        budget=Budget(texts=texts or 40 * len(forget)),
        stride=max(1, len(forget) // 40),
        reference=None if reference is None else lambda: loaded(reference),
    )


def loaded(name: str | Path) -> Any:
    """A model in fp32."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()


NAMES = ("tofu-40", "tofu-400", "tofu-steps", "tofu-single", "smollm2-authors")


def tasks(names: Sequence[str], shared: Path, say: Callable[[str], object]) -> list[Task]:
    """Tasks by name, in the order of `NAMES`; says which are left out because something of theirs is not here."""
    found: list[Task] = []
    for group, make in (("tofu", lambda: tofu(shared)), ("smollm2", lambda: [authors()])):
        wanted = [name for name in names if name.startswith(group)]
        try:
            found += [task for task in make() if task.name in wanted] if wanted else []
        except NotThere as reason:
            say(f"skipped {', '.join(wanted)}: {reason}")
    return found
