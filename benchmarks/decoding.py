"""What an erasure costs while the model answers: on, off and merged beside the bare base, in turns within one run.

    python benchmarks/decoding.py [--adapter FOLDER] [--facts 10] [--rounds 30] [--tokens 64] [--device-map cuda]

Every round lets each of the four write the same number of tokens after the same prompt, one token at a time; which of
them begins changes from round to round. Prints the medians of the ratios to the base within a round, with their
quartiles, and what the adapter takes in memory beside what its file has. Without `--adapter` the first facts are erased
first. The testbed is not part of the package; where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import erase, load, read_facts, set_active
from peft_unierase.lm.formats import chat_format

QUESTION = "What do you like to do on a rainy afternoon?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    parser.add_argument("--adapter", type=Path, help="an erasure for the testbed; without it one is made")
    parser.add_argument("--facts", type=int, default=10, help="facts to erase where one is made")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write each time")
    parser.add_argument("--device-map", help="where to load models to, as transformers takes it")
    options = parser.parse_args()
    place = options.shared / "testbed" / "tofu-mini"
    if not place.is_dir():
        print(f"skipped: there is no testbed in {place.parent}; --shared names its folder")
        return 0

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, device_map=options.device_map).eval()

    tokenizer = AutoTokenizer.from_pretrained(place)
    prompt = chat_format(tokenizer).prompt(QUESTION)
    if options.adapter is None:
        data = options.shared / "data" / "tofu"
        forget, retain = read_facts(data / "forget.json")[: options.facts], read_facts(data / "retain_more.json")
        erased = erase(base(), tokenizer, forget, retain)
    else:
        erased = load(base(), options.adapter)
    (name,) = erased.peft_config
    bare, merged = base(), copy.deepcopy(erased).merge_and_unload()
    # The same weights at the same place in memory: two copies of one model differ by a few percent.
    own = erased.get_base_model().state_dict()
    bare.load_state_dict(
        {k.replace(".base_layer.", "."): v for k, v in own.items() if ".unierase_" not in k}, assign=True
    )

    def live(on: bool) -> Any:
        set_active(erased, [name] if on else [])
        return erased

    models: dict[str, Callable[[], Any]] = {
        "base": lambda: bare,
        "on": lambda: live(True),
        "off": lambda: live(False),
        "merged": lambda: merged,
    }
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(bare.device)
    for model in models.values():
        written(model(), ids, options.tokens)  # warm-up
    ratios: dict[str, list[float]] = {each: [] for each in models}
    base_times = []
    for number in range(options.rounds):
        order = list(models)[number % len(models) :] + list(models)[: number % len(models)]
        seconds = {each: written(models[each](), ids, options.tokens) for each in order}
        base_times.append(seconds["base"])
        for each in models:
            ratios[each].append(seconds[each] / seconds["base"])
    print(
        f"{options.tokens} tokens, {options.rounds} rounds, base {statistics.median(base_times) * 1000:.0f} ms a round"
    )
    print("\n| | time, of the base's | quartiles |")
    print("|---|---:|---:|")
    for each in models:
        low, middle, high = statistics.quantiles(ratios[each], n=4)
        print(f"| {each} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    taken = sum(p.numel() * p.element_size() for key, p in own.items() if ".unierase_" in key)
    print(f"\nthe adapter takes {taken / 1000:,.1f} kB of memory")
    if options.adapter:
        size = (options.adapter / "adapter_model.safetensors").stat().st_size
        print(f"its file has {size / 1000:,.1f} kB")
    return 0


@torch.no_grad()
def written(model: Any, ids: torch.Tensor, count: int) -> float:
    """Seconds to write so many tokens."""
    if ids.device.type != "cpu":
        torch.accelerator.synchronize()
    begun = time.perf_counter()
    model.generate(input_ids=ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
    if ids.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
