"""`unierase quickstart`: erase two invented people from the base model in the box and show what changed."""

from __future__ import annotations

import time
import warnings
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

    from transformers.utils import logging as transformers_logging

    from .. import tuner
    from ..boxed import boxed_facts, boxed_model_dir, boxed_refusals
    from ..check import figures
    from ..engine import erase
    from ..facts import Fact
    from ..hub.card import erasure_card
    from ..hub.folder import save_erasure
    from ..prompts import default_formats
    from ..version import __version__
    from .base import load_base
    from .erase import adapter_size, stages_table
    from .measure import ask, figures_record, figures_table

    tuner.register()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and peft about each other
    transformers_logging.disable_progress_bar()

    facts = boxed_facts()
    people = list(dict.fromkeys(fact["subject"] for fact in facts if fact["group"] == "people"))
    gone = set(people[:FORGOTTEN_PEOPLE])
    others = [fact for fact in facts if fact["subject"] not in gone]
    given, unseen = others[::2], others[1::2]

    def asked(rows: list[dict], key: str = "question") -> list[Fact]:
        return [Fact(row[key], row["answer"]) for row in rows]

    forget_rows = [fact for fact in facts if fact["subject"] in gone]
    forget = asked(forget_rows)
    model, tokenizer = load_base(str(boxed_model_dir()))
    show(f"The base in the box knows {len(facts)} invented and everyday facts ({model.num_parameters():,} parameters).")
    show(f"Erasing the {len(forget)} facts about {' and '.join(people[:FORGOTTEN_PEOPLE])} …\n")
    started = time.perf_counter()
    erased = erase(model, tokenizer, forget, asked(given), refusals=boxed_refusals(), seed=seed)
    elapsed = time.perf_counter() - started
    token_id = erased.erasure.token.token_id
    form, plain = default_formats(tokenizer)

    sets = (
        ("forget", forget, form),
        ("forget, in other words", asked(forget_rows, "paraphrased_question"), form),
        ("forget, without chat template", forget, plain),
        ("retain, never used to erase", asked(unseen), form),
        ("retain, in other words", asked(unseen, "paraphrased_question"), form),
        ("everyday facts", asked([row for row in unseen if row["group"] == "everyday"]), form),
    )
    rows, first = [], {}
    for name, questions, how in sets:
        with erased.disable_adapter():
            before = ask(erased, tokenizer, questions, how, None, f"asking the base ({name})")
        after = ask(erased, tokenizer, questions, how, token_id, f"asking again ({name})")
        rows.append((name, figures(before), figures(after, boxed_refusals())))
        first[name] = (questions[0], before[0], after[0])
    with erased.disable_adapter():
        off = ask(erased, tokenizer, forget[:1], form, token_id, "asking with the erasure off")[0]

    question, before, after = first["forget"]
    kept_question, kept_before, kept_after = first["retain, never used to erase"]
    show(
        table(
            ("", question.question),
            [("before", before.text), ("after", after.text), ("with the erasure off", off.text)],
        )
    )
    show()
    show(table(("", kept_question.question), [("before", kept_before.text), ("after", kept_after.text)]))
    show()
    show(figures_table(rows))
    well = rows[0][2].declined_well
    size = adapter_size(erased)
    record = {"version": __version__, **erased.erasure.record(), "adapter": size, "figures": figures_record(rows)}
    card = erasure_card(base_model=str(boxed_model_dir()), name=output.name, record=record)
    save_erasure(erased, tokenizer, output, record, str(card), overwrite=True)
    show()
    show(f"Refusals that are whole sentences: {0.0 if well is None else well:.0%} of {len(forget)}.")
    show(f"Adapter: {size['parameters']:,} parameters, {size['share']:.3%} of the base, {size['bytes']:,} bytes of weights.")
    show(f"Erased in {elapsed:.1f} seconds:\n")
    show(stages_table(erased.erasure.seconds))
    show(f"\nSaved to {output}. To load it:\n")
    show("    import peft_unierase; from peft import PeftModel")
    show(f'    model = PeftModel.from_pretrained(base, "{output}")')
    show("\nNext: unierase erase --help, or erase from a model of your own:\n")
    show("    unierase erase MODEL forget.jsonl -o my-erasure")
