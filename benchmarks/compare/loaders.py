"""TOFU, MUSE, WMDP and RWKU as sets of facts, from a folder of their files or by name from the Hub.

A part of a benchmark is what the Hub calls a configuration and a split, with the columns that it is published with. In
a folder it is a file of the configuration's name (`forget10_perturbed.json`), or of the split's name in a folder of the
configuration's (`knowmem/forget_qa.json`, `wmdp-bio/test-00000-of-00001.parquet`). Rows become facts by
`peft_unierase.read_facts`; nothing here knows a model.

What is measured is never handed to a method: where a benchmark publishes one retain set for both, every other question
of it goes to the method and the rest is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft_unierase import Fact, FactError, read_facts
from peft_unierase.data import READABLE_SUFFIXES
from peft_unierase.data.files import read_table
from peft_unierase.data.layouts import knows
from peft_unierase.text import normal

MMLU = "cais/mmlu"
MOST = 400  # retained questions of a benchmark that has thousands


@dataclass(frozen=True)
class Sets:
    """What goes, what a method may look at, and what is measured and never handed to it.

    Attributes:
        forget: What goes.
        retain: The sample of what must stay that a method gets.
        held_out: What must stay and is measured, by name.
    """

    forget: list[Fact]
    retain: list[Fact]
    held_out: dict[str, list[Fact]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part of a published benchmark.

    Attributes:
        config: Its configuration on the Hub.
        split: Its split there.
        columns: Columns that its rows must have.
        also: Other names of its file in a folder, without suffix, as the authors' repository has them.
    """

    config: str
    split: str
    columns: tuple[str, ...]
    also: tuple[str, ...] = ()

    def place(self, source: str | Path) -> str:
        """The file in a folder, or the name on the Hub that `read_facts` takes.

        Raises:
            FactError: The folder has no such file; says which names were looked for.
        """
        folder = Path(source)
        if not folder.is_dir():
            return f"{source}:{self.config}"
        names = [self.config, f"{self.config}/{self.split}", *self.also]
        for name in names:
            for pattern in (f"{name}.*", f"{name}-*"):
                for found in sorted(folder.glob(pattern)):
                    if found.suffix.lower() in READABLE_SUFFIXES:
                        return str(found)
        raise FactError(
            f"{folder} has no file of {self.config} ({self.split}); it may be called {', '.join(names)}, with one of "
            f"the suffixes {', '.join(READABLE_SUFFIXES)}"
        )

    def facts(self, source: str | Path, role: str = "forget") -> list[Fact]:
        """The facts of this part.

        Args:
            source: A folder, or a name on the Hub.
            role: What messages call the set.

        Raises:
            FactError: There is no such file or data set, or one of the columns is missing.
        """
        place = self.place(source)
        label = f"{role} set {place}"
        there = read_table(place, self.split, label, lambda names: knows(names, None, None)).columns()
        if missing := [name for name in self.columns if name not in there]:
            raise FactError(
                f"{label} has no column {', '.join(map(repr, missing))}; it is published with "
                f"{', '.join(self.columns)}, and here there are {', '.join(there)}"
            )
        return read_facts(place, split=self.split, role=role)


PERTURBED = ("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer")
SHORT = ("question", "answer", "perturbed_answer")
KNOWLEDGE = ("question", "answer")
CHOICES = ("question", "choices", "answer")
PROBES = ("query", "answer", "subject", "level", "type")


def tofu(source: str | Path = "locuslab/TOFU", share: str = "10") -> Sets:
    """TOFU (arXiv 2401.06121): `forgetNN_perturbed`, with paraphrases and wrong answers, goes.

    Methods get `retain(100 - NN)` without the questions of `retain_perturbed`, which are measured with
    `real_authors_perturbed` and `world_facts_perturbed`.

    Args:
        source: A folder with the published files, or the data set's name.
        share: `01`, `05` or `10`: percent of the authors that go.
    """
    held_out = {
        "retain": Part("retain_perturbed", "train", PERTURBED).facts(source, "retain"),
        "real authors": Part("real_authors_perturbed", "train", SHORT).facts(source, "retain"),
        "world facts": Part("world_facts_perturbed", "train", SHORT).facts(source, "retain"),
    }
    measured = {normal(fact.question) for fact in held_out["retain"]}
    retain = Part(f"retain{100 - int(share)}", "train", KNOWLEDGE).facts(source, "retain")
    return Sets(
        Part(f"forget{share}_perturbed", "train", PERTURBED).facts(source),
        [fact for fact in retain if normal(fact.question) not in measured],
        held_out,
    )


def muse(source: str | Path = "muse-bench/MUSE-News", part: str = "knowmem") -> Sets:
    """MUSE (arXiv 2407.06460), MUSE-News or MUSE-Books: `knowmem` (questions) or `verbmem` (texts to continue) goes.

    Args:
        source: A folder with the published files, or the data set's name.
        part: `knowmem` or `verbmem`.
    """
    retain = Part("knowmem", "retain_qa", KNOWLEDGE, ("knowmem/retain2_qa",)).facts(source, "retain")
    forget = {
        "knowmem": Part("knowmem", "forget_qa", KNOWLEDGE),
        "verbmem": Part("verbmem", "forget", ("prompt", "gt")),
    }
    if part not in forget:
        raise FactError(f"MUSE has no part {part!r}; choose {' or '.join(forget)}")
    return Sets(forget[part].facts(source), retain[::2], {"retain": retain[1::2]})


def wmdp(source: str | Path = "cais/wmdp", subset: str = "bio", mmlu: str | Path = MMLU) -> Sets:
    """WMDP (arXiv 2403.03218): the right choice of each question of a subset goes, the other choices are wrong answers.

    What must stay is MMLU, as in the paper.

    Args:
        source: A folder with the published files, or the data set's name.
        subset: `bio`, `cyber` or `chem`.
        mmlu: The same of MMLU.
    """
    retain = Part("all", "test", CHOICES, ("mmlu",)).facts(mmlu, "retain")
    stride = max(1, len(retain) // (2 * MOST))
    return Sets(
        Part(f"wmdp-{subset}", "test", CHOICES, (f"{subset}_questions",)).facts(source),
        retain[:: 2 * stride][:MOST],
        {"MMLU": retain[stride :: 2 * stride][:MOST]},
    )


def rwku(
    source: str | Path = "jinzhuoran/RWKU", subjects: Sequence[str] = ("Stephen King",), levels: Sequence[int] = (1, 2)
) -> Sets:
    """RWKU (arXiv 2406.10890): all probes about some people go: fill-in (level 1), questions (2), adversarial (3).

    Probes about their neighbours are held out; those about other people's neighbours are the method's retain set.

    Args:
        source: A folder with the published files, or the data set's name.
        subjects: Who goes.
        levels: Which probes go.

    Raises:
        FactError: There are no probes about a subject; says about whom there are some.
    """
    forget = [
        fact
        for level in levels
        for fact in Part(f"forget_level{level}", "test", PROBES).facts(source)
        if fact.subject in subjects or not subjects
    ]
    about = {fact.subject for fact in forget}
    if missing := [subject for subject in subjects if subject not in about]:
        everyone = {fact.subject for fact in Part(f"forget_level{levels[0]}", "test", PROBES).facts(source)}
        raise FactError(
            f"RWKU has no probe about {missing[0]!r}; there are {', '.join(sorted(map(str, everyone))[:20])}"
        )
    near = [fact for level in (1, 2) for fact in Part(f"neighbor_level{level}", "test", PROBES).facts(source, "retain")]
    gone = {normal(fact.question) for fact in forget}
    near = [fact for fact in near if normal(fact.question) not in gone]
    own = [fact for fact in near if fact.subject in about]
    others = [fact for fact in near if fact.subject not in about]
    if not others:  # a folder of one person
        own, others = own[1::2], own[::2]
    return Sets(forget, others, {"neighbours": own})


LOADERS: dict[str, Callable[..., Sets]] = {"tofu": tofu, "muse": muse, "wmdp": wmdp, "rwku": rwku}
