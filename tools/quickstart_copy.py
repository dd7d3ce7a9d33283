"""README's copy of what `unierase quickstart` prints. `python tools/quickstart_copy.py` writes it anew.

The copy is shortened: `…` stands for lines that are left out. All others are lines of the quickstart, and
`tests/test_docs.py` compares them, but for what the outcome decides: figures, what the erased model answers, which
attacks come first, and the verdict.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from peft_unierase.checking import ATTACKS, LEVELS

README = Path(__file__).resolve().parents[1] / "README.md"
COPY = re.compile(r"(^It prints what changed.*?^```text\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
LEFT_OUT = "…"
FIGURE = re.compile(r"[+-]?\d[\d,]*(\.\d+)?|(?<!\S)-(?!\S)")


def copy_in(page: str) -> str:
    """The copy in README's text.

    Raises:
        ValueError: There is none.
    """
    if not (found := COPY.search(page)):
        raise ValueError(f"{README} has no copy of the quickstart's output: a block of `text` after 'It prints'")
    return found[2]


def renewed(copy: str, printed: str) -> str:
    """The copy with the lines that were printed now.

    Args:
        copy: Lines as the quickstart printed them once, and `…` for those that are left out.
        printed: All that it prints now.

    Raises:
        ValueError: A line of the copy is not printed at that place.
    """
    lines = [line for line in printed.splitlines() if line.strip()]
    new, place, skips = [], 0, False
    for line in copy.splitlines():
        if line.strip() == LEFT_OUT:
            skips = True
        elif line.strip():
            while skips and place < len(lines) and shape(lines[place]) != shape(line):
                place += 1
            if place == len(lines) or shape(lines[place]) != shape(line):
                now = repr(lines[place]) if place < len(lines) else "nothing"
                raise ValueError(f"README shows {line!r} where `unierase quickstart` prints {now}")
            line, place, skips = lines[place], place + 1, False
        new.append(line)
    if place < len(lines) and not skips:
        raise ValueError(f"README ends before {lines[place]!r}, which `unierase quickstart` prints")
    return "".join(f"{line}\n" for line in new)


def shape(line: str) -> str:
    """A line without what the outcome decides."""
    words = line.split()
    if not line.strip(" -"):
        return "rule"
    if words[0] in {attack.name for attack in ATTACKS}:
        return "attack"
    if line.strip() in LEVELS:
        return "verdict"
    if words[0] == "after":
        return "after"
    return " ".join(FIGURE.sub("#", line).split())


def main() -> None:
    """Run the quickstart and write its lines to README."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from unierase_command import main; main()", "quickstart"]
        ended = subprocess.run([*command, "-o", f"{folder}/erasure"], stdout=subprocess.PIPE, text=True, check=True)
    page = README.read_text(encoding="utf-8")
    copy = renewed(copy_in(page), ended.stdout)
    README.write_text(COPY.sub(lambda found: found[1] + copy, page, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
