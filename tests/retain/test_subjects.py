"""The subject of a question: found where it is clear, never guessed, and located at its last token."""

from __future__ import annotations

from typing import Any

import pytest

from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_facts
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import PromptFormat, default_formats
from peft_unierase.retain.subjects import find_span, find_subjects, subject_position


def subject(question: str, answer: str = "Yes.", given: str | None = None) -> str | None:
    return find_subjects([Fact(question, answer, subject=given)])[0]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Where was Nesko Corquist born?", "Nesko Corquist"),
        ("What did Jaime Vasconcelos's mother do?", "Jaime Vasconcelos"),
        ("What did Jaime Vasconcelos\u2019s mother do?", "Jaime Vasconcelos"),
        ("Where did Basil Mahfouz Al-Kuwaiti study?", "Basil Mahfouz Al-Kuwaiti"),
        ("Is Aurelio Beltrán a poet?", "Aurelio Beltrán"),
        ("How old is Émile Zoë Ørsted?", "Émile Zoë Ørsted"),
        ("When did Sinéad O'Brien retire?", "Sinéad O'Brien"),
        ("Which of the books did J. K. Larsen write in May?", "J. K. Larsen"),
        ("What was George R.R. Marten's first job?", "George R.R. Marten"),
        ("Did Ludwig van der Meer paint?", "Ludwig van der Meer"),
        ("Who wrote 'The House of Salt'?", "The House of Salt"),
        ("Who wrote \u201cThe House of Salt\u201d in those days?", "The House of Salt"),
        ("Tae-ho Park lives where?", "Tae-ho Park"),
        ("In the end, what became of Ana?", "Ana"),
        ("Tell me about Bo. Was he rich?", "Bo"),
        ("What is photosynthesis?", None),
        ("Who is this particular author?", None),
        ("Can you say when? Could I know?", None),
        ("Photosynthesis is what?", None),
        ("", None),
    ],
)
def test_a_single_question(question: str, found: str | None) -> None:
    assert subject(question) == found


def test_what_several_facts_share_wins_over_what_is_longer() -> None:
    facts = [
        Fact("What did Hina Ameen write about in Manual of Mineralogy?", "Rocks."),
        Fact("Where does Hina Ameen live?", "In Karachi."),
        Fact("Could you tell me about the Great Prize Hina Ameen won?", "It is old."),
        Fact("Hina Ameen studied what?", "Geology."),
    ]
    assert find_subjects(facts) == ["Hina Ameen"] * 4


def test_a_question_that_asks_for_the_subject_has_none() -> None:
    facts = [
        Fact("Who was born in Kuwait City?", "It was Basil Mahfouz."),
        Fact("What does Basil Mahfouz write?", "Novels."),
        Fact("Where does Basil Mahfouz live?", "In Kuwait City."),
    ]
    assert find_subjects(facts) == [None, "Basil Mahfouz", "Basil Mahfouz"]


def test_a_kind_of_thing_is_not_taken_for_the_subject() -> None:
    facts = [Fact("Where did the LGBTQ+ author Bo live?", "Here."), Fact("Who is an LGBTQ+ poet?", "Me.")]
    assert find_subjects(facts)[0] == "Bo"


@pytest.mark.parametrize(
    ("given", "found"),
    [("snow", "snow"), ("SNOW", "snow"), ("colour", "colour"), ("ice", None)],
)
def test_a_given_subject_is_taken_as_the_question_writes_it_or_not_at_all(given: str, found: str | None) -> None:
    assert subject("What colour is snow on Mont Blanc?", given=given) == found


def test_the_last_occurrence_counts_and_whole_words_come_first() -> None:
    assert find_span("Ana met Ana at Bananaland", "Ana") == (8, 11)
    assert find_span("Anagrams of Anatolia", "ana") == (12, 15)
    assert find_span("ana, or Ana?", "Ana") == (8, 11)
    assert find_span("nobody", "Ana") is None


class Slow:
    """A tokenizer that cannot tell where its tokens lie."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        assert not options.get("return_offsets_mapping")
        return self.tokenizer(text, **options)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


@pytest.mark.parametrize("number", [0, 1], ids=["chat", "plain"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_the_position_is_that_of_the_subjects_last_token(tokenizer: Any, number: int, fast: bool) -> None:
    form = default_formats(tokenizer)[number]
    for row in demo_facts()[::7]:
        question, name = row["question"], row["subject"]
        if name not in question:
            continue
        position = subject_position(tokenizer if fast else Slow(tokenizer), form, question, name)
        ids = encode(tokenizer, form.prompt(question))
        end = question.rindex(name) + len(name)
        solid = "".join(tokenizer.decode(ids[: position + 1]).split())
        assert solid.startswith("".join((form.head + question[:end]).split()))
        before = "".join(tokenizer.decode(ids[:position]).split())
        assert len(before) < len("".join((form.head + question[:end]).split()))


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_last_letter_of_several_tokens_is_read_to_its_end(tokenizer: Any, fast: bool) -> None:
    form = PromptFormat("bare", "", "", "", "")
    position = subject_position(tokenizer if fast else Slow(tokenizer), form, "Was it 雪?", "雪")
    ids = encode(tokenizer, "Was it 雪?")
    assert tokenizer.decode(ids[position:]) != "雪?"
    assert "雪" in tokenizer.decode(ids[: position + 1])


def test_a_subject_that_is_not_there_has_no_position(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="'Bo' does not occur in the question 'Who\\?'"):
        subject_position(tokenizer, default_formats(tokenizer)[0], "Who?", "Bo")
