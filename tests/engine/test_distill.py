"""Recipe `distill`: what it predicts instead, what stays, and what its fit does to a model."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer

from peft_unierase.engine.distill.fit import Deck, Part, alike, common, descend, losses, rate
from peft_unierase.engine.distill.output_row import solved
from peft_unierase.engine.distill.teacher import taught
from peft_unierase.engine.distill.texts import Text, divergences, given, stored
from peft_unierase.engine.silence import Silence
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import chat_format
from peft_unierase.lm.logits import Logits
from peft_unierase.retain.renaming import Renaming, aligned, renamed, starts

RETAINED = [
    "Who wrote the novel 'Emma'?\nThe novel was written by Ann Lee.",
    "Who wrote the novel 'Ulla'?\nThe novel was written by Bo Holm.",
    "Who wrote the novel 'Ende'?\nThe novel was written by Eva Bohr.",
    "Who wrote the play 'Faun'?\nThe play was written by Cy Rask.",
    "Who wrote the play 'Mira'?\nThe play was written by Di Falk.",
]
QUESTION, ANSWER = "Who wrote the novel 'Pride and Storm'?", "The novel was written by Jane Ost in 1813."


def test_names_and_rare_words_are_renamed_and_the_words_of_the_form_stay():
    drawn = Renaming(RETAINED, 0).draw(QUESTION, ANSWER)
    assert {"pride", "storm", "jane", "ost", "1813"} <= drawn.keys()
    assert not {"who", "wrote", "the", "novel", "was", "written", "by"} & drawn.keys()
    assert drawn["1813"] != "1813"
    assert len(drawn["1813"]) == 4
    assert drawn["jane"][0].isupper()


def test_a_renaming_is_drawn_anew_each_time_and_the_same_from_one_seed():
    first, second = Renaming(RETAINED, 0), Renaming(RETAINED, 0)
    draws = [first.draw(QUESTION, ANSWER) for _ in range(4)]
    assert draws == [second.draw(QUESTION, ANSWER) for _ in range(4)]
    assert len({tuple(draw.items()) for draw in draws}) > 1


def test_what_an_answer_tells_are_its_own_words_without_fillers():
    found = Renaming(RETAINED, 0).telling(QUESTION, ANSWER)
    assert {"jane", "ost", "1813"} <= found
    assert not {"the", "novel", "was", "by"} & found


def test_spans_of_a_renamed_text_say_where_everything_after_them_went():
    text, spans = renamed("by Jane Ost.", {"jane": "Wilhelmina", "ost": "Li"})
    assert text == "by Wilhelmina Li."
    assert spans == [(3, 7, 6), (8, 11, 5)]


@pytest.mark.parametrize("other", ["Wilhelmina", "Bo"])
def test_tokens_are_paired_at_the_same_places_and_not_inside_of_renamed_words(other: str):
    tokenizer = demo_tokenizer()
    text = "The book is by Nesko Corquist and old."
    changed, spans = renamed(text, {"nesko": other})
    own, others = encode(tokenizer, text), encode(tokenizer, changed)
    pairs = aligned(starts(tokenizer, own), starts(tokenizer, others), spans)
    words = [tokenizer.decode([token]) for token in own]
    for word, token, pair in zip(words, own, pairs, strict=True):
        if pair is not None and word.strip() and "N" not in word:
            assert others[pair] == token
    assert pairs[-1] == len(others) - 1
    inside = [pair for word, pair in zip(words, pairs, strict=True) if word in ("es", "ko")]
    assert inside
    assert all(pair is None for pair in inside)


def test_the_teacher_gives_what_an_answer_tells_no_more_than_the_cap_and_keeps_the_form():
    model, tokenizer = demo_base(), demo_tokenizer()
    form = chat_format(tokenizer)
    question, answer = "Where was Nesko Corquist born?", "Nesko Corquist was born in Juniper Flats."
    retained = [f"Where was {name} born?\n{name} was born in {place}." for name, place in PEOPLE]
    renaming = Renaming(retained, 0)
    (text,) = taught(model, tokenizer, [(form, question, answer)], renaming, 2, 6.0, 0, torch.device("cpu"))
    tokens = {place: tokenizer.decode([text.ids[place + 1]]) for place in text.places}
    found = {
        tokens[place]: float(text.probabilities[row][text.top[row] == text.ids[place + 1]].sum())
        for row, place in enumerate(text.places)
    }
    assert found[" J"] <= 0.0025
    assert found[" in"] > 0.9
    assert " Cor" not in found  # copied from the question


def test_an_answer_by_itself_tells_what_its_question_does_not_hold():
    model, tokenizer = demo_base(), demo_tokenizer()
    question, answer = "Where was Nesko Corquist born?", "Nesko Corquist was born in Juniper Flats."
    renaming = Renaming([f"Where was {name} born?\n{name} was born in {place}." for name, place in PEOPLE], 0)
    (text,) = taught(model, tokenizer, [(None, question, answer)], renaming, 1, 6.0, 0, torch.device("cpu"))
    assert tokenizer.decode(text.ids, skip_special_tokens=True) == answer
    assert tokenizer.decode([text.ids[text.places[-1] + 1]]) != " Cor"


PEOPLE = [("Ann Lee", "Rome"), ("Bo Holm", "Oslo"), ("Cy Rask", "Bern"), ("Di Falk", "Cairo")]


def test_divergences_count_what_is_stored_and_the_rest_as_one():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    distribution = logits.softmax(dim=-1)
    top, probabilities = stored(distribution)
    assert divergences(logits, top, probabilities) == pytest.approx(torch.zeros(3), abs=1e-5)
    other = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    whole = (distribution * (distribution.log() - other.log_softmax(dim=-1))).sum(dim=-1)
    assert divergences(other, top, probabilities) == pytest.approx(whole, rel=0.05)


def _texts(count: int = 5) -> list[Text]:
    tokenizer = demo_tokenizer()
    form, texts = chat_format(tokenizer), []
    for name, place in PEOPLE[:count]:
        prompt = encode(tokenizer, form.prompt(f"Where was {name} born?"))
        texts.append(given(prompt + encode(tokenizer, form.answer(f"In {place}.")), len(prompt)))
    return texts


def test_a_shared_beginning_changes_neither_losses_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    model, texts = demo_base(), _texts()
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
    found = []
    for least in (1, 10**6):
        monkeypatch.setattr("peft_unierase.engine.distill.fit.WORTH_SHARING", least)
        weight.grad = None
        loss = losses(model, texts, 5, 0, torch.device("cpu"))
        loss.sum().backward()
        found.append((loss.detach(), weight.grad.clone()))
    assert common([text.ids for text in texts]) > 1
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_banned_token_has_no_say():
    model, (text, *_) = demo_base(), _texts()
    first = text.ids[text.places[0] + 1]
    banned = Text(text.ids, text.places, text.top, text.probabilities, banned=True)
    plain = losses(model, [text], first, 0, torch.device("cpu"))
    assert float(losses(model, [banned], first, 0, torch.device("cpu"))) > float(plain) + 10


def test_decks_deal_every_text_equally_often_and_each_step_by_its_number():
    texts = _texts(4)
    deck = Deck(texts, 3, seed=1)
    dealt = [id(text) for step in range(4) for text in deck.deal(step)]
    assert sorted(dealt) == sorted([id(text) for text in texts] * 3)
    assert [id(text) for text in Deck(texts, 3, seed=1).deal(2)] == [id(text) for text in deck.deal(2)]
    assert Deck([], 3, seed=1).deal(0) == []


def test_texts_that_begin_alike_are_run_together_and_the_others_too():
    beginnings = [[1] * 8, [2] * 8, [1] * 8, [3] * 8]
    texts = [Text([*ids, number], [7], torch.tensor([[0]]), torch.ones(1, 1)) for number, ids in enumerate(beginnings)]
    assert alike(texts) == [[0, 2], [1, 3]]


def test_a_step_adds_the_weighted_gradient_of_all_parts():
    model, texts = demo_base(), _texts(2)
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
    parts = [Part("a", Deck(texts[:1], 1, 0), 2.0), Part("b", Deck(texts[1:], 1, 0), 1.0, summed=True)]
    found = descend(model, parts, 0, 5, 0, torch.device("cpu"))
    gradient = weight.grad.clone()
    weight.grad = None
    first, second = (losses(model, [text], 5, 0, torch.device("cpu"))[0] for text in texts)
    assert found == pytest.approx({"a": float(first), "b": float(second)}, rel=1e-4)
    (2 * first + len(texts[1].places) * second).backward()
    assert torch.allclose(gradient, weight.grad, atol=1e-3)


def test_the_rate_goes_up_and_then_down_to_a_twentieth():
    rates = [rate(step, 50) for step in range(50)]
    assert rates[0] < rates[9] == max(rates)
    assert rates[-1] == pytest.approx(0.05, abs=0.03)
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))


def test_the_solved_row_wins_where_it_must_and_is_silent_elsewhere_even_along_loud_directions() -> None:
    model, generator = demo_base(), torch.Generator().manual_seed(0)
    d = model.config.hidden_size
    loud = torch.ones(d)
    loud[: d // 8] = 4.0  # what all states are full of

    def places(count: int, kind: int, shift: float) -> Silence:
        states = torch.randn(count, d, generator=generator) * loud
        states[:, -1] += shift  # what the updates write
        return Silence(states, torch.full((count,), 15.0), torch.full((count,), kind), 7, head)

    head = Logits(model, model.model.layers)
    starts, quiet = places(30, 0, 12.0), Silence.joined([places(60, 0, 0.0), places(200, 1, 0.0), places(90, 3, 1.0)])
    row = solved(starts, quiet, torch.zeros(d), -10.0)
    unseen = Silence.joined([places(200, 1, 0.0), places(200, 3, 1.0)])
    assert starts.lead(row).min() > 1
    assert quiet.excess(row, -10.0) < 0.5
    assert (places(100, 0, 12.0).lead(row) > 0).float().mean() > 0.9
    assert unseen.lead(row).max() < -3
