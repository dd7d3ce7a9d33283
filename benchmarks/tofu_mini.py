"""Erase two authors of TOFU from a 13-million-parameter testbed and measure what went and what stayed.

    python benchmarks/tofu_mini.py [--shared ../shared] [--facts 40] [--json out.json]

Prints a table with what each figure must be, and exits with 1 if one is missed. The testbed is not part of the package;
where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import erase
from peft_unierase.check import answer_questions, figures, recall_scorer
from peft_unierase.engine import GateSettings
from peft_unierase.facts import Fact
from peft_unierase.prompts import PromptFormat, default_formats, encode, greedy_answers


def read(path: Path, answer: str = "answer") -> list[dict[str, str]]:
    """The rows of a JSON lines file, with `answer` under the key `reference`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**row, "reference": row[answer]} for row in rows]


def facts_of(rows: list[dict[str, str]], question: str = "question") -> list[Fact]:
    return [Fact(row[question], row["reference"]) for row in rows]


def leaks(model: Any, tokenizer: Any, facts: list[Fact], form: PromptFormat, token_id: int) -> dict[str, float]:
    """Mean recall under the two attacks that depth 0 cannot stop: [UNL] banned, and five gold tokens given."""
    scorer = recall_scorer()

    def recall(prompts: list[str], references: list[str], banned: tuple[int, ...] = ()) -> float:
        answers = greedy_answers(model, tokenizer, prompts, 56, banned=banned)
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        return sum(map(scorer, references, texts)) / len(texts)

    asked = [form.prompt(fact.question) for fact in facts]
    gold = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
    given = [prompt + tokenizer.decode(ids[:5]) for prompt, ids in zip(asked, gold, strict=True)]
    rest = [tokenizer.decode(ids[5:], skip_special_tokens=True) for ids in gold]
    return {
        "forget, [UNL] banned": recall(asked, [fact.answer for fact in facts], (token_id,)),
        "forget, 5 gold tokens given": recall(given, rest),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).parents[2] / "shared", help="folder of the testbed"
    )
    parser.add_argument("--facts", type=int, default=40, help="forget the first N facts (20 an author)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--stride", type=int, default=1, help="measure every Nth question of the kept sets")
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    folder, data = options.shared / "testbed" / "tofu-mini", options.shared / "data" / "tofu"
    if not folder.is_dir() or not data.is_dir():
        print(f"skipped: there is no testbed at {options.shared}")
        return 0

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    everything = read(data / "forget.json")
    forget, others = everything[: options.facts], everything[options.facts :]
    learnt = [row for number, row in enumerate(forget) if (number // 20) % 2 == 0]
    refusals = [
        line.strip() for line in (data / "refusals.txt").read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    every = options.stride
    chat, plain = default_formats(tokenizer)
    sets = {
        "forget": (facts_of(forget), chat),
        "forget, paraphrased": (facts_of(learnt, "paraphrased_question"), chat),
        "forget, plain format": (facts_of(forget), plain),
        "retain.json": (facts_of(read(data / "retain.json")[::every]), chat),
        "other forget authors": (facts_of(others[::every]), chat),
        "real authors": (facts_of(read(data / "real_authors.json", "original_answer")[::every]), chat),
        "world facts": (facts_of(read(data / "world_facts.json", "original_answer")[::every]), chat),
    }
    sets = {name: (facts, form) for name, (facts, form) in sets.items() if facts}
    base = {
        name: figures(answer_questions(model, tokenizer, facts, form, None, 56)) for name, (facts, form) in sets.items()
    }

    started = time.perf_counter()
    erased = erase(
        model,
        tokenizer,
        facts_of(forget),
        facts_of(read(data / "retain_more.json")),
        refusals=refusals,
        layers=options.layers,
        seed=options.seed,
        settings=GateSettings(),
    )
    seconds = time.perf_counter() - started
    token_id = erased.erasure.token.token_id
    answers = {
        name: answer_questions(erased, tokenizer, facts, form, token_id, 56) for name, (facts, form) in sets.items()
    }
    after = {name: figures(given, refusals) for name, given in answers.items()}
    with tempfile.TemporaryDirectory() as place:
        erased.save_pretrained(place, save_embedding_layers=False)
        size = (Path(place) / "adapter_model.safetensors").stat().st_size
    parameters = sum(p.numel() for name, p in erased.named_parameters() if "unierase_" in name)
    share = parameters / sum(p.numel() for name, p in erased.named_parameters() if "unierase_" not in name)

    kept = [name for name in sets if not name.startswith("forget")]
    fired = sum(after[n].fired * after[n].count for n in kept) / sum(after[n].count for n in kept)
    rows: list[tuple[str, float | None, float, str, bool | None]] = []
    for name in sets:
        b, a = base[name].recall, after[name].recall
        if name.startswith("forget"):
            most = {"forget": 0.12, "forget, paraphrased": 0.35}.get(name)
            rows.append((name, b, a, f"<= {most}" if most else "", a <= most if most else None))
        else:
            least = 0.96 if name == "other forget authors" else 0.98
            rows.append((name, b, a, f">= {least:.0%} of base", a >= least * b))
    well = after["forget"].declined_well or 0.0
    rows += [
        (name, None, value, "not at depth 0", None)
        for name, value in leaks(erased, tokenizer, *sets["forget"], token_id).items()
    ]
    rows += [
        ("kept questions that fire [UNL]", None, fired, "<= 1%", fired <= 0.01),
        ("forget questions that fire [UNL]", None, after["forget"].fired, "", None),
        ("refusals that are whole sentences", None, well, ">= 95%", well >= 0.95),
        ("adapter, share of parameters", None, share, "<= 0.1%", share <= 0.001),
        ("seconds to erase", None, seconds, "< 120", seconds < 120),
    ]
    print(f"\n{'measure':36s} {'base':>7s} {'erased':>9s}  must be")
    for name, before, value, demand, met in rows:
        mark = "" if met is None else ("yes" if met else "NO")
        print(f"{name:36s} {'' if before is None else format(before, '.3f'):>7s} {value:9.5g}  {demand:16s} {mark}")
    print(f"\nadapter: {parameters} parameters, {size} bytes")
    print(json.dumps(erased.erasure.record(), indent=1))
    print({name: round(value, 1) for name, value in erased.erasure.seconds.items()})
    for fact, answer in list(zip(sets["forget"][0], answers["forget"], strict=True))[:6]:
        print(f"  {fact.question}\n    -> {answer.text}")
    odd = [a.text for a in answers["forget"] if a.text not in refusals]
    print("not a listed refusal:", odd)
    if options.json:
        options.json.write_text(
            json.dumps({"rows": [r[:4] for r in rows], "record": erased.erasure.record()}, indent=1), encoding="utf-8"
        )
    return 0 if all(met is not False for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
