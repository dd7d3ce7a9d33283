"""What a model gives that knows the world and not these facts: the base, asked the same about something else."""

from __future__ import annotations

from collections.abc import Sequence

from .attacks import ATTACKS
from .attacks.attack import CHANCE, OWN, Attack, NotApplicable
from .case import Case
from .renamed import renamed_cases


class References:
    """The references of a case's attacks. What several attacks take is asked once.

    Args:
        case: What is asked.
        attacks: All that will be run.
    """

    def __init__(self, case: Case, attacks: Sequence[Attack]) -> None:
        self.cases = renamed_cases(case)
        self._attacks = {attack.name: attack for attack in (*ATTACKS, *attacks)}
        self._found: dict[str, list[float]] = {}

    @property
    def questions(self) -> int:
        """How many questions about something else there are."""
        return sum(len(case.forget) for case in self.cases)

    def of(self, attack: Attack) -> list[float]:
        """What an attack gets out of the base about something else: one figure a question, none without a reference."""
        if attack.against == CHANCE:
            return []
        if attack.against != OWN:
            return self.of(self._attacks[attack.against])
        if attack.name not in self._found:
            self._found[attack.name] = self._asked(attack)
        return self._found[attack.name]

    def _asked(self, attack: Attack) -> list[float]:
        leaks: list[float] = []
        for case in self.cases[: attack.draws]:
            try:
                leaks += attack.found(case.base, case).leaks
            except NotApplicable:
                continue
        return leaks
