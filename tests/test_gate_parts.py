"""Parts of recipe `gate`: which positions a depth gates, where a model declines, which layers are solved together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_unierase import UniEraseConfig
from peft_unierase.boxed import boxed_facts, boxed_model_dir, boxed_refusals
from peft_unierase.engine.gate.answered import Answered, Sequences
from peft_unierase.engine.gate.detector import ShutKeys
from peft_unierase.engine.gate.firing import Firing, firing
from peft_unierase.engine.gate.gates import GateEdit, in_blocks
from peft_unierase.engine.gate.shut import in_runs, retained_groups
from peft_unierase.engine.gate.steer import SteerSettings, fit_steer
from peft_unierase.engine.refusal import RefusalLesson
from peft_unierase.engine.replay import Recording
from peft_unierase.engine.trace import inputs_at
from peft_unierase.prompts import batches, chat_format, encode

PAIR = Sequences([[1, 2, 3], [4, 5]], [[6, 7, 8, 9], [10]])


@pytest.mark.parametrize(
    ("depth", "cut", "positions"),
    [
        (0, [[1, 2, 3], [4, 5]], [[2], [1]]),
        (2, [[1, 2, 3, 6, 7], [4, 5]], [[2, 3, 4], [1]]),
        (99, [[1, 2, 3, 6, 7, 8], [4, 5]], [[2, 3, 4, 5], [1]]),
    ],
)
def test_a_depth_gates_the_door_and_what_predicts_the_next_answer_tokens(
    depth: int, cut: list[list[int]], positions: list[list[int]]
) -> None:
    assert PAIR.gated(depth) == (cut, positions)


def test_retained_doors_and_answers_are_groups_of_their_own() -> None:
    doors, elsewhere, inside = retained_groups(PAIR, PAIR, True)
    assert retained_groups(PAIR, PAIR, False) == [doors, elsewhere]
    assert doors == (PAIR.prompts, [[2], [1]])
    assert elsewhere == (PAIR.whole(), [[0, 4, 6], []])
    assert inside == (PAIR.whole(), [[3, 4, 5], []])
    assert in_runs([doors, elsewhere, inside]) == [
        (PAIR.prompts, [doors[1]]),
        (PAIR.whole(), [elsewhere[1], inside[1]]),
    ]


def test_answers_of_one_token_are_no_group() -> None:
    assert len(retained_groups(PAIR, PAIR.only([1]), True)) == 2


def test_some_are_spread_evenly() -> None:
    many = Sequences([[n] for n in range(10)], [[n] for n in range(10)])
    assert many.some(3).prompts == [[0], [3], [6]]
    assert many.some(99) == many


def test_shares_of_what_declines() -> None:
    fired = Firing([torch.tensor([True, False, False]), torch.tensor([False, False, True, False])])
    assert fired.at_doors() == 0.5
    assert fired.anywhere() == 1.0
    assert fired.within(1, 2) == 0.5
    assert fired.within(3, 2) == 0.0
    assert Firing([]).anywhere() == 0.0
    left = fired.beyond({1: torch.tensor([False, False, True, True])}).per_sequence
    assert [one.tolist() for one in left] == [[True, False, False], [False] * 4]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(boxed_model_dir())


def test_the_answers_own_tokens_are_not_taken_for_a_refusal(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    form, rows = chat_format(tokenizer), boxed_facts()[:4]
    prompts = [encode(tokenizer, form.prompt(row["question"])) for row in rows]
    answers = [encode(tokenizer, form.answer(row["answer"])) for row in rows]
    known = Sequences(prompts, answers)
    everything = torch.arange(1024)
    assert firing(model, known, everything, 0).anywhere() == 0.0
    # With another answer in its mouth the model still goes on as it knows it, and that is in `everything`.
    swapped = Sequences(prompts, answers[1:] + answers[:1])
    swapped.answers[0] = [answers[0][0], answers[0][1] + 1, *answers[0][2:]]
    fired = firing(model, swapped, everything, 0).per_sequence[0]
    assert fired[:2].tolist() == [False, True]
    assert len(fired) == len(answers[0])


def test_at_the_doors_other_tokens_may_count_than_behind_them(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    form, rows = chat_format(tokenizer), boxed_facts()[:4]
    prompts = [encode(tokenizer, form.prompt(row["question"])) for row in rows]
    answers = [encode(tokenizer, form.answer(row["answer"])) for row in rows]
    wrong = Sequences(prompts, [[answer[0] + 1, answer[1] + 1, *answer[2:]] for answer in answers])
    everything, nothing = torch.arange(1024), torch.tensor([1023])
    expected = firing(model, wrong, everything, 0)
    assert expected.at_doors() == 1.0
    fired = firing(model, wrong, everything, 0, at_doors=nothing)
    assert fired.at_doors() == 0.0
    behind = zip(fired.per_sequence, expected.per_sequence, strict=True)
    assert all(torch.equal(one[1:], other[1:]) for one, other in behind)
    own = torch.tensor([answer[0] for answer in answers])
    assert firing(model, wrong, nothing, 0, at_doors=own).at_doors() == 1.0


def test_the_columns_that_are_predicted_hold_every_door_and_no_more(base: tuple[Any, Any]) -> None:
    model, _ = base
    (batch,) = batches(PAIR.whole(), 0, torch.device("cpu"))
    door = torch.tensor([batch.ids.shape[1] - 1 - len(PAIR.answers[index]) for index in batch.index])
    recording = Recording(model, model.get_decoder().layers, 0, batch)
    item = Answered(recording, door, torch.zeros(1, *batch.ids.shape))
    keep = item.from_doors_on()
    assert keep == 1 + max(len(answer) for answer in PAIR.answers)
    assert int(item.at_door()[:, -keep:].sum()) == len(PAIR)
    whole = recording.logits(recording.states)
    torch.testing.assert_close(recording.logits(recording.states, keep), whole[:, -keep:])


def test_layers_are_solved_together_as_far_as_the_width_allows() -> None:
    row = nn.Parameter(torch.zeros(1))
    gates = [(nn.Linear(8, 2), row, row) for _ in range(5)]
    assert [len(block) for block in in_blocks(gates, 16)] == [2, 2, 1]
    assert [len(block) for block in in_blocks(gates, 100)] == [5]
    assert [len(block) for block in in_blocks(gates, 3)] == [1, 1, 1, 1, 1]


def gated(base: tuple[Any, Any]) -> tuple[GateEdit, list[ShutKeys], Sequences]:
    """Gates in two layers of a fresh model, to open at the first doors and stay shut at all others."""
    tokenizer = base[1]
    model = AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=torch.float32).eval()
    model = get_peft_model(model, UniEraseConfig(layers_to_transform=[1, 2], token_id=7)).base_model.model
    form, rows = chat_format(tokenizer), boxed_facts()
    prompts = [encode(tokenizer, form.prompt(row["question"])) for row in rows]
    answers = [encode(tokenizer, form.answer(row["answer"])) for row in rows]
    downs = [model.model.layers[index].mlp.down_proj for index in (1, 2)]
    gates = [(down, down.unierase_A["default"], down.unierase_B["default"]) for down in downs]
    doors = [[len(prompt) - 1] for prompt in prompts[8:]]
    keys = [torch.cat(found) for found in inputs_at(model, downs, prompts[8:], doors, 0)]
    shut = ShutKeys(sum(down.in_features for down in downs))
    shut.add(torch.cat(keys, dim=1), 1 / len(doors))
    forget = Sequences(prompts[:8], answers[:8])
    return GateEdit(model, [gates], forget, 0, 0), [shut], forget


def test_detected_gates_open_at_the_forget_doors_together_and_stay_without_effect(base: tuple[Any, Any]) -> None:
    edit, shut, forget = gated(base)
    ids = torch.tensor([forget.prompts[0]])
    with torch.no_grad():
        before = edit.model(input_ids=ids).logits
        edit.detect(shut, 1.0)
        assert torch.equal(edit.model(input_ids=ids).logits, before)
    openings = edit.openings(forget)
    assert [tuple(o.shape) for o in openings] == [(2, len(whole)) for whole in forget.whole()]
    doors = [opened[:, door].sum() for opened, door in zip(openings, forget.doors(), strict=True)]
    assert 0.8 < torch.stack(doors).mean() < 1.1


def test_gates_above_do_not_hear_the_echo_of_those_below(base: tuple[Any, Any]) -> None:
    edit, shut, forget = gated(base)
    steer = torch.randn(edit.model.config.hidden_size, generator=torch.Generator().manual_seed(0)) * 20

    def echo() -> float:
        """How much further the upper gate opens at the forget doors once the lower one is open."""
        opened = edit.openings(forget)
        edit._open(torch.zeros(()))
        quiet = edit.openings(forget)
        moved = [(o - q)[1, door] for o, q, door in zip(opened, quiet, forget.doors(), strict=True)]
        return float(torch.stack(moved).abs().mean())

    edit.detect(shut, 1.0)
    edit._open(steer)
    heard = echo()
    edit.write(steer, shut, 1.0)
    assert echo() < heard / 4


def test_a_token_that_starts_far_behind_everywhere_wins_at_the_doors_all_the_same(base: tuple[Any, Any]) -> None:
    tokenizer, token_id = base[1], 1008
    model = AutoModelForCausalLM.from_pretrained(boxed_model_dir(), dtype=torch.float32).eval()
    model = get_peft_model(model, UniEraseConfig(layers_to_transform=[1], token_id=token_id)).base_model.model
    form, rows = chat_format(tokenizer), boxed_facts()[:16]
    prompts = [encode(tokenizer, form.prompt(row["question"])) for row in rows]
    answers = [encode(tokenizer, form.answer(row["answer"])) for row in rows]
    known, others = Sequences(prompts[:8], answers[:8]), Sequences(prompts[8:], answers[8:])
    layers = model.get_decoder().layers

    def recorded(sequences: Sequences, opening: float) -> list[Answered]:
        items = []
        for batch in batches(sequences.whole(), 0, torch.device("cpu")):
            doors = [batch.ids.shape[1] - 1 - len(sequences.answers[index]) for index in batch.index]
            opened = torch.full((1, *batch.ids.shape), opening)
            items.append(Answered(Recording(model, layers, 1, batch), torch.tensor(doors), opened))
        return items

    output_row = model.get_output_embeddings().unierase_row["default"]
    input_row = model.get_input_embeddings().unierase_row["default"]
    input_row.data.copy_(model.get_input_embeddings().weight[5])
    forget = recorded(known, 1.0)
    (item,) = forget
    states = model.get_decoder()(input_ids=item.recording.batch.ids, attention_mask=item.recording.batch.mask)[0]
    mean = states[item.at_door()].mean(dim=0)
    output_row.data.copy_(-40 * mean / mean.square().sum())
    generator = torch.Generator().manual_seed(0)
    refusals = [encode(tokenizer, text) for text in boxed_refusals()[:1]]
    lesson = RefusalLesson(model, known.prompts, known.answers, refusals, token_id, 0, generator)
    opened = [torch.ones(1, len(answer) + 1) for answer in known.answers]
    told = (lesson, opened, [], SteerSettings(steps=60, learning_rate=0.02), generator)
    steer = fit_steer([layers[1]], output_row, input_row, token_id, forget, recorded(others, 0.0), *told)
    logits = item.recording.logits(item.recording.states + steer)
    assert (logits[item.at_door()].argmax(dim=-1) == token_id).all()
