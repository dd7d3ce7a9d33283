"""Plan from an author's name alone, erase what was planned, and ask what the testbed's forget set asks about them.

    python benchmarks/planning.py [--authors 0,5,11] [--count 192] [--json out.json]

Prints for each author how much of what the forget set knows the plan found (facts whose answer a planned one gives,
ROUGE-L recall of at least 0.5), and what the erased model still answers to the forget set's own questions, which it
never saw. Exits with 1 if less than 60 % is found or more than 0.25 is left. The testbed is not part of the package;
where it is missing the script says so and exits with 0.
"""

from __future__ import annotations

import sys
import time
from statistics import fmean

from common import Testbed, parser_of, recall_of, save

from peft_unierase import erase
from peft_unierase.planning import plan
from peft_unierase.retain.subjects import sure_subjects
from peft_unierase.text import recall

AN_AUTHOR = 20  # facts of each in the forget set
SAME = 0.5  # recall from which on two answers say the same
FOUND, LEFT = 0.6, 0.25


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--authors", default="0,5,11", help="which, by their order in the forget set")
    parser.add_argument("--count", type=int, default=192, help="questions about each, in each of two rounds")
    options = parser.parse_args()
    testbed = Testbed(options.shared, options.device_map)
    if not testbed.there():
        return 0

    tokenizer = testbed.tokenizer()
    forget, kept = testbed.facts("forget"), testbed.facts("retain")[::4]

    rows = []
    print("| author | planned | of the forget set found | left of it | retain, of the base's | plan s | erase s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for number in map(int, options.authors.split(",")):
        own = forget[number * AN_AUTHOR : (number + 1) * AN_AUTHOR]
        named = [subject for subject in sure_subjects(own) if subject]
        name = max(named, key=named.count)
        model = testbed.model()
        before = recall_of(model, tokenizer, kept)
        begun = time.perf_counter()
        found = plan(model, tokenizer, name, count=options.count, seed=options.seed, progress=False)
        planned = time.perf_counter() - begun
        given, near = ([each.fact for each in part] for part in (found.forget, found.retain))
        share = fmean(max(recall(fact.answer, each.answer) for each in given) >= SAME for fact in own)
        begun = time.perf_counter()
        told = {"settings": options.settings, "samples_cache": options.samples_cache or False, "seed": options.seed}
        erased = erase(model, tokenizer, given, near, progress=False, **told)
        took = time.perf_counter() - begun
        left, spared = recall_of(erased, tokenizer, own), recall_of(erased, tokenizer, kept) / before
        rows.append({"author": name, "planned": len(given), "found": share, "left": left, "kept": spared})
        cells = [name, str(len(given)), f"{share:.0%}", f"{left:.3f}", f"{spared:.3f}", f"{planned:.0f}", f"{took:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    save(options.json, rows)
    return int(any(row["found"] < FOUND or row["left"] > LEFT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
