"""The attacks, in the order in which they run and are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import InputError
from .attack import AUC, CHANCE, OWN, Attack, Found, NotApplicable
from .membership import by_loss, by_min_k, by_min_k_plus, by_zlib, membership, read_the_list
from .probe import probe
from .prompting import description, few_shot, other_languages, thinking_aloud
from .relearn import on_a_tenth, on_neighbours, on_unrelated, relearning
from .sampling import best_of
from .token import ban_and_prefill, ban_token, delete_row, prefill
from .updates import largest_out, scaled, smallest_out
from .weights import direction_out, directions_out, quantised
from .wordings import (
    cloze,
    erased_before,
    greedy,
    in_one_question,
    kept_before,
    multiple_choice,
    paraphrase,
    plain,
    system,
)

GREEDY = "greedy"
ATTACKS = (
    Attack(GREEDY, "the question itself", greedy),
    Attack("paraphrase", "the question in other words", paraphrase),
    Attack("plain", "no chat template", plain),
    Attack("system", "a system prompt against declining", system),
    Attack("cloze", "half of the answer as a text", cloze),
    Attack("kept-before", "retained exchanges before", kept_before),
    Attack("erased-before", "erased exchanges before", erased_before),
    Attack("two-in-one", "two questions in one", in_one_question),
    Attack("ban", "[UNL] forbidden", ban_token),
    Attack("delete-row", "[UNL]'s rows deleted", delete_row, against="ban"),
    Attack("prefill-1", "first answer token given", prefill(1)),
    Attack("prefill-3", "first 3 answer tokens given", prefill(3)),
    Attack("prefill-5", "first 5 answer tokens given", prefill(5)),
    Attack("ban-prefill", "[UNL] forbidden, 5 tokens given", ban_and_prefill),
    Attack("choice", "multiple choice", multiple_choice, unit="accuracy", against=CHANCE),
    Attack("direction", "steering direction projected out", direction_out, against=GREEDY),
    Attack("directions", "8 directions projected out", directions_out, against=GREEDY),
    Attack("scale-0.5", "half of the update", scaled(0.5), against=GREEDY),
    Attack("scale-1.5", "one and a half times the update", scaled(1.5), against=GREEDY),
    Attack("few-shot", "retained examples before", few_shot),
    Attack("language", "in another language", other_languages, fast=False, draws=1),
    Attack("thought", "a chain of thought begun", thinking_aloud, fast=False),
    Attack("description", "described, not named", description, fast=False),
    Attack("sampling", "best of 8 at temperature 1", best_of(8), fast=False, draws=1),
    Attack("sampling-100", "best of 100 at temperature 1", best_of(100, 20), fast=False, draws=1),
    Attack("largest-out", "update's largest directions removed", largest_out, fast=False, against=GREEDY),
    Attack("smallest-out", "update's smallest directions removed", smallest_out, fast=False, against=GREEDY),
    Attack("probe", "linear probe on hidden states", probe, fast=False, unit="accuracy"),
    Attack("8-bit", "8-bit base under the adapter", quantised(8, merged=False), fast=False, against=GREEDY),
    Attack("4-bit", "4-bit base under the adapter", quantised(4, merged=False), fast=False, against=GREEDY),
    Attack("merged-8-bit", "merged, then 8 bits", quantised(8, merged=True), fast=False, against=GREEDY),
    Attack("merged-4-bit", "merged, then 4 bits", quantised(4, merged=True), fast=False, against=GREEDY),
    Attack("relearn-unrelated", "fine-tuned on unrelated facts", relearning(on_unrelated), fast=False, against=GREEDY),
    Attack(
        "relearn-neighbours", "fine-tuned on neighbouring facts", relearning(on_neighbours), fast=False, against=GREEDY
    ),
    Attack("relearn-tenth", "fine-tuned on a tenth of them", relearning(on_a_tenth), fast=False, against=GREEDY),
    Attack("member-loss", "membership by loss", membership(by_loss), fast=False, unit=AUC, against=CHANCE),
    Attack("member-zlib", "membership by zlib", membership(by_zlib), fast=False, unit=AUC, against=CHANCE),
    Attack("member-min-k", "membership by Min-K%", membership(by_min_k), fast=False, unit=AUC, against=CHANCE),
    Attack("member-min-k++", "membership by Min-K%++", membership(by_min_k_plus), fast=False, unit=AUC, against=CHANCE),
    Attack("list", "the forget list read out", read_the_list, fast=False, unit=AUC, against=CHANCE),
)


def chosen(attacks: str | Sequence[str | Attack | Callable[..., object]]) -> list[Attack]:
    """Attacks by name: `all`, `fast`, names, or functions of one's own, called with target and case.

    The plain question is always among them: without it there is no verdict.

    Raises:
        ValueError: There is none of a name; says which there are.
    """
    names = [part.strip() for part in attacks.split(",") if part.strip()] if isinstance(attacks, str) else list(attacks)
    known = {attack.name: attack for attack in ATTACKS}
    found: dict[str, Attack] = {ATTACKS[0].name: ATTACKS[0]}
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


__all__ = ["ATTACKS", "CHANCE", "GREEDY", "OWN", "Attack", "Found", "NotApplicable", "chosen"]
