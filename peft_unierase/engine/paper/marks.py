"""Where each forget prompt is edited: at its subject's last token, or at the answer start where it has no subject."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ...retain.subjects import find_subjects, subject_position
from ..run_context import RunContext


def find_marks(run: RunContext) -> tuple[list[int], int]:
    """The position of each forget prompt's key, formats side by side as in `RunContext.prompts`.

    Warns with `ErasureWarning` of facts without a subject and of subjects that are not in their question; it names
    their numbers, from 1, and not their text.

    Returns:
        The positions, and how many facts are edited at the answer start.
    """
    subjects = find_subjects(run.forget)
    missing = [number for number, subject in enumerate(subjects) if subject is None]
    _warn(
        run,
        [n for n in missing if not run.forget[n].subject],
        "have no subject that could be found in the question",
    )
    _warn(run, [n for n in missing if run.forget[n].subject], "give a subject that does not occur in the question")
    marks = []
    for fact, subject in zip(run.forget, subjects, strict=True):
        for form in run.formats:
            if subject is None:
                marks.append(len(run.encode(form.prompt(fact.question))) - 1)
            else:
                marks.append(subject_position(run.tokenizer, form, fact.question, subject))
    return marks, len(missing)


def _warn(run: RunContext, numbers: Sequence[int], reason: str, most: int = 20) -> None:
    from ...errors import ErasureWarning

    if not numbers:
        return
    listed = ", ".join(str(number + 1) for number in numbers[:most]) + (", …" if len(numbers) > most else "")
    warnings.warn(
        f"{len(numbers)} of {len(run.forget)} forget facts {reason} (numbers {listed}): they are edited at the answer "
        "start, where the whole question has been read. To have them edited at the subject, give it in the field "
        "`subject`, worded as in the question",
        ErasureWarning,
        stacklevel=5,
    )
