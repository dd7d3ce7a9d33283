"""Prints what becomes of an erasure in every architecture of the tests' matrix, as a markdown table.

    python benchmarks/architectures.py [--only Llama "Llama, tied" GPT-2]

Every base is a model of random weights, a quarter of a million of them, built from its configuration. The table tells
of the code and not of how well models of that kind forget. It takes about a minute. The matrix and the life that each
erasure goes through stand in `tests/architectures.py`. Exits with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from architectures import Architecture, Life  # that of the tests, beside which this one is found too

TESTS = Path(__file__).parents[1] / "tests"
HEADS = [
    "architecture",
    "head",
    "down-projection",
    "projections of an MLP",
    "layers found",
    "live and merged differ by",
]
HEADS += ["off: the base", "reloaded: the same", "unmerged: the base", "declines", "seconds"]


def row(architecture: Architecture, life: Life) -> list[str]:
    """The cells of one line."""
    return [
        architecture.name,
        ("tied" if life.tied else "untied") + (", with bias" if life.head_bias else ""),
        life.projection,
        ", ".join(f"`{name}`" for name in life.projections),
        str(len(life.found)),
        f"{life.merged:.1e}",
        yes(life.off),
        yes(life.reloaded),
        yes(life.unmerged),
        yes(life.declined == 1.0 and life.declined_else == 0.0),
        f"{life.seconds[0]:.1f}",
    ]


def yes(true: bool) -> str:
    return "yes" if true else "**no**"


def as_it_must_be(life: Life) -> bool:
    exact = life.off and life.reloaded and life.unmerged and life.plain and life.finite
    return exact and life.merged <= 1e-4 and (life.declined, life.declined_else) == (1.0, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures alone")
    options = parser.parse_args()

    sys.path.insert(0, str(TESTS))  # before this folder, which has a file of the same name
    from architectures import ARCHITECTURES, live_through
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    chosen = [each for each in ARCHITECTURES if not options.only or each.name in options.only]
    print(f"| {' | '.join(HEADS)} |")
    print(f"|---|---|---|---|---:|---:|{'---|' * 4}---:|")
    well = True
    for architecture in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                life = live_through(architecture, Path(folder))
            except Exception as error:  # one that fails must not hide the others
                print(f"| {architecture.name} | fails: {type(error).__name__}: {error} |", flush=True)
                well = False
                continue
        print(f"| {' | '.join(row(architecture, life))} |", flush=True)
        well = well and as_it_must_be(life)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
