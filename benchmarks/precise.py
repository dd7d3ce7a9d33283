"""Erase single facts of TOFU, or whole authors of whom half is given, from a 13-million-parameter testbed, and measure.

    python benchmarks/precise.py [--scope question] [--facts 20] [--stride 8] [--json out.json]

Scope `question` (or `none`): one fact of each of the first `--facts` authors, each erased alone from a fresh base. It
must be gone (ROUGE-L recall of the greedy answer at most 0.15, of a paraphrase that the base knows 0.25 on average)
while its author's other nineteen stay (0.98 of what the base gives, on average). Scope `subject`: every other fact of
an author is given, the ten that are not must go, other authors must stay (0.95). The erasure gets `retain_more.json`
and what the model asks itself, never the author's other facts.

Prints a line a run and a summary, and exits with 1 if something is missed. The testbed is not part of the package; if
it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from common import Demand, Testbed, bare, parser_of, save, show, timed_erase
from tqdm import tqdm

from peft_unierase import Fact
from peft_unierase.checking import Figures, answer_questions, figures
from peft_unierase.lm.formats import chat_format

AN_AUTHOR = 20
GONE, REWORDED, SPARED = 0.15, 0.25, 0.98
OTHERS = 0.95  # share of the base that other authors must keep, scope `subject`
PARAPHRASES = "paraphrases, where the base knows them"
KNOWN = 0.5  # a paraphrase that the base answers with less recall is not one that it knows


class Runs:
    """Erases from fresh bases and asks them.

    Args:
        options: The command's.
        testbed: The model and its facts.
        cache: Folder of what the base asks itself.
    """

    def __init__(self, options: argparse.Namespace, testbed: Testbed, cache: Path) -> None:
        self.options, self.testbed, self.cache = options, testbed, cache
        facts = testbed.facts("forget")
        self.forget = bare(facts)
        self.reworded = [dataclasses.replace(fact, question=fact.paraphrases[0]) for fact in facts]
        self.retain = bare(testbed.facts("retain_more"))
        self.kept = testbed.facts("retain")[:: options.stride]
        self.refusals = testbed.refusals()

    def run(self, forget: list[Fact], sets: dict[str, list[Fact]]) -> dict[str, Any]:
        """Erase facts and ask sets of questions before and after."""
        model, tokenizer = self.testbed.model(), self.testbed.tokenizer()

        def ask(asked: Any, token_id: int | None = None) -> dict[str, Figures]:
            form = chat_format(tokenizer)
            answers = {name: answer_questions(asked, tokenizer, facts, form, token_id) for name, facts in sets.items()}
            return {name: figures(found, self.refusals) for name, found in answers.items()}

        base = ask(model)
        erased, seconds, said = timed_erase(
            model,
            tokenizer,
            forget,
            self.retain,
            scope=None if self.options.scope == "none" else self.options.scope,
            refusals=self.refusals,
            samples_cache=self.cache,
            settings=self.options.settings,
            seed=self.options.seed,
            progress=False,
        )
        now = ask(erased, erased.erasure.token.token_id)
        return {
            "sets": {
                name: {"base": base[name].recall, "now": now[name].recall, "refusal rate": now[name].refusal_rate}
                for name in sets
            },
            "seconds": seconds,
            "stages": erased.erasure.seconds,
            "scope": erased.erasure.record()["scope"],
            "warnings": said,
        }

    def one_fact(self, author: int) -> dict[str, Any]:
        """One fact of an author, another one for each."""
        own = range(author * AN_AUTHOR, (author + 1) * AN_AUTHOR)
        number = own[(7 * author + 1) % AN_AUTHOR]
        sets = {
            "fact": [self.forget[number]],
            "paraphrase": [self.reworded[number]],
            "author's others": [self.forget[n] for n in own if n != number],
            "retain": self.kept,
        }
        return {"author": author, "fact": number, **self.run([self.forget[number]], sets)}

    def half_an_author(self, author: int) -> dict[str, Any]:
        """Every other fact of an author; the first of all asks who the author is."""
        own = range(author * AN_AUTHOR, (author + 1) * AN_AUTHOR)
        others = [n for n in range(len(self.forget)) if n not in own]
        sets = {
            "given": [self.forget[n] for n in own[::2]],
            "not given": [self.forget[n] for n in own[1::2]],
            "other authors": [self.forget[n] for n in others[:: self.options.stride]],
            "retain": self.kept,
        }
        return {"author": author, **self.run(sets["given"], sets)}


def line(row: dict[str, Any]) -> str:
    cells = [f"{name} {value['base']:.3f} -> {value['now']:.3f}" for name, value in row["sets"].items()]
    return f"author {row['author']:2d}   {'   '.join(cells)}   {row['seconds']:.0f} s"


def summary(rows: list[dict[str, Any]], scope: str) -> dict[str, float]:
    """Means over runs, those that are demanded among them."""

    def recall(name: str, when: str = "now") -> float:
        return mean(row["sets"][name][when] for row in rows)

    def share(name: str) -> float:
        return mean(row["sets"][name]["now"] / row["sets"][name]["base"] for row in rows)

    seconds = mean(row["seconds"] for row in rows)
    if scope == "subject":
        found = {"given": recall("given"), "not given": recall("not given")}
        return {**found, "other authors, share of base": share("other authors"), "seconds": seconds}
    answered = [row for row in rows if row["sets"]["paraphrase"]["base"] >= KNOWN]
    return {
        "fact": recall("fact"),
        "facts that are gone": mean(row["sets"]["fact"]["now"] <= GONE for row in rows),
        PARAPHRASES: mean(r["sets"]["paraphrase"]["now"] for r in answered or rows),
        "author's others, share of base": share("author's others"),
        "the worst author's": min(row["sets"]["author's others"]["now"] for row in rows),
        "retain, share of base": share("retain"),
        "seconds": seconds,
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--scope", choices=("question", "subject", "none"), default="question")
    parser.add_argument("--facts", type=int, default=20, help="how many authors, one run each")
    parser.add_argument("--first", type=int, default=0, help="the author to begin with")
    parser.add_argument("--stride", type=int, default=8, help="ask every Nth question of the larger sets")
    options = parser.parse_args()
    testbed = Testbed(options.shared, options.device_map)
    if not testbed.there():
        return 0

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        runs = Runs(options, testbed, options.samples_cache or Path(place))
        for author in tqdm(range(options.first, options.first + options.facts), unit="run"):
            rows.append(runs.half_an_author(author) if options.scope == "subject" else runs.one_fact(author))
            tqdm.write(line(rows[-1]))
            save(options.json, {"scope": options.scope, "summary": summary(rows, options.scope), "runs": rows})
    return 1 if show({"erased": summary(rows, options.scope)}, demands_for(options.scope), "erased") else 0


def demands_for(scope: str) -> list[Demand]:
    """What must be reached on average over the runs."""
    if scope == "subject":
        return [Demand("not given", GONE), Demand("other authors, share of base", OTHERS, least=True)]
    return [
        Demand("facts that are gone", 1.0, least=True),
        Demand(PARAPHRASES, REWORDED),
        Demand("author's others, share of base", SPARED, least=True),
    ]


if __name__ == "__main__":
    sys.exit(main())
