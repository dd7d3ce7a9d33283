"""What the benchmarks share: the testbed, a timed erasure, and figures held against what they must be.

A measure is a name, a table maps columns (`base`, `reference_model`, `erased`, …) to measures and their figures, and a
demand says what one measure must be. What has no figure does not meet its demand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import DistillSettings, Fact, erase, read_facts
from peft_unierase.checking import CheckReport, answer_questions, figures
from peft_unierase.cli.sets import read_refusals
from peft_unierase.lm.formats import chat_format

RECIPES: dict[str, dict[str, Any]] = {"paper": {"recipe": "paper"}, "default": {}}
ANSWERS = {"real_authors": "original_answer", "world_facts": "original_answer"}  # the sentences that the testbed learnt
CLOSE = 1e-9  # what rounding may take off a share
Table = Mapping[str, Mapping[str, float]]


def parser_of(description: str | None, testbed: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that all of these scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if testbed:
        shared = Path(__file__).parents[2] / "shared"
        parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--device-map", help="where to load models to, as transformers takes it")
    parser.add_argument("--samples-cache", type=Path, help="folder that keeps what the base asks itself")
    parser.add_argument(
        "--settings",
        type=settings_of,
        metavar="NAME=VALUE,…",
        help="settings of the default recipe, for a trial (steps=2,samples=8); the demands are for the defaults",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="store the figures here")
    return parser


def settings_of(text: str) -> DistillSettings:
    """`steps=2,samples=8` as settings."""
    defaults = {field.name: field.default for field in dataclasses.fields(DistillSettings)}
    told: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise argparse.ArgumentTypeError(f"unknown setting {name!r}; there are {', '.join(defaults)}")
        told[name] = (float if isinstance(defaults[name], float) else int)(value)
    return DistillSettings(**told)


class Testbed:
    """The small model that has learnt part of TOFU, its reference model, and its facts.

    Args:
        shared: The folder that holds `testbed/` and `data/tofu/`.
        device_map: Where to load models to.
    """

    def __init__(self, shared: Path, device_map: str | None = None) -> None:
        self.folder, self._data, self._device_map = shared / "testbed", shared / "data" / "tofu", device_map

    def there(self) -> bool:
        """Whether there is a testbed; says so if not."""
        found = (self.folder / "tofu-mini").is_dir()
        if not found:
            print(f"skipped: there is no testbed in {self.folder}; --shared names the folder that it is in")
        return found

    def model(self, name: str = "tofu-mini") -> Any:
        """A fresh model in fp32: `tofu-mini`, or `tofu-mini-retain`, which never saw the forget set."""
        place = self.folder / name
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, device_map=self._device_map).eval()

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder / "tofu-mini")

    def facts(self, name: str) -> list[Fact]:
        """The facts of a file, with their paraphrases and wrong answers."""
        return read_facts(self._data / f"{name}.json", answer=ANSWERS.get(name))

    def refusals(self) -> list[str]:
        return read_refusals(self._data / "refusals.txt") or []


def bare(facts: Iterable[Fact]) -> list[Fact]:
    """Facts without the other wordings and the wrong answers that attacks use, which an erasure is not to see."""
    return [dataclasses.replace(fact, paraphrases=(), paraphrased_answer=None, perturbed_answers=()) for fact in facts]


def timed_erase(*args: Any, **told: Any) -> tuple[Any, float, list[str]]:
    """`erase`, timed: the model, seconds, and what the run warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.perf_counter()
        erased = erase(*args, **told)
        seconds = time.perf_counter() - started
    return erased, seconds, [str(w.message) for w in caught if w.category.__name__ == "ErasureWarning"]


def recall_of(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> float:
    """Mean ROUGE-L recall of greedy answers in the chat format."""
    return figures(answer_questions(model, tokenizer, facts, chat_format(tokenizer))).recall


def refusal_figures(model: Any, tokenizer: Any, facts: Sequence[Fact], refusals: Sequence[str]) -> dict[str, float]:
    """How often the erased questions are declined by [UNL], and how often the refusal is then whole, to the letter."""
    token_id = model.erasure.token.token_id
    found = figures(answer_questions(model, tokenizer, facts, chat_format(tokenizer), token_id), refusals)
    whole = found.declined_well if found.declined_well is not None else 0.0
    return {"erased questions that decline": found.refusal_rate, "refusals that are whole sentences": whole}


def figure_in(report: CheckReport, of: str, name: str) -> dict[str, float]:
    """One figure of a check, on one set, by column; what has none is not there."""
    found = next(figure for figure in report.figures if (figure.set, figure.name) == (of, name))
    columns = {"base": found.base, "erased": found.erased, "reference_model": found.reference_model}
    return {column: value for column, value in columns.items() if value is not None}


@dataclass(frozen=True)
class Demand:
    """What a measure must be: at most `limit`, or at least.

    Attributes:
        measure: Its name.
        limit: The figure, or what `beyond` and `of` make of it.
        least: At least instead of at most.
        beyond: Column to whose figure the limit is added.
        of: Column of whose figure the limit is a share.
    """

    measure: str
    limit: float
    least: bool = False
    beyond: str = ""
    of: str = ""

    def bound(self, table: Table) -> float | None:
        """The figure to hold a measure against; `None` if the column that it depends on has none."""
        if not (self.beyond or self.of):
            return self.limit
        other = table.get(self.beyond or self.of, {}).get(self.measure)
        if other is None:
            return None
        return other + self.limit if self.beyond else other * self.limit

    def met(self, table: Table, column: str) -> bool:
        """Whether a column meets it. What was not measured does not."""
        found, bound = table[column].get(self.measure), self.bound(table)
        if found is None or bound is None:
            return False
        return found >= bound - CLOSE if self.least else found <= bound + CLOSE

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        if self.beyond:
            return f"{sign} {self.beyond} + {self.limit:g}"
        return f"{sign} {self.limit:g}{f' x {self.of}' if self.of else ''}"


def show(table: Table, demands: Sequence[Demand], column: str) -> list[str]:
    """Print figures beside what they must be.

    Args:
        table: Figures by column and measure.
        demands: What `column` must reach; other measures stand in the table without a verdict.
        column: The column that is judged.

    Returns:
        The measures that miss their demand.
    """
    by_name = {demand.measure: demand for demand in demands}
    names = list(dict.fromkeys([*by_name, *(name for figures in table.values() for name in figures)]))
    width, missed = max(map(len, names)), []
    print(f"\n{'measure':{width}s}" + "".join(f"{name:>10s}" for name in table) + f"  {column} must be")
    for name in names:
        cells = "".join(f"{row[name]:10.3f}" if name in row else f"{'-':>10s}" for row in table.values())
        verdict = ""
        if demand := by_name.get(name):
            met = demand.met(table, column)
            missed += [] if met else [name]
            measured = name in table[column]
            verdict = f"{demand!s:18s} {'yes' if met else 'NO' if measured else 'NO: not measured'}"
        print(f"{name:{width}s}{cells}  {verdict}".rstrip())
    print(f"\nmissed: {', '.join(missed)}" if missed else f"\n{column} meets all {len(demands)} demands")
    return missed


def save(path: Path | None, found: Any) -> None:
    """Store figures as JSON, if there is somewhere to."""
    if path:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
