"""What a base asked itself, in a file that people read and edit: JSON lines of question, answer and kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.facts import Fact
from ..errors import InputError
from ..storage.plain import read_text
from ..storage.whole import write_text

GENERAL, NEIGHBOUR = "general", "neighbour"


@dataclass(frozen=True)
class Samples:
    """What a base asked itself.

    Attributes:
        general: About anything.
        near: Near neighbours of a forget set: questions of the same form about something else.
    """

    general: list[Fact] = field(default_factory=list)
    near: list[Fact] = field(default_factory=list)


def write_samples(path: Path, samples: Samples) -> None:
    """Write samples to a file, whole or not at all."""
    kinds = ((GENERAL, samples.general), (NEIGHBOUR, samples.near))
    rows = [{"kind": kind, "question": f.question, "answer": f.answer} for kind, facts in kinds for f in facts]
    write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def read_samples(path: str | Path) -> Samples:
    """Read a file that `write_samples` wrote, as people have edited it.

    Raises:
        ValueError: There is no such file, or a line of it is no sample; says which and why.
    """
    from ..storage.schema import Sample
    from ..storage.values import parsed

    samples = Samples()
    kinds = {GENERAL: samples.general, NEIGHBOUR: samples.near}
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read samples in {path} ({error}); give a file that `samples_out=` wrote (on the command line "
            "--samples-out)"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = parsed(Sample, line, "it is none")
        except ValueError as error:
            raise InputError(
                f"{path}, line {number} is no sample ({error}): {line.strip()[:80]!r}; write "
                f'it like {{"kind": "{GENERAL}" or "{NEIGHBOUR}", "question": "…", "answer": "…"}}, or take it out'
            ) from error
        kinds[sample.kind].append(Fact(sample.question, sample.answer))
    return samples


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, "".join(f"{line}\n" for line in lines))
