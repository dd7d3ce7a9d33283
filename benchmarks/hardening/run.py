"""Attacks the package and counts: `make hardening`. Exits with 1 if a promise was broken.

python benchmarks/hardening/run.py                              # all of it, under 20 minutes on two cores
python benchmarks/hardening/run.py --part kills --cases 16      # one part, with fewer cases
python benchmarks/hardening/run.py --part adapters --only pipe  # cases whose name holds a text
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "guard")]

import adapters  # noqa: E402
import fuzz  # noqa: E402
import kills  # noqa: E402
import soak  # noqa: E402
from hub import hub_process  # noqa: E402
from tables import tables  # noqa: E402
from workshop import Tally, import_all, workshop  # noqa: E402

Part = Callable[[Tally, Path, int, int, "str | None"], None]
# What runs, with how many cases by default. Forks must come before threads, so the soak is last.
PARTS: dict[str, tuple[Part, int]] = {
    "adapters": (adapters.run, 10_000),
    "kills": (kills.run, 160),
    "fuzz": (fuzz.run, 300),
    "soak": (soak.run, 1000),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=[*PARTS], help="run this part; may be repeated")
    parser.add_argument("--cases", type=int, help="how many: adapters, kills, operations, or examples for each target")
    parser.add_argument("--only", help="a command of the kills, or what names of adapters or targets hold")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--json", type=Path, help="store the counts here")
    asked = parser.parse_args()
    found: dict[str, Tally] = {}
    with workshop() as folder, hub_process():
        import_all()
        for name in asked.part or PARTS:
            started = time.perf_counter()
            part, cases = PARTS[name]
            tally = found[name] = Tally()
            (folder / name).mkdir()
            print(f"{name} ...", flush=True)
            part(tally, folder / name, asked.cases or cases, asked.seed, asked.only)
            tally.counts["seconds"] = round(time.perf_counter() - started)
            print(f"{name}: {tally.counts['seconds']:,} seconds", flush=True)
    for name, tally in found.items():
        print(f"\n{name}: {len(tally.violations)} violations")
        for what, count in tally.counts.items():
            print(f"  {count:7,}  {what}")
        for text in tally.violations:
            print(f"  VIOLATION  {text}")
    told = {name: {"counts": each.counts, "violations": each.violations} for name, each in found.items()}
    print(f"\n{tables(told)}")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(tally.violations for tally in found.values()))


if __name__ == "__main__":
    sys.exit(main())
