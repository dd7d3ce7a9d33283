"""Prints on which vocabulary row [UNL] sits for each kind of base, and why, as a markdown table.

    python benchmarks/vocabulary_rows.py [FOLDER_OR_ID ...]

Tokenizers are enough: by default the small ones in `tests/tokenizers_of.py`, which have the kinds of tokens that
those of real models have, otherwise those of the named models. Where a named folder holds the embedding it is read
too, to tell which special tokens are the least trained. Exits with 1 if a base has no row, or its tokenizer cannot be
given a token for it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from peft_unierase.engine.rehearsal import rehearse
from peft_unierase.engine.spare_row import SPARE_TOKENS, SpareRow, spare_rows

TESTS = Path(__file__).parents[1] / "tests"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = [
    "base",
    "rows",
    "tokens",
    "row chosen",
    "its token",
    "[UNL] is written",
    "why",
    "further rows",
    "tokenizer keeps it",
]


def line(name: str, rows: int, tokenizer: Any, embedding: torch.Tensor | None = None) -> tuple[list[str], bool]:
    """The cells of one base, and whether all is well with it."""
    found = list(spare_rows(rows, tokenizer, embedding=embedding))
    first = [name, f"{rows:,}", f"{len(tokenizer):,}"]
    if not found:
        return [*first, "**none**", *[""] * (len(HEADS) - 4)], False
    wrong = rehearse(tokenizer, found[: SPARE_TOKENS + 1])
    return [*first, *chosen(found[0]), further(found[1:]), f"**no**: {wrong}" if wrong else "yes"], wrong is None


def chosen(row: SpareRow) -> list[str]:
    return [f"{row.token_id:,}", f"`{row.was}`" if row.was else "none", f"`{row.text}`", row.source]


def further(rows: list[SpareRow]) -> str:
    """How many of each source."""
    counts = Counter(row.source for row in rows)
    return f"{len(rows)}" + (f" ({', '.join(f'{count} {source}' for source, count in counts.items())})" if rows else "")


def named(source: str) -> tuple[int, Any, torch.Tensor | None]:
    """Rows, tokenizer and, where it is at hand, embedding of a model."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = AutoConfig.from_pretrained(source).get_text_config().vocab_size
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                if key.endswith(EMBEDDINGS):
                    return rows, tokenizer, opened.get_tensor(key)
    return rows, tokenizer, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="FOLDER_OR_ID", help="models whose tokenizers to look at")
    options = parser.parse_args()
    if options.models:
        bases: Any = ((source, *named(source)) for source in options.models)
    else:
        sys.path.insert(0, str(TESTS))
        from tokenizers_of import KINDS

        made = ((name, make()) for name, make in KINDS.items())
        bases = ((name, kind.rows, kind.tokenizer) for name, kind in made)
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    well = True
    for base in bases:
        cells, good = line(*base)
        well &= good
        shown = (cell.replace("|", "\\|") for cell in cells)
        print(f"| {' | '.join(shown)} |", flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
