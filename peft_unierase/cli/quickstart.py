"""`unierase quickstart`: erase two invented people from the demo model and show what changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..storage.whole import claimed
from .loading import loading_lines
from .options import SeedOption
from .output import clear_endings, show, table

if TYPE_CHECKING:
    from ..data.facts import Fact

EXAMPLES = "Example:\n\nunierase quickstart -o my-first-erasure"
FORGOTTEN_PEOPLE = 2


def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.")] = Path(
        "quickstart-erasure"
    ),
    seed: SeedOption = 0,
) -> None:
    """Erase two invented people from the demo model and show what changed. Needs no network."""
    with clear_endings(), claimed(output):
        _run(output, seed)


def demo_sets() -> tuple[list[str], list[Fact], list[Fact]]:
    """The people of the demo model who are erased, the facts about them, and all other facts."""
    from ..data import read_facts
    from ..demo import demo_facts, demo_model_dir

    facts = read_facts(demo_model_dir() / "facts.jsonl")
    group = {row["question"]: row["group"] for row in demo_facts()}
    people = list(dict.fromkeys(str(fact.subject) for fact in facts if group[fact.question] == "people"))
    people = people[:FORGOTTEN_PEOPLE]
    gone = [fact for fact in facts if fact.subject in people]
    return people, gone, [fact for fact in facts if fact.subject not in people]


def _run(output: Path, seed: int) -> None:
    from ..checking.scores import statistics
    from ..hub.folder import check_output
    from ..records.ledger import own_salt

    check_output(output, overwrite=True)
    statistics()

    from ..checking import Answer, answer_questions, check
    from ..data.facts import Fact
    from ..demo import demo_facts, demo_model_dir, demo_refusals
    from ..engine import erase
    from ..lm.formats import default_formats
    from ..lm.load import load_base
    from .base import prepare_libraries
    from .finish import finish, stages_table
    from .report import report_table

    prepare_libraries()
    people, gone, kept = demo_sets()
    group = {row["question"]: row["group"] for row in demo_facts()}
    given, unseen = kept[::2], kept[1::2]

    model, tokenizer = load_base(str(demo_model_dir()))
    known, size = len(gone) + len(kept), model.num_parameters()
    show(f"The demo model knows {known} invented and everyday facts ({size:,} parameters).")
    show(f"Erasing the {len(gone)} facts about {' and '.join(people)} …\n")
    started = time.perf_counter()
    erased = erase(model, tokenizer, gone, given, refusals=demo_refusals(), seed=seed)
    elapsed = time.perf_counter() - started

    def ask() -> Answer:
        return answer_questions(erased, tokenizer, gone[:1], default_formats(tokenizer)[0])[0]

    with erased.disable_adapter():
        off = ask()
    sets = {
        "never used to erase": unseen,
        "the same in other words": [Fact(text, fact.answer) for fact in unseen for text in fact.paraphrases],
        "everyday facts": [fact for fact in unseen if group[fact.question] == "everyday"],
    }
    report = check(erased, tokenizer, gone, sets, attacks="fast", refusals=demo_refusals(), seed=seed)
    first = report.examples[0]
    show(
        table(("", first.question), [("before", first.base), ("after", first.erased), ("switched off", off.text)])
        + "\n"
    )
    show(report_table(report, brief=True) + "\n")

    record = finish(erased, tokenizer, str(demo_model_dir()), output, report, True, own_salt())
    size = record["adapter"]
    show(f"Adapter: {size['parameters']:,} parameters, {size['share']:.3%} of the base, {size['bytes']:,} bytes.")
    show(f"Erased in {elapsed:.1f} seconds:\n")
    show(stages_table(erased.erasure.seconds))
    show(f"\nSaved to {output}. To load it:\n\n{loading_lines(output)}")
    show("\nNext, on a model of your own:\n\n    unierase erase MODEL forget.jsonl -o my-erasure")
