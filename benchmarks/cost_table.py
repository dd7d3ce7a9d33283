"""Prints what erasing from models of three sizes will cost, as a markdown table, computed and not measured.

    python benchmarks/cost_table.py

The sizes are those of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B in bf16; nothing is loaded. A run is one of recipe
`gate` with its default settings, without retain facts of one's own, and holds at the second retain weight.
"""

from __future__ import annotations

from peft_unierase.engine.cost import Sizes, estimate_cost, with_unit

MODELS = {
    "1B": Sizes(2048, 8192, 16, 128_256, heads=32, kv_heads=8, head_dim=64, tied=True),
    "8B": Sizes(4096, 14_336, 32, 128_256, heads=32, kv_heads=8, head_dim=128),
    "70B": Sizes(8192, 28_672, 80, 128_256, heads=64, kv_heads=8, head_dim=128),
}
FACTS = (10, 40, 100, 400)


def main() -> None:
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


if __name__ == "__main__":
    main()
