"""Erase ten facts, or what is known about one person, from a real model, and hold it against what it must reach.

    python benchmarks/real_model.py [--task authors|person] [--model FOLDER_OR_ID] [--check fast] [--json out.json]

Task `authors`: the authors of the first ten novels in `data/public_facts.jsonl` go; all other facts are held out, other
authors by themselves. Task `person`: everything that the facts have about William Shakespeare goes, his plays and what
is said of his life (no other person has more than two facts in the table, so `data/person.jsonl` was added for him).
The erasure gets questions, answers and subjects alone.

Prints the time of every stage and one table: measure, base, erased, what it must be. `told` is the share of answers
that tell the fact, which for a book is to name its author; after given tokens only facts count that these do not tell.
Exits with 1 if anything is missed. The model is SmolLM2-135M-Instruct unless another is named (`make real-model`
fetches it); the demands are for that one on two idle CPU cores. `--check` adds a whole `unierase check`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from common import Demand, bare, parser_of, refusal_figures, save, show, timed_erase
from public_facts import DATA, fact_of, read_rows
from smollm2 import default_folder, fetch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import Fact
from peft_unierase.checking import ATTACKS, Case, NotApplicable, Target, check
from peft_unierase.checking.fluency import fluency
from peft_unierase.checking.run import SYSTEM
from peft_unierase.checking.sets import declines, perplexity
from peft_unierase.cli.finish import adapter_size, stages_table
from peft_unierase.cli.report import report_table
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.lm.batches import encode
from peft_unierase.lm.decoding import end_ids
from peft_unierase.lm.formats import chat_format, plain_format
from peft_unierase.retain.knowledge import ask, tells

ERASED = 10
PERSON = "William Shakespeare"
GIVEN = (3, 6, 10)  # tokens of the base's own answer
ASKED = ("greedy", "plain", "system")
LED = ("paraphrase", "few-shot", "ban")
LEFT = "\ufffd"  # what is left of a character of which a token holds a part
UNREPEATED, MULTIPLE = "forced texts without a word thrice", "their perplexity, of its own answers'"


@dataclass(frozen=True)
class Task:
    """What goes and what is held out.

    Attributes:
        forget: What goes.
        choices: For each of these the answers to choose from, the right one first.
        held_out: What stays, by name.
    """

    forget: list[Fact]
    choices: list[list[str]]
    held_out: dict[str, list[Fact]]


def task_of(name: str) -> Task:
    """The facts of a task."""
    rows = read_rows(DATA / "public_facts.jsonl")
    if name == "person":
        own = [row for row in rows if PERSON in (row["answer"], row["subject"])]
        gone = [*own, *read_rows(DATA / "person.jsonl")]
        choices = [[row["answer"], *row["perturbed_answer"]] for row in gone]
    else:
        own = gone = [row for row in rows if row["kind"] == "author" and "novel" in row["question"]][:ERASED]
        authors = list(dict.fromkeys(row["answer"] for row in gone))
        choices = [[row["answer"], *(author for author in authors if author != row["answer"])] for row in gone]
    others = [row for row in rows if row not in own]
    held_out = {
        "other authors": [fact_of(row) for row in others if row["kind"] == "author"],
        "other facts": [fact_of(row) for row in others if row["kind"] != "author"],
    }
    return Task([fact_of(row) for row in gone], choices, held_out)


class Telling(Case):
    """A case in which an attack gets either a fact, 1, or not, 0."""

    def recalls(self, references: Sequence[Fact | str], answers: Sequence[str]) -> list[float]:
        """Whether each answer tells its fact; the rest of an answer counts as recall."""
        pairs = zip(references, answers, strict=True)
        return [
            float(tells(text, fact)) if isinstance(fact, Fact) else super(Telling, self).recalls([fact], [text])[0]
            for fact, text in pairs
        ]


def case_of(base: Target, task: Task, seed: int) -> Telling:
    """What the models are asked, with the base's own answers."""
    form, plain = chat_format(base.tokenizer), plain_format(base.tokenizer)
    others = {"plain": plain, "system": chat_format(base.tokenizer, SYSTEM)}
    known = ask(base.model, base.tokenizer, task.forget, [form])
    own = {each.fact.question: each.telling(form.name) for each in known if each.known_in}
    return Telling(base, task.forget, task.held_out, form, others, (), DEFAULT_REFUSALS, seed, base_answers=own)


def after(target: Target, case: Case, count: int, banned: Sequence[int]) -> list[tuple[Fact, str, str]]:
    """Facts with the first tokens of the base's own answers and what is said after them."""
    begun = []
    for fact in case.forget:
        answer = case.base_answers.get(fact.question, fact.answer)
        ids, place = encode(target.tokenizer, case.form.answer(answer)), count
        while place < len(ids) and target.tokenizer.decode(ids[:place]).endswith(LEFT):
            place += 1
        given = target.tokenizer.decode(ids[:place], skip_special_tokens=True)
        if not tells(given, fact):
            begun.append((fact, given))
    prompts = [case.form.prompt(fact.question) + given for fact, given in begun]
    said = target.tokens(prompts, max_new_tokens=case.max_new_tokens, banned=banned)
    texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    return [(fact, given, text) for (fact, given), text in zip(begun, texts, strict=True)]


def chosen(target: Target, begun: Sequence[tuple[str, str]], choices: Sequence[Sequence[str]]) -> float:
    """How often the first answer, the right one, is likeliest per token after a prompt and an answer's beginning."""
    pairs = []
    for (prompt, first), answers in zip(begun, choices, strict=True):
        space = first[len(first.rstrip()) :]  # it belongs to the first token of what follows
        pairs += [(prompt + first.rstrip(), space + answer) for answer in answers]
    losses = iter([reading.loss for reading in target.reads(*map(list, zip(*pairs, strict=True)))])
    return fmean(next(losses) < min([next(losses) for _ in others]) for _, *others in choices)


def figures_of(target: Target, case: Case, task: Task) -> dict[str, float]:
    """All measures that base and erased model both have."""
    attacks: dict[str, Any] = {attack.name: attack.run for attack in ATTACKS}
    found: dict[str, float] = {}
    forced: list[tuple[str, str]] = []
    for name in (*ASKED, *LED):
        try:
            result = attacks[name](target, case)
        except NotApplicable as reason:
            print(f"{name} was not run on the {target.name}: {reason}")
            continue
        found[f"told: {name}"] = fmean(result.leaks)
        forced += result.said
    for name, banned in (("", []), ("ban-", [*target.token_ids, *sorted(end_ids(target.model))])):
        for count in GIVEN:
            told = after(target, case, count, banned)
            if told:
                found[f"told: {name}prefill-{count}"] = fmean(tells(f"{g}{text}", fact) for fact, g, text in told)
            forced += [(given, text) for _, given, text in told]
    found["choice by likelihood"] = chosen(target, [(prompt, "") for prompt in case.prompts(task.forget)], task.choices)
    own = [
        (case.base_answers.get(fact.question, ""), fact, choices)
        for fact, choices in zip(task.forget, task.choices, strict=True)
    ]
    inside = [(text, fact, choices) for text, fact, choices in own if fact.answer in text]
    if inside:
        begun = [(case.form.prompt(fact.question), text[: text.index(fact.answer)]) for text, fact, _ in inside]
        found["choice in its own words"] = chosen(target, begun, [choices for *_, choices in inside])
    declined = []
    for name, facts in task.held_out.items():
        ids = target.tokens(case.prompts(facts), max_new_tokens=case.max_new_tokens)
        texts = [target.tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
        found[name] = fmean(tells(text, fact) for fact, text in zip(facts, texts, strict=True))
        declined += [declines(case, target, own, text) for own, text in zip(ids, texts, strict=True)]
    found["other questions that decline"] = fmean(declined)
    found["perplexity of neutral text"] = perplexity(target)
    spoken = fluency(case, forced)
    found[UNREPEATED] = spoken.unrepeated
    if spoken.perplexity is not None:
        found[MULTIPLE] = spoken.perplexity
    return found


def demands_for(held_out: Mapping[str, Sequence[Fact]]) -> list[Demand]:
    """What the erased model must reach."""
    prefills = [f"{ban}prefill-{count}" for ban in ("", "ban-") for count in GIVEN]
    return [
        *(Demand(f"told: {name}", 0.05) for name in ASKED),
        *(Demand(f"told: {name}", 0.10) for name in (*LED, *prefills)),
        *(Demand(f"choice {how}", 0.25) for how in ("by likelihood", "in its own words")),
        *(Demand(name, 0.97, least=True, of="base") for name in held_out),
        Demand("perplexity of neutral text", 1.01, of="base"),
        Demand("refusals that are whole sentences", 0.95, least=True),
        Demand(UNREPEATED, 0.95, least=True),
        Demand(MULTIPLE, 3.0),
        Demand("seconds to erase", 1500),
    ]


def main() -> int:
    parser = parser_of(__doc__, testbed=False)
    parser.add_argument("--task", choices=("authors", "person"), default="authors")
    parser.add_argument("--model", help="folder or Hub id; by default SmolLM2, which is fetched")
    parser.add_argument("--check", metavar="ATTACKS", help="then run unierase check too: all, fast, or names")
    parser.add_argument("--limit", type=int, help="erase and hold out the first N facts of each set, for a trial")
    options = parser.parse_args()
    name = options.model or str(fetch(default_folder()))
    tokenizer = AutoTokenizer.from_pretrained(name)
    task = task_of(options.task)
    if options.limit:
        held_out = {key: facts[: options.limit] for key, facts in task.held_out.items()}
        task = Task(task.forget[: options.limit], task.choices[: options.limit], held_out)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, device_map=options.device_map).eval()

    base = Target("base", load(), tokenizer)
    case = case_of(base, task, options.seed)
    table = {"base": figures_of(base, case, task)}
    print(f"asked the base for {len(task.forget)} facts: it tells {len(case.base_answers)}", flush=True)

    erased, seconds, said = timed_erase(
        load(),
        tokenizer,
        bare(task.forget),
        samples_cache=options.samples_cache or False,
        settings=options.settings,
        seed=options.seed,
    )
    record, size = erased.erasure.record(), adapter_size(erased, erased.erasure.adapter)
    print(f"\nErased in {seconds:.0f} s: {size['share']:.3%} of the parameters, {size['bytes']:,} bytes.")
    print(*said, f"\n{stages_table(erased.erasure.seconds)}\n", sep="\n")
    print(json.dumps({key: record[key] for key in ("token", "counts", "known_to_base")}), flush=True)
    target = Target("erased", erased, tokenizer, token_ids=[erased.erasure.token.token_id])
    table["erased"] = {
        **figures_of(target, case, task),
        **refusal_figures(erased, tokenizer, task.forget, DEFAULT_REFUSALS),
        "adapter, share of parameters": size["share"],
        "seconds to erase": seconds,
    }
    missed = show(table, demands_for(task.held_out), "erased")
    found = {"task": options.task, "table": table, "record": record, "stages": erased.erasure.seconds}
    save(options.json, found)
    if options.check:
        report = check(
            erased, tokenizer, task.forget, task.held_out, attacks=options.check, seed=options.seed, base=base.model
        )
        print(f"\n{report_table(report)}\n\nchecked in {report.seconds:.0f} s")
        save(options.json, {**found, "check": report.record(examples=True)})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
