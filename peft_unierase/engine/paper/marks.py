"""Where each forget prompt is edited: at its subject's last token, or at the door where it has no subject."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ...retain.subjects import find_subjects, subject_position
from ..bench import Bench


def find_marks(bench: Bench) -> tuple[list[int], int]:
    """The position of each forget prompt's key, formats side by side as in `Bench.prompts`.

    Warns with `ErasureWarning` of facts without a subject and of subjects that are not in their question; it names
    their numbers, from 1, and not their text.

    Returns:
        The positions, and how many facts are edited at the door.
    """
    subjects = find_subjects(bench.forget)
    missing = [number for number, subject in enumerate(subjects) if subject is None]
    _warn(
        bench,
        [n for n in missing if not bench.forget[n].subject],
        "have no subject that could be found in the question",
    )
    _warn(bench, [n for n in missing if bench.forget[n].subject], "give a subject that does not occur in the question")
    marks = []
    for fact, subject in zip(bench.forget, subjects, strict=True):
        for form in bench.formats:
            if subject is None:
                marks.append(len(bench.encode(form.prompt(fact.question))) - 1)
            else:
                marks.append(subject_position(bench.tokenizer, form, fact.question, subject))
    return marks, len(missing)


def _warn(bench: Bench, numbers: Sequence[int], reason: str, most: int = 20) -> None:
    from ...errors import ErasureWarning

    if not numbers:
        return
    listed = ", ".join(str(number + 1) for number in numbers[:most]) + (", …" if len(numbers) > most else "")
    warnings.warn(
        f"{len(numbers)} of {len(bench.forget)} forget facts {reason} (numbers {listed}): they are edited at the door, "
        "where the whole question has been read. To have them edited at the subject, give it in the field `subject`, "
        "worded as in the question",
        ErasureWarning,
        stacklevel=5,
    )
