"""The attacks, in the order in which they run and are shown: those of the fast check first.

Each file holds attacks of one kind and lists them in its `ATTACKS`. A new kind is a file that is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import InputError
from . import membership, probe, prompting, relearn, sampling, token, updates, weights, wordings
from .attack import GREEDY, Attack

KINDS = (wordings, token, weights, updates, prompting, sampling, probe, relearn, membership)
ATTACKS: tuple[Attack, ...] = tuple(
    sorted((attack for kind in KINDS for attack in kind.ATTACKS), key=lambda attack: not attack.fast)
)


def chosen(attacks: str | Sequence[str | Attack | Callable[..., object]]) -> list[Attack]:
    """Attacks by name: `all`, `fast`, names, or functions of one's own, called with target and case.

    The plain question is always among them: without it there is no verdict.

    Raises:
        ValueError: There is none of a name; says which there are.
    """
    names = [part.strip() for part in attacks.split(",") if part.strip()] if isinstance(attacks, str) else list(attacks)
    known = {attack.name: attack for attack in ATTACKS}
    found: dict[str, Attack] = {GREEDY: known[GREEDY]}
    for name in names:
        if name in ("all", "fast"):
            found.update({a.name: a for a in ATTACKS if a.fast or name == "all"})
        elif isinstance(name, Attack):
            found[name.name] = name
        elif callable(name):
            own = getattr(name, "__name__", "own").replace("_", "-")
            found[own] = Attack(own, own.replace("-", " "), name, against=GREEDY)  # type: ignore[arg-type]
        elif name in known:
            found[name] = known[name]
        else:
            raise InputError(f"there is no attack {name!r}; there are all, fast, {', '.join(known)}")
    return list(found.values())
