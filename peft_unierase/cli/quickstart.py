"""`unierase quickstart`: erase two invented people from the base model in the box and show what changed."""

from __future__ import annotations

import time
from pathlib import Path

from .output import clear_endings, show, table

FORGOTTEN_PEOPLE = 2


def run_quickstart(output: Path, seed: int) -> None:
    """Run the command. Every figure it shows is measured in this run."""
    with clear_endings():
        _run(output, seed)


def _run(output: Path, seed: int) -> None:
    from ..check import recall_scorer
    from ..hub.folder import check_output

    check_output(output, overwrite=True)
    recall_scorer()

    from ..boxed import boxed_facts, boxed_model_dir, boxed_refusals
    from ..check import figures
    from ..engine import erase
    from ..facts import Fact
    from ..prompts import default_formats
    from .base import load_base, prepare_libraries
    from .finish import finish, loading_lines, stages_table
    from .measure import ask, compare, figures_table

    prepare_libraries()
    rows = boxed_facts()
    people = list(dict.fromkeys(row["subject"] for row in rows if row["group"] == "people"))[:FORGOTTEN_PEOPLE]
    kept = [row for row in rows if row["subject"] not in people]
    given, unseen = kept[::2], kept[1::2]

    def asked(rows: list[dict], key: str = "question") -> list[Fact]:
        return [Fact(row[key], row["answer"]) for row in rows]

    gone = [row for row in rows if row["subject"] in people]
    model, tokenizer = load_base(str(boxed_model_dir()))
    show(f"The base in the box knows {len(rows)} invented and everyday facts ({model.num_parameters():,} parameters).")
    show(f"Erasing the {len(gone)} facts about {' and '.join(people)} …\n")
    started = time.perf_counter()
    erased = erase(model, tokenizer, asked(gone), asked(given), refusals=boxed_refusals(), seed=seed)
    elapsed = time.perf_counter() - started

    chat, plain = default_formats(tokenizer)[:2]
    sets = (
        ("forget", asked(gone), chat),
        ("forget, in other words", asked(gone, "paraphrased_question"), chat),
        ("forget, without chat template", asked(gone), plain),
        ("retain, never used to erase", asked(unseen), chat),
        ("retain, in other words", asked(unseen, "paraphrased_question"), chat),
        ("everyday facts", asked([row for row in unseen if row["group"] == "everyday"]), chat),
    )
    comparisons = compare(erased, tokenizer, sets)
    with erased.disable_adapter():
        off = ask(erased, tokenizer, asked(gone)[:1], chat, erased.erasure.token.token_id, "asking with it off")[0]
    forgotten, retained = comparisons[0], comparisons[3]
    answers = [("before", forgotten.before[0].text), ("after", forgotten.after[0].text), ("switched off", off.text)]
    show(table(("", forgotten.facts[0].question), answers) + "\n")
    answers = [("before", retained.before[0].text), ("after", retained.after[0].text)]
    show(table(("", retained.facts[0].question), answers) + "\n")
    show(figures_table(comparisons) + "\n")

    record = finish(erased, tokenizer, str(boxed_model_dir()), output, comparisons, overwrite=True)
    size, well = record["adapter"], figures(forgotten.after, boxed_refusals()).declined_well or 0.0
    show(f"Refusals that are whole sentences: {well:.0%}.")
    show(f"Adapter: {size['parameters']:,} parameters, {size['share']:.3%} of the base, {size['bytes']:,} bytes.")
    show(f"Erased in {elapsed:.1f} seconds:\n")
    show(stages_table(erased.erasure.seconds))
    show(f"\nSaved to {output}. To load it:\n\n{loading_lines(output)}")
    show("\nNext, on a model of your own:\n\n    unierase erase MODEL forget.jsonl -o my-erasure")
