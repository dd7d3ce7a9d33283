"""Prints what erasing costs, as markdown tables: computed for models of three sizes, and measured on the testbed.

    python benchmarks/cost_table.py [--measure 10,40,100,400] [--shared FOLDER]

The sizes are those of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B in bf16; nothing is loaded for them. A run is one of
recipe `gate` with its default settings, without retain facts of one's own. With `--measure` facts of TOFU are erased
from the 13-million-parameter testbed, in a process of its own for each number of facts, beside what was expected of
that run before it; 40 facts take some minutes, 400 a good deal longer. Where the testbed is missing the script says so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
import warnings
from pathlib import Path

from peft_unierase.engine.cost import Sizes, cost_of, estimate_cost, expected_work, with_unit

MODELS = {
    "1B": Sizes(2048, 8192, 16, 128_256, heads=32, kv_heads=8, head_dim=64, tied=True),
    "8B": Sizes(4096, 14_336, 32, 128_256, heads=32, kv_heads=8, head_dim=128),
    "70B": Sizes(8192, 28_672, 80, 128_256, heads=64, kv_heads=8, head_dim=128),
}
FACTS = (10, 40, 100, 400)


def computed() -> None:
    print("| model | facts | operations | most of them in | model | needed beside it, at most | adapter |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for name, sizes in MODELS.items():
        for facts in FACTS:
            cost = estimate_cost(sizes, facts)
            cells = [
                name,
                str(facts),
                with_unit(cost.flops, "FLOP"),
                f"{cost.dominant.name}, {cost.dominant.flops / cost.flops:.0%}",
                with_unit(cost.model_bytes, "B"),
                with_unit(cost.peak_bytes - cost.model_bytes, "B"),
                with_unit(cost.adapter_bytes, "B"),
            ]
            print(f"| {' | '.join(cells)} |")


def erase_and_measure(shared: Path, facts: int) -> str:
    """One row of the measured table."""
    import torch
    from tofu_mini import facts_of, read
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peft_unierase import erase

    data, place = shared / "data" / "tofu", shared / "testbed" / "tofu-mini"
    forget, retain = facts_of(read(data / "forget.json"))[:facts], facts_of(read(data / "retain_more.json"))
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    refusals = [line.strip() for line in (data / "refusals.txt").read_text(encoding="utf-8").split("\n")]
    refusals = [line for line in refusals if line]
    expected = cost_of(model, expected_work(model, tokenizer, forget, retain, refusals=refusals))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        erased = erase(model, tokenizer, forget, retain, refusals=refusals)
        took = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = erased.erasure.seconds
    longest = max(seconds, key=lambda name: seconds[name])
    size = sum(part.numel() * part.element_size() for name, part in erased.named_parameters() if ".unierase_" in name)
    cells = [
        str(facts),
        f"{took:.0f} s",
        f"{expected.seconds or 0:.0f} s",
        f"{longest}, {seconds[longest] / sum(seconds.values()):.0%}",
        expected.dominant.name,
        with_unit(grown * (1 if sys.platform == "darwin" else 1024), "B"),
        with_unit(expected.peak_bytes - expected.model_bytes, "B"),
        with_unit(size, "B"),
        with_unit(expected.adapter_bytes, "B"),
    ]
    return f"| {' | '.join(cells)} |"


def measured(shared: Path, counts: list[int]) -> None:
    if not (shared / "testbed" / "tofu-mini").is_dir():
        print(f"skipped: there is no testbed in {shared / 'testbed'}; --shared names its folder")
        return
    print("\n| facts | time | expected | most of it in | expected | memory more | expected | adapter | expected |")
    print("|---:|---:|---:|---|---|---:|---:|---:|---:|")
    for count in counts:  # in a process of its own, because memory that was used stays counted
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(erase_and_measure, (shared, count)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=lambda text: [int(part) for part in text.split(",")], default=[])
    shared = Path(__file__).parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the testbed")
    options = parser.parse_args()
    computed()
    if options.measure:
        measured(options.shared, options.measure)


if __name__ == "__main__":
    main()
