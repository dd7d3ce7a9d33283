"""Hold the greedy answers of servers against those of PEFT, on ten erased questions and ten others.

    python benchmarks/serving.py ERASURE llama_cpp=http://127.0.0.1:8080/v1 [vllm=… …] [--json out.json]

ERASURE is one of task `authors` of `real_model.py`. The scripts of `examples/serve` start the servers: `transformers`
(with an erasure whose folder is called `erased`), `llama_cpp`, `llama_cpp_merged`, `vllm`, `tgi`. A server that can
switch the erasure gets each question with it off, then with it on.

Prints how many answers are the same, and each pair that differs. Exits with 1 if any does.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from common import save
from peft import PeftConfig
from real_model import task_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import Fact, load
from peft_unierase.lm.decoding import greedy_answers
from peft_unierase.lm.formats import chat_format

ASK = Path(__file__).parents[1] / "examples" / "serve" / "ask.py"
EACH = 10  # questions that are erased, and others
TOKENS = 24
# What a request says to have the erasure off or on. A server that lacks a state cannot switch.
SERVERS: dict[str, dict[str, dict[str, Any]]] = {
    "transformers": {"off": {"model": "base"}, "on": {"model": "erased"}},
    "llama_cpp": {"off": {"model": "-", "lora_scale": 0}, "on": {"model": "-", "lora_scale": 1}},
    "llama_cpp_merged": {"on": {"model": "-"}},
    "vllm": {"off": {"model": "base"}, "on": {"model": "erased"}},
    "tgi": {"on": {"model": "tgi"}},
}


def questions() -> dict[str, list[str]]:
    """Ten questions of each set: those that are erased, and five about other authors with five about other things."""
    task = task_of("authors")
    held_out = [fact for facts in task.held_out.values() for fact in spread(facts, EACH // 2)]
    sets = {"erased": task.forget[:EACH], "other": held_out}
    return {name: [fact.question for fact in facts] for name, facts in sets.items()}


def spread(facts: list[Fact], count: int) -> list[Fact]:
    """Some facts at even distances."""
    return facts[:: len(facts) // count][:count]


def answers_of_peft(erasure: str, base: str, asked: list[str]) -> dict[str, list[str]]:
    """The answers to questions with the erasure off and on, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), erasure)
    prompts = [chat_format(tokenizer).prompt(question) for question in asked]

    def answers() -> list[str]:
        answered = greedy_answers(model, tokenizer, prompts, TOKENS)
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answered]

    with model.disable_adapter():
        off = answers()
    return {"off": off, "on": answers()}


def answers_of_server(name: str, url: str, asked: list[str]) -> dict[str, list[str]]:
    """The answers of a server, each state in turn for each question."""
    ask = runpy.run_path(str(ASK))["ask"]
    found: dict[str, list[str]] = {state: [] for state in SERVERS[name]}
    for question in asked:
        for state, request in SERVERS[name].items():
            found[state].append(ask(**request, question=question, url=url, max_tokens=TOKENS))
    return found


def server_of(text: str) -> tuple[str, str]:
    """`NAME=URL` as a pair."""
    name, _, url = text.partition("=")
    if name not in SERVERS or not url:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL with a name of {', '.join(SERVERS)}")
    return name, url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("erasure", help="its folder")
    parser.add_argument("servers", nargs="+", type=server_of, metavar="NAME=URL", help=", ".join(SERVERS))
    parser.add_argument("--base", help="folder or Hub id; the erasure names its own")
    parser.add_argument("--json", type=Path, help="store the answers here")
    options = parser.parse_args()
    base = options.base or PeftConfig.from_pretrained(options.erasure).base_model_name_or_path
    sets = questions()
    asked = [question for each in sets.values() for question in each]
    wanted = answers_of_peft(options.erasure, base, asked)
    answers = {"peft": wanted}
    differ = 0
    for name, url in options.servers:
        answers[name] = answers_of_server(name, url, asked)
        for state, found in answers[name].items():
            pairs = list(zip(asked, found, wanted[state], strict=True))
            for kind, own in sets.items():
                same = sum(answer == want for question, answer, want in pairs if question in own)
                print(f"{name}, erasure {state}: {same} of {len(own)} {kind} questions are answered as by PEFT")
            for question, answer, want in pairs:
                if answer != want:
                    differ += 1
                    print(f"  {question}\n    {name}: {answer}\n    PEFT: {want}")
    save(options.json, {"questions": sets, "answers": answers})
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
