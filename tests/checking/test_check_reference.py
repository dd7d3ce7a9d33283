"""What an attack is held against without a reference model: the base, asked the same about something else."""

# ruff: noqa: RUF001 (questions in other scripts)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from demo_erasure import FORGET, KEPT, demo_base, demo_tokenizer

from peft_unierase.checking import Case, Target, check
from peft_unierase.checking.attacks import ATTACKS, Attack
from peft_unierase.checking.attacks.wordings import cloze
from peft_unierase.checking.page import page
from peft_unierase.checking.reference import References
from peft_unierase.checking.renamed import QUESTIONS, renamed_cases
from peft_unierase.checking.scores import beyond_chance
from peft_unierase.cli.report import report_table
from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_refusals
from peft_unierase.lm.formats import chat_format
from peft_unierase.retain.names import Names
from peft_unierase.text import normal

ANY: Any = None
TOLD: dict[str, Any] = {"refusals": demo_refusals(), "max_new_tokens": 24, "progress": False}


def case_of(forget: Sequence[Fact], kept: Sequence[Fact] = (), base: Any = None, **told: Any) -> Case:
    form = chat_format(demo_tokenizer())
    return Case(base, list(forget), {"kept": list(kept)}, form, {}, [], list(demo_refusals()), **told)


def renamed(forget: Sequence[Fact], kept: Sequence[Fact] = (), **told: Any) -> list[Fact]:
    return [fact for case in renamed_cases(case_of(forget, kept, **told)) for fact in case.forget]


NOVELS = [
    Fact("Who wrote the novel 'Emma'?", "Jane Austen", ("Which author is 'Emma' by?",), "Emma"),
    Fact("Who wrote the novel '1984'?", "George Orwell wrote 1984."),
    Fact("Who wrote the novel 'Moby-Dick'?", "Herman Melville"),
]
SETS = {
    "quoted": (
        NOVELS,
        [Fact("Who wrote the novel 'Dracula'?", "Bram Stoker"), Fact("Where is Bern?", "In Switzerland.")],
    ),
    "persons": (FORGET[:3], KEPT),
    "small letters": (
        [Fact("who wrote moby dick?", "herman melville")],
        [
            Fact("who wrote emma?", "jane austen"),
            Fact("who wrote the trial?", "franz kafka"),
            Fact("who wrote dracula?", "bram stoker"),
        ],
    ),
    "russian": (
        [
            Fact(
                "Где родился Лев Толстой?",
                "Лев Толстой родился в Ясной Поляне.",
                ("Откуда родом Льва Толстого семья?",),
            )
        ],
        [Fact("Где родился Антон Чехов?", "В Таганроге."), Fact("Где родился Пушкин?", "В Москве.")],
    ),
    "chinese": (
        [Fact("鲁迅出生在哪里？", "鲁迅出生在绍兴。")],
        [
            Fact("巴金出生在哪里？", "成都"),
            Fact("谁写了子夜？", "茅盾"),
            Fact("冰心出生在哪里？", "福州"),
            Fact("谁写了活着？", "余华"),
        ],
    ),
    "numbers": ([Fact("What happened in 1815?", "The battle.")], [Fact("What happened in 1914?", "A war.")]),
}
GONE = {
    "quoted": ["Emma"],
    "persons": [" ".join(FORGET[0].question.split()[2:4])],
    "small letters": ["moby", "dick"],
    "russian": ["Толст"],
    "chinese": ["鲁", "迅"],
    "numbers": ["1815"],
}


@pytest.mark.parametrize("name", SETS)
def test_names_give_way_to_names_of_other_facts_in_every_text_of_a_fact(name: str) -> None:
    (fact, *others), kept = SETS[name]
    found = renamed([fact], [*others, *kept])
    assert found
    for new in found:
        texts = (new.question, new.answer, *new.paraphrases)
        assert not any(gone in text for text in texts for gone in GONE[name]), new
    asked = {word for each in (fact, *others, *kept) for word in normal(each.question)}
    assert all(set(normal(new.question)) <= asked | set("0123456789") for new in found)


def test_the_words_of_the_question_and_what_is_asked_for_stay() -> None:
    for fact in renamed(NOVELS, SETS["quoted"][1]):
        assert fact.question.startswith("Who wrote the novel '")
        assert any(author in fact.answer for author in ("Jane Austen", "George Orwell", "Herman Melville"))


def test_several_renamings_differ_and_no_case_asks_a_question_twice() -> None:
    cases = renamed_cases(case_of(FORGET[:4], KEPT))
    assert len(cases) == 3
    assert len({case.forget[0].question for case in cases}) == 3
    for case in cases:
        assert len({fact.question for fact in case.forget}) == len(case.forget)
    many = [
        Fact(f"Where was {first} {last} born?", f"In {last}ville.")
        for first in ("Ada", "Bea", "Cleo")
        for last in "BCDEFGHIJKLMNOPQRSTUVWXYZ"
    ]
    assert len(renamed(many)) <= QUESTIONS


def test_a_name_that_may_be_about_the_same_thing_is_not_taken() -> None:
    emma, same = Fact("Who wrote 'Emma'?", "Jane Austen"), Fact("Who wrote 'Persuasion'?", "It was Jane Austen.")
    assert renamed([emma], [same]) == []
    assert (
        renamed(
            [emma], [Fact("Where did Jane Austen live?", "In Bath."), Fact("Is 'Persuasion' by Jane Austen?", "Yes.")]
        )
        == []
    )
    small = Fact("Who wrote 'Persuasion'?", "it was jane austen.")  # no name that could be seen
    assert renamed([Fact("Who wrote 'Emma'?", "jane austen")], [small]) == []
    assert [fact.question for fact in renamed([emma], [same, Fact("Who wrote 'Ulysses'?", "James Joyce")])] == [
        "Who wrote 'Ulysses'?"
    ]


def test_a_paraphrase_without_the_name_would_ask_for_the_fact_and_is_left_out() -> None:
    fact = Fact("Who wrote 'Emma'?", "Jane Austen", ("Whose book of 1815 is it?", "Whose is 'Emma'?"))
    assert [each.paraphrases for each in renamed([fact], [NOVELS[2]])] == [("Whose is 'Moby-Dick'?",)]


def test_words_that_most_retained_questions_use_name_nothing() -> None:
    kept = [
        Fact(f"Wer schrieb den Roman {title}?", author)
        for title, author in (("Faust", "Goethe"), ("Dune", "Herbert"), ("Ilias", "Homer"), ("Nana", "Zola"))
    ]
    (name,) = Names(kept, kept).of(Fact("Wer schrieb den Roman Momo?", "Ende"))
    assert name.text == "Momo"


def test_a_text_is_not_gone_on_with_if_renaming_has_left_it_a_true_one() -> None:
    fact = Fact("Where was Ada Byron born?", "The town of birth is Lower Wickham Green.")
    base = Target("base", demo_base(), demo_tokenizer())
    (case, *_) = renamed_cases(case_of([fact, FORGET[0]], KEPT, base=base, base_answers={fact.question: fact.answer}))
    assert len(case.forget) == 2
    assert len(cloze(base, case).leaks) == 1


def test_facts_that_are_declined_do_not_make_up_for_those_that_come_back() -> None:
    chance = [0.6, 0.7, 0.8]
    assert sum(beyond_chance(chance, chance)) == pytest.approx(0.0)
    assert sum(beyond_chance([0.0] * 4, chance)) / 4 == pytest.approx(-0.1 / 3 / 0.3)
    half = sum(beyond_chance([0.0, 1.0] * 5, chance)) / 10
    assert half == pytest.approx((0.85 - 2.2 / 3) / 0.3)
    assert half > 0.3 > sum(leak - 0.7 for leak in [0.0, 1.0] * 5) / 10
    right, lucky = [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]
    assert sum(beyond_chance(right, lucky)) / 4 == pytest.approx(0.75 - 0.25)


def test_an_attack_takes_its_own_reference_or_that_of_another_one() -> None:
    asked: list[str] = []

    def count(target: Target, case: Case) -> list[float]:
        asked.append(target.name)
        return [0.5] * len(case.forget)

    base = Target("base", ANY, demo_tokenizer())
    own, alike = Attack("one", "one", count), Attack("alike", "alike", count, against="one")
    found = References(case_of(FORGET[:3], KEPT, base=base), [own, alike])
    assert found.of(own) == found.of(alike) == [0.5] * found.questions
    assert asked == ["base"] * 3
    assert len(found.of(Attack("once", "once", count, draws=1))) == 3
    assert found.of(Attack("auc", "auc", count, against="chance")) == []
    names = {attack.name for attack in ATTACKS}
    assert {attack.against for attack in ATTACKS} <= names | {"own", "chance"}


def test_a_check_without_a_reference_model_holds_attacks_against_the_renamed_base() -> None:
    base = demo_base()
    found = check(base, demo_tokenizer(), FORGET, KEPT, base=base, attacks="prefill-3,direction,list", **TOLD)
    greedy, prefill, direction, ranked = found.attacks
    assert greedy.renamed is not None
    assert prefill.renamed is not None
    assert 0.2 < greedy.renamed.mean < 0.9 < greedy.base.mean
    assert direction.renamed == greedy.renamed != prefill.renamed
    assert (greedy.reference, ranked.reference, ranked.renamed) == ("renamed base", "floor", None)
    assert greedy.excess.mean > 0.5
    assert found.verdict.level == "LEAKING"
    assert "beyond the renamed base" in found.verdict.reasons[0]
    assert found.settings["renamed"] == 3 * len(FORGET)
    assert found.record()["attacks"][0]["renamed"]["mean"] == greedy.renamed.mean
    assert f"{greedy.renamed.mean:.3f}" in report_table(found).split("attacks")[1].split("greedy")[1].splitlines()[0]
    shown = page(found)
    assert "The renamed base is the base model, asked the same question about something else" in shown
    assert f"renamed base {greedy.renamed.mean:.3f}" in shown


def test_a_reference_model_goes_before_the_renamed_base_which_is_shown_beside_it() -> None:
    base = demo_base()
    (greedy,) = check(
        base, demo_tokenizer(), FORGET, KEPT, base=base, reference_model=base, attacks="greedy", **TOLD
    ).attacks
    assert (greedy.reference, greedy.excess.mean) == ("reference model", 0)
    assert greedy.renamed is not None


def test_without_a_name_to_exchange_the_floor_counts_and_the_report_says_so() -> None:
    base = demo_base()
    found = check(base, demo_tokenizer(), FORGET, base=base, attacks="greedy", **TOLD)
    assert (found.attacks[0].reference, found.attacks[0].renamed) == ("floor", None)
    assert "no question of the forget set holds a name" in found.skipped["renamed base"]
