"""The page of `unierase demo` as a Space on the Hub.

Name the erasures to show. Without any, two people are erased from the demo model when the Space starts, which takes
about a minute. What visitors may do is written in docs/guides/demo-page.md.
"""

from __future__ import annotations

import sys

from unierase_command import main

ERASURES: list[str] = []  # Hub ids of erasures of one base: ["org/erase-a", "org/erase-b"]
FACTS: list[str] = []  # what visitors may see of it: ["--forget", "forget.jsonl", "--retain", "keep.jsonl"]
ADDRESS = ["--host", "0.0.0.0", "--port", "7860"]  # a Space's visitors come from outside

sys.argv = ["unierase", "demo", *ERASURES, *FACTS, *ADDRESS]
main()
