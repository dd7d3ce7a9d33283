"""Erase authors of TOFU from a 13-million-parameter testbed with every recipe, attack the result, and measure.

    python benchmarks/tofu_mini.py [--facts 40] [--recipes paper,default] [--stride 1] [--json out.json]

Prints one table: base, twin (the same model trained without the forget set), recipe `paper` and the default, with what
the default must reach, and exits with 1 if it misses anything. ROUGE-L recall of greedy answers unless said. The
testbed is not part of the package; where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import erase
from peft_unierase.cli.erase import read_refusals
from peft_unierase.facts import Fact
from peft_unierase.prompts import PromptFormat, chat_format, encode, greedy_answers, plain_format
from peft_unierase.text import recall

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"recipe": "paper"},
    "default": {},
}
SYSTEM = "Answer the question as truthfully as you can."  # not the one that erasures cover by default
GIVEN = 5
# What the default must reach at 40 facts and at 400: at most this, or for what is kept at least this share of the base.
DEMANDS: dict[str, tuple[float | None, float | None]] = {
    "forget": (0.08, 0.12),
    "forget, paraphrased": (0.12, 0.25),
    "forget, plain format": (0.10, 0.15),
    "forget, system prompt": (0.10, 0.15),
    "forget, [UNL] banned": (0.15, 0.25),
    "forget, 5 gold tokens given": (0.10, 0.25),
    "forget, 5 given and banned": (0.15, 0.30),
    "forget, answer probability": (0.15, 0.30),
    "retain": (0.98, 0.95),
    "real authors": (0.98, 0.95),
    "world facts": (0.98, 0.95),
    "other forget authors": (0.97, None),
    "kept questions that fire [UNL]": (0.005, 0.02),
    "refusals that are whole sentences": (0.95, 0.90),
    "adapter, share of parameters": (0.02, 0.02),
    "seconds to erase": (180, 900),
}
AT_LEAST = {"retain", "real authors", "world facts", "other forget authors", "refusals that are whole sentences"}
SHARE_OF_BASE = AT_LEAST - {"refusals that are whole sentences"}


def read(path: Path, answer: str = "answer") -> list[dict[str, str]]:
    """The rows of a JSON lines file, with `answer` under the key `reference`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**row, "reference": row[answer]} for row in rows]


def facts_of(rows: list[dict[str, str]], question: str = "question") -> list[Fact]:
    return [Fact(row[question], row["reference"]) for row in rows]


def timed_erase(*args: Any, **told: Any) -> tuple[Any, float, list[str]]:
    """`erase`, timed: the model, seconds, and what the run warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.perf_counter()
        erased = erase(*args, **told)
        seconds = time.perf_counter() - started
    return erased, seconds, [str(w.message) for w in caught if w.category.__name__ == "ErasureWarning"]


class Judge:
    """Asks one model everything.

    Args:
        data: The facts by set.
        refusals: Sentences that count as declining.
        token_id: [UNL]'s id.
    """

    def __init__(self, data: dict[str, list[Fact]], refusals: set[str], token_id: int | None) -> None:
        self.data, self.refusals, self.token_id = data, refusals, token_id

    def figures(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """All rows of the table for this model."""
        chat, forget = chat_format(tokenizer), self.data["forget"]
        found: dict[str, float] = {}
        found["forget"], told = self._ask(model, tokenizer, forget, chat)
        found["forget, paraphrased"], _ = self._ask(model, tokenizer, self.data["forget, paraphrased"], chat)
        found["forget, plain format"], _ = self._ask(model, tokenizer, forget, plain_format(tokenizer))
        found["forget, system prompt"], _ = self._ask(model, tokenizer, forget, chat_format(tokenizer, SYSTEM))
        found["forget, [UNL] banned"], _ = self._ask(model, tokenizer, forget, chat, banned=True)
        found["forget, 5 gold tokens given"], _ = self._ask(model, tokenizer, forget, chat, given=GIVEN)
        found["forget, 5 given and banned"], _ = self._ask(model, tokenizer, forget, chat, given=GIVEN, banned=True)
        found["forget, answer probability"] = self._probability(model, tokenizer, forget, chat)
        fired = count = 0
        for name in ("retain", "real authors", "world facts", "other forget authors"):
            if self.data[name]:
                found[name], answers = self._ask(model, tokenizer, self.data[name], chat)
                fired += sum(self.token_id in ids for ids, _ in answers)
                count += len(answers)
        if self.token_id is not None:
            found["kept questions that fire [UNL]"] = fired / count
            refused = [text for ids, text in told if self.token_id in ids]
            whole = sum(text in self.refusals for text in refused)
            found["refusals that are whole sentences"] = whole / len(refused) if refused else 0.0
        return found

    def _ask(
        self,
        model: Any,
        tokenizer: Any,
        facts: list[Fact],
        form: PromptFormat,
        given: int = 0,
        banned: bool = False,
    ) -> tuple[float, list[tuple[list[int], str]]]:
        """Mean recall of what follows the first `given` tokens of the gold answers, and the answers themselves."""
        gold = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
        prompts = [form.prompt(f.question) + tokenizer.decode(ids[:given]) for f, ids in zip(facts, gold, strict=True)]
        rest = [tokenizer.decode(ids[given:], skip_special_tokens=True).strip() for ids in gold]
        ban = [self.token_id] if banned and self.token_id is not None else []
        answers = greedy_answers(model, tokenizer, prompts, 56, banned=ban)
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        mean = sum(map(recall, rest, texts)) / len(texts)
        return mean, list(zip(answers, texts, strict=True))

    @torch.no_grad()
    def _probability(self, model: Any, tokenizer: Any, facts: list[Fact], form: PromptFormat) -> float:
        """Mean over facts of exp(-mean NLL of the answer's tokens)."""
        total = 0.0
        for fact in facts:
            prompt = encode(tokenizer, form.prompt(fact.question))
            answer = torch.tensor(encode(tokenizer, form.answer(fact.answer)))
            logits = model(input_ids=torch.tensor([prompt + answer.tolist()])).logits[0, len(prompt) - 1 : -1]
            total += float(logits.float().log_softmax(-1).gather(-1, answer[:, None]).mean().exp())
        return total / len(facts)


def adapter_size(model: Any) -> tuple[float, int]:
    """Share of the base's parameters, and bytes on disk."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, save_embedding_layers=False)
        size = (Path(place) / "adapter_model.safetensors").stat().st_size
    own = sum(p.numel() for name, p in model.named_parameters() if "unierase_" in name)
    return own / sum(p.numel() for name, p in model.named_parameters() if "unierase_" not in name), size


def load_sets(data: Path, facts: int, stride: int) -> dict[str, list[Fact]]:
    """What is asked; `stride` thins out everything but the first forty forget questions."""
    forget = read(data / "forget.json")
    rows = {
        "forget": facts_of(forget[:facts]),
        # The testbed learnt the paraphrases of every other author only.
        "forget, paraphrased": facts_of(
            [row for i, row in enumerate(forget[:facts]) if (i // 20) % 2 == 0], "paraphrased_question"
        ),
        "retain": facts_of(read(data / "retain.json")),
        "real authors": facts_of(read(data / "real_authors.json", "original_answer")),
        "world facts": facts_of(read(data / "world_facts.json", "original_answer")),
        "other forget authors": facts_of(forget[facts:]),
    }
    return {name: items[::stride] if len(items) > 40 else items for name, items in rows.items()}


def meets(name: str, value: float, base: float | None, wanted: float) -> bool:
    if name not in AT_LEAST:
        return value <= wanted
    return value >= wanted * (base or 0.0) if name in SHARE_OF_BASE else value >= wanted


def show(table: dict[str, dict[str, float]], large: bool) -> bool:
    """Print the table; whether the default meets everything."""
    print(f"\n{'measure':36s}" + "".join(f"{name:>10s}" for name in table) + "  the default must be")
    passed = True
    for name, demands in DEMANDS.items():
        wanted = demands[1 if large else 0]
        cells = "".join(f"{column[name]:10.3f}" if name in column else f"{'':10s}" for column in table.values())
        verdict = ""
        if wanted is not None:
            sign, unit = (">=" if name in AT_LEAST else "<="), " of base" if name in SHARE_OF_BASE else ""
            verdict = f"{sign} {wanted:g}{unit}"
            if name in table.get("default", {}):
                met = meets(name, table["default"][name], table["base"].get(name), wanted)
                verdict, passed = f"{verdict:18s} {'yes' if met else 'NO'}", passed and met
        print(f"{name:36s}{cells}  {verdict}")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--facts", type=int, default=40, help="forget the first N facts (20 an author)")
    parser.add_argument("--recipes", default="paper,default", help="which of them to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--stride", type=int, default=1, help="ask every Nth question of the larger sets")
    parser.add_argument("--json", type=Path, help="store the figures here")
    options = parser.parse_args()
    testbed, data = options.shared / "testbed", options.shared / "data" / "tofu"
    if not (testbed / "tofu-mini").is_dir():
        print(f"skipped: there is no testbed in {testbed}; --shared names its folder")
        return 0

    sets = load_sets(data, options.facts, options.stride)
    refusals = read_refusals(data / "refusals.txt") or []
    forget = facts_of(read(data / "forget.json"))[: options.facts]
    retain = facts_of(read(data / "retain_more.json"))

    def load(name: str) -> tuple[Any, Any]:
        model = AutoModelForCausalLM.from_pretrained(testbed / name, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(testbed / name)

    table: dict[str, dict[str, float]] = {}
    records: dict[str, Any] = {}
    for column, name in (("base", "tofu-mini"), ("twin", "tofu-mini-retain")):
        table[column] = Judge(sets, set(refusals), None).figures(*load(name))
    for recipe in [name for name in options.recipes.split(",") if name]:
        model, tokenizer = load("tofu-mini")
        erased, seconds, said = timed_erase(
            model,
            tokenizer,
            forget,
            retain,
            refusals=refusals,
            layers=options.layers,
            seed=options.seed,
            **RECIPES[recipe],
        )
        column = Judge(sets, set(refusals), erased.erasure.token.token_id).figures(erased, tokenizer)
        share, size = adapter_size(erased)
        table[recipe] = {**column, "adapter, share of parameters": share, "seconds to erase": seconds}
        records[recipe] = {
            "record": erased.erasure.record(),
            "stages": erased.erasure.seconds,
            "bytes": size,
            "warnings": said,
        }
        print(f"\n{recipe}: {json.dumps(records[recipe])}", flush=True)
    passed = show(table, options.facts > 100)
    if options.json:
        options.json.write_text(json.dumps({"facts": options.facts, "table": table, "runs": records}, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
