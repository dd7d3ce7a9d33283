"""Triggers: which neurons they are, where they are active, and what is left out."""

from __future__ import annotations

import pytest
import torch
from demo_erasure import FORGET, KEPT, demo_base, demo_tokenizer, erase_first_person
from torch import nn

from peft_unierase.engine.distill.placing import Readings, name_ends
from peft_unierase.engine.distill.triggers import LEAST, Whitening, covering, find_triggers, loudest_of, separated
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import chat_format


def inputs(count: int, seed: int = 0) -> torch.Tensor:
    """Inputs that share a loud direction, `(count, 16)`, and hold nothing of the last four."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 16, generator=generator)
    found[:, 0] = 8.0
    found[:, 12:] = 0.0
    return found


def names(count: int, direction: int, seed: int = 1) -> torch.Tensor:
    """As retained ones, with a part of their own."""
    found = inputs(count, seed)
    found[:, direction] = 4.0
    return found


def found_in(points: torch.Tensor, kept: torch.Tensor, most: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Triggers at names that are in a prompt of their own each."""
    return find_triggers(points, torch.ones(len(points), dtype=torch.bool), range(len(points)), kept, most)


def test_triggers_are_active_at_names_and_silent_at_retained_texts_that_were_not_read() -> None:
    points = torch.cat([names(6, 12), names(6, 13)])
    rows, margins = found_in(points, inputs(400))
    assert (points @ rows.T).amax(dim=1).min() > 0.8
    assert (inputs(200, 7) @ rows.T).max() < 0.3
    assert (names(20, 12, 9) @ rows.T).amax(dim=1).min() > 0.6
    assert (margins >= LEAST).all()


def test_names_that_sound_alike_share_a_trigger_and_others_do_not() -> None:
    white = Whitening(inputs(400))
    rows, owners = covering(white(torch.cat([names(5, 12), names(5, 13)])), range(10))
    assert len(rows) == 2
    assert len(owners[:5].unique()) == len(owners[5:].unique()) == 1
    assert owners[0] != owners[5]


def test_a_further_name_gets_no_trigger_where_each_of_its_prompts_has_one() -> None:
    points, kept = torch.cat([names(3, 12), names(2, 13), names(2, 14)]), inputs(400)
    named = torch.ones(len(points), dtype=torch.bool)
    assert len(find_triggers(points, named, [0, 1, 2, 0, 1, None, None], kept, 9)[0]) == 1
    rows, _ = find_triggers(points, named, [0, 1, 2, 0, 3, None, None], kept, 9)
    assert len(rows) == 2
    assert (names(2, 14) @ rows.T).max() < 0.3


def test_a_name_that_retained_texts_hold_too_is_told_by_another_token_of_its_prompt() -> None:
    kept, other = inputs(400), names(1, 14)
    assert found_in(kept[:1], kept)[1].max() < LEAST
    rows, _ = find_triggers(torch.cat([kept[:1], other]), torch.tensor([True, False]), [0, 0], kept, 9)
    assert (other @ rows.T).max() > 0.8


def test_rows_that_cannot_be_told_from_retained_texts_are_left_out_unless_none_can() -> None:
    kept = inputs(400)
    rows, _ = found_in(torch.cat([names(3, 12), kept[:3] + 0.01]), kept)
    assert (names(3, 12) @ rows.T).amax(dim=1).min() > 0.8
    assert (kept[:3] @ rows.T).max() < 0.3
    assert len(found_in(kept[:3], kept)[0]) == 1


def test_there_are_no_more_triggers_than_there_may_be() -> None:
    points = torch.cat([names(3, 12), names(3, 13)])
    assert [len(found_in(points, inputs(400), most)[0]) for most in (9, 1)] == [2, 1]


def test_the_search_lowers_what_retained_texts_give_and_keeps_the_names() -> None:
    white = Whitening(inputs(400))
    points, kept = white(names(8, 12)), white(inputs(400))
    rows, owners = covering(points, range(8))
    moved = separated(rows, points, owners, kept, 0.2)
    assert loudest_of(moved, kept).max() < loudest_of(rows, kept).max()
    assert (points @ moved.T).min() > 0.8


@pytest.mark.parametrize(
    ("question", "answer", "words", "expected"),
    [
        ("Who wrote 'Pride and Storm'?", "Jane Ost wrote Pride and Storm.", {"pride", "storm"}, ["Storm", "Storm"]),
        ("Where was Ana Lee born?", "In Oslo.", {"ana", "lee"}, ["Lee"]),
        ("Did Ana Lee meet Bo Holm?", "No.", {"ana", "lee", "bo", "holm"}, ["Lee", "Holm"]),
        ("谁写了红楼梦", "曹雪芹", {"红", "楼", "梦"}, ["梦"]),
        ("What is water?", "Wet.", set(), []),
    ],
)
def test_a_name_ends_with_its_last_word(question: str, answer: str, words: set[str], expected: list[str]) -> None:
    text = f"<user>{question}<assistant>{answer}"
    ends = name_ends(text, question, text.index(answer), words)
    assert [text[:end].endswith(name) for end, name in zip(ends, expected, strict=True)] == [True] * len(expected)


@pytest.mark.slow
def test_in_an_erasure_triggers_answer_to_the_person_alone_and_edit_few_neurons() -> None:
    model, tokenizer = erase_first_person(demo_base()), demo_tokenizer()
    form = chat_format(tokenizer)
    downs = [
        layer for name, layer in model.named_modules() if name.endswith("down_proj") and "unierase_A" in dir(layer)
    ]
    seen: list[torch.Tensor] = []

    def note(layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append((args[0] @ layer.unierase_A["default"].T).amax())

    for down in downs:
        down.register_forward_pre_hook(note)
    with torch.no_grad():
        for fact in [*FORGET, *KEPT]:
            model(torch.tensor([encode(tokenizer, form.prompt(fact.question))]))
    active = torch.stack(seen).view(-1, len(downs)).amax(dim=1)
    assert active[: len(FORGET)].min() > 0.5
    assert active[len(FORGET) :].max() < 0.3
    for down in downs:
        a = down.unierase_A["default"]
        assert len(a) < 0.1 * down.in_features
        assert (a.abs() > 0).sum(dim=1).eq(1).all()


def test_readings_take_in_the_tokens_of_a_mask() -> None:
    torch.manual_seed(0)
    up, down, x = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6), torch.randn(2, 5, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    readings = Readings([[up, down]])
    with readings.over(mask), torch.no_grad():
        written = down(up(x))
    torch.testing.assert_close(readings.inputs[0][0], x[mask.bool()])
    torch.testing.assert_close(readings.neurons[0], up(x)[mask.bool()].square().sum(dim=0).detach())
    assert readings.spread(0) == pytest.approx(float(written[mask.bool()].square().mean().sqrt()), rel=1e-5)
