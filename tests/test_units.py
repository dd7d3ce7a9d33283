"""Hidden units as detectors: which MLPs they are found in, what they tell apart, and what is written for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase import UniEraseConfig
from peft_unierase.engine.gate.answered import Sequences
from peft_unierase.engine.gate.by_units import UnitGate
from peft_unierase.engine.gate.comparator import Comparator, can_switch, constant_reader, flag_reader
from peft_unierase.engine.gate.flags import flag_slots, take_flag
from peft_unierase.engine.gate.places import choose_places
from peft_unierase.engine.gate.settings import GateSettings
from peft_unierase.engine.gate.token_units import OPEN, divider
from peft_unierase.engine.gate.units import UnitDetector, UnitSettings, cut_down, find_writers, unit_rows, whitening
from peft_unierase.engine.refusal import FreeColumns
from peft_unierase.engine.trace import traced_inputs
from peft_unierase.progress import Stages
from peft_unierase.tuner.structure import find_down_projections

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "phi3": {**SIZES, "pad_token_id": 0},
    "gpt_neox": SIZES,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 2},
    "opt": {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 2},
}


def tiny(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], **changes})).eval()


def test_groups_of_positions_are_recorded_in_one_run_as_in_several() -> None:
    model = tiny("llama")
    gate: Any = UnitGate.__new__(UnitGate)
    gate.bench = SimpleNamespace(model=model, pad=0, device="cpu", stages=Stages(False))
    gate.first = model.model.layers[1].mlp
    tokens = [[5, 6, 7, 8], [9, 10, 11]]
    gate.retained = [(tokens, [[3], [2]]), (tokens, [[0, 2], [1]]), (tokens[:1], [[1]])]
    alone = [gate._inputs(gate.first, *group) for group in gate.retained]
    assert [len(states) for states in alone] == [2, 3, 1]
    assert all(map(torch.equal, gate.shut, alone))


@pytest.mark.parametrize(
    ("kind", "count"), [("llama", 2), ("qwen2", 2), ("phi3", 1), ("gpt_neox", 1), ("gpt2", 1), ("opt", 0)]
)
def test_the_projections_into_the_units_are_found_where_the_mlp_allows_it(kind: str, count: int) -> None:
    model = tiny(kind)
    assert len(find_writers(model, find_down_projections(model)[1])) == count


def split() -> tuple[torch.Tensor, torch.Tensor]:
    """Points that no linear row on them tells apart: two opposite corners, and the other two."""
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]) * 3
    noise = torch.randn(4, 200, 32, generator=torch.Generator().manual_seed(1)) * 0.3
    noise[..., :2] += corners[:, None]
    noise[..., 2] += 5
    return noise[:2].flatten(0, 1), noise[2:].flatten(0, 1)


def fitted(kind: str, steps: int = 500) -> tuple[Any, UnitDetector, torch.Tensor, torch.Tensor]:
    model = tiny(kind)
    down = find_down_projections(model)[1]
    writers = find_writers(model, down)
    index = [3, 5, 8, 13, 21, 34, 55, 89]
    rows = {name: unit_rows(model.get_submodule(name), model.get_submodule(down), index) for name in writers}
    config = UniEraseConfig(rows=rows, columns={down: index}, target_modules=[down, *writers], token_id=7)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    unit = UnitDetector(wrapped.base_model.model, down, writers, "default", index, UnitSettings(), generator)
    wanted, shut = split()
    unit.start(torch.cat([wanted, shut]))
    unit.fit([wanted], [shut], steps)
    unit.write()
    return wrapped, unit, wanted, shut


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_units_tell_apart_what_no_row_can(kind: str) -> None:
    # An MLP that multiplies two projections has it in 500 steps; one with a single projection takes 700.
    _, unit, wanted, shut = fitted(kind, 700 if kind == "gpt2" else 500)
    assert unit.openings(wanted).quantile(0.02) > unit.openings(shut).quantile(0.98) + 0.1
    answers = torch.cat([torch.ones(400), torch.zeros(400)])[:, None]
    row = torch.linalg.lstsq(torch.cat([wanted, shut]), answers).solution
    assert (wanted @ row).quantile(0.02) < (shut @ row).quantile(0.98)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_the_live_edit_adds_the_vector_as_far_as_the_units_open(kind: str) -> None:
    _, unit, wanted, _ = fitted(kind)
    steer = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        unit.open(torch.zeros(1))
        shut = unit.mlp(wanted[None])[0]
        unit.open(steer)
        opened = unit.mlp(wanted[None])[0]
    assert torch.allclose(opened - shut, unit.openings(wanted)[:, None] * steer, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_an_edit_of_units_is_saved_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    model, unit, _, _ = fitted(kind)
    unit.open(torch.ones(32))
    ids = torch.tensor([[1, 2, 7, 3]])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(tiny(kind), tmp_path).eval()
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        assert torch.allclose(loaded.merge_and_unload()(input_ids=ids).logits, expected, atol=1e-4)


def test_a_cut_down_mlp_gives_the_values_of_its_units() -> None:
    model = tiny("llama")
    mlp, index = model.model.layers[1].mlp, [0, 7, 95]
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), traced_inputs([mlp.down_proj], len(states)) as seen:
        mlp(states)
    small = cut_down(mlp, ["gate_proj", "up_proj"], "down_proj", index)
    assert torch.allclose(small(states), seen[0][..., index], atol=1e-6)
    assert mlp.gate_proj.weight.shape == (96, 32)


def test_whitened_inputs_have_a_feature_that_is_one() -> None:
    wanted, shut = split()
    features = torch.cat([wanted, shut]) @ whitening(torch.cat([wanted, shut]))
    assert torch.allclose(features[:, -1], torch.ones(800), atol=0.3)
    assert features[:, :-1].mean(dim=0).abs().max() < 0.1


@pytest.mark.parametrize(("facts", "count"), [(1, 8), (40, 40), (400, 128), (40000, 128)])
def test_more_facts_take_more_units_and_never_more_than_one_in_eight(facts: int, count: int) -> None:
    assert UnitSettings().count(facts, 1024) == count


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_a_comparator_is_shut_below_its_range_and_fully_open_above(kind: str) -> None:
    model = tiny(kind)
    down = find_down_projections(model)[1]
    writers = find_writers(model, down)
    rows = {name: unit_rows(model.get_submodule(name), model.get_submodule(down), [4, 9]) for name in writers}
    config = UniEraseConfig(rows=rows, columns={down: [4, 9]}, target_modules=[down, *writers], token_id=7)
    wrapped = get_peft_model(model, config).base_model.model
    generator = torch.Generator().manual_seed(0)
    switch = Comparator(wrapped, down, writers, "default", [4, 9], UnitSettings(), generator)
    reads, one = torch.eye(32)[3], torch.eye(32)[0]
    switch.set(reads, one, 0.5, 0.7)
    switch.write()
    inputs = one + reads * torch.tensor([-5.0, 0.0, 0.4, 0.8, 1.0, 5.0])[:, None]
    assert torch.allclose(switch.openings(inputs), torch.tensor([0.0, 0, 0, 1, 1, 1]), atol=0.02)
    steer = torch.randn(32, generator=generator)
    with torch.no_grad():
        switch.open(torch.zeros(1))
        shut = switch.mlp(inputs[None])[0]
        switch.open(steer)
        opened = switch.mlp(inputs[None])[0]
    assert torch.allclose(opened - shut, switch.openings(inputs)[:, None] * steer, atol=1e-3)


@pytest.mark.parametrize(("kind", "told"), [("llama", "hidden_act"), ("gpt_neox", "hidden_act"), ("gpt2", None)])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_new", "relu", "relu2", "tanh"])
def test_units_are_used_where_two_of_them_make_a_clean_switch(kind: str, told: str | None, activation: str) -> None:
    model = tiny(kind, **{told or "activation_function": activation})
    downs = find_down_projections(model)
    clean = activation not in ("relu2", "tanh")
    assert all(can_switch(model, down, find_writers(model, down)) == clean for down in downs)
    settings = GateSettings(units=UnitSettings(narrowest=0))
    _, layers, names, writers = choose_places(model, settings, 4, [0, 1])
    assert (layers, names) == ([0, 1], downs[:2])
    assert bool(writers) == clean


def test_groups_of_one_weight_read_the_same_however_few_are_in_one() -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(2000, 8, generator=generator) + 2 * torch.eye(8)[0]
    few = torch.randn(5, 8, generator=generator) * 0.1 + 3 * torch.eye(8)[1]
    assert float((few @ constant_reader(many, few)).mean()) > 0.8 > 0.2 > float((few @ constant_reader(many)).mean())


def test_a_divider_tells_one_token_from_all_others() -> None:
    generator = torch.Generator().manual_seed(0)
    elsewhere = torch.randn(500, 32, generator=generator) + 2
    here = torch.randn(20, 32, generator=generator) * 0.2 + torch.randn(32, generator=generator) * 2
    row = divider(here, elsewhere)
    assert (here @ row).min() > OPEN[1]
    assert (elsewhere @ row).max() < OPEN[0]


def test_columns_that_are_fitted_as_one_vector_stay_in_proportion() -> None:
    columns = torch.nn.Parameter(torch.zeros(3, 4))
    read = torch.tensor([0.0, 0.0, 0.5, -0.5])
    free = FreeColumns(columns, read, 2.0, torch.nn.Identity(), torch.zeros(3))
    columns.register_hook(free.gradient)
    (columns * torch.arange(12.0).view(3, 4)).sum().backward()
    assert columns.grad is not None
    assert not columns.grad[:, :2].any()
    assert torch.equal(columns.grad[:, 2], -columns.grad[:, 3])
    assert columns.grad[:, 2].any()
    assert free.rate(0.1) == pytest.approx(0.1)


def test_flags_are_where_the_base_writes_least_and_follow_from_it_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    downs = [torch.randn(32, 64, generator=generator) * torch.linspace(0.1, 3, 32)[:, None] for _ in range(3)]
    slots = flag_slots(downs)
    assert slots.shape == (32, 8)
    assert torch.allclose(slots.T @ slots, torch.eye(8), atol=1e-5)
    assert all((slots.T @ down).norm() < 0.2 * down.norm() for down in downs)
    assert torch.equal(slots, flag_slots(downs))


def test_each_erasure_takes_a_flag_that_the_others_have_not() -> None:
    model = tiny("llama")
    bench: Any = SimpleNamespace(model=model, layers=[1, 2], device=torch.device("cpu"))
    drawn = {take_flag(bench, bytes([number]), ()).own for number in range(40)}
    assert len(drawn) > 4
    last = take_flag(bench, b"", range(7))
    assert last.own == 7
    assert torch.equal(last.flag, last.slots[:, 7])
    assert last.others.shape == (7, 32)
    assert (last.others @ last.flag).abs().max() < 1e-5
    with pytest.raises(ValueError, match="carries 8 erasures and has no direction left"):
        take_flag(bench, b"", range(8))


def test_a_flag_is_read_off_without_what_moves_and_without_the_flags_of_others() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 32, generator=generator) * torch.linspace(0.1, 3, 32)
    flag, loud = torch.eye(32)[0], torch.eye(32)[31]
    others = torch.eye(32)[1:4] + 0.5 * flag
    reader, spread = flag_reader(states, flag + loud, others)
    assert float(reader @ (flag + loud)) == pytest.approx(1, abs=1e-3)
    assert (others @ reader).abs().max() < 0.01
    assert (states @ reader).std() == pytest.approx(spread, rel=0.1)
    one = constant_reader(states[:, :] + 5 * loud, others=others)
    assert (others @ one).abs().max() < 0.01 * float((states + 5 * loud).mean(dim=0) @ one)


def measured(opened: torch.Tensor) -> Any:
    """A gate whose detectors answer this at three positions, after it has measured its flag."""
    generator = torch.Generator().manual_seed(0)
    before, base = torch.randn(3, 8, generator=generator), torch.randn(50, 8, generator=generator)
    flag, said = torch.eye(8)[0], {"size": torch.zeros(8)}
    gate: Any = UnitGate.__new__(UnitGate)
    gate.settings, gate.bench, gate.others = UnitSettings(), SimpleNamespace(layers=[1, 2]), torch.eye(8)[2:3]
    gate.first, gate.second, gate.some = "first", "second", ([], [])
    gate._quiet = flag, 1.0, before, base
    gate.unit = SimpleNamespace(
        write=lambda: None, openings=lambda inputs: opened, open=lambda steer: said.update(size=steer)
    )
    gate._inputs = lambda module, *_: before + opened[:, None] * said["size"] if module == "second" else before
    gate.comparator = SimpleNamespace(open=lambda steer: None)
    gate.set_threshold = lambda threshold: None
    gate._flag()
    return gate


@pytest.mark.parametrize("opened", [[0.9, 0.3, -0.5], [0.0, -0.4, -0.6], [-0.2, -0.4, 0.0]])
def test_a_flag_is_measured_also_where_detectors_answer_nothing_at_some_positions(opened: list[float]) -> None:
    gate = measured(torch.tensor(opened))
    assert torch.isfinite(gate.reader).all()
    assert gate.reader[0] > 0
    assert torch.isfinite(gate.one).all()


def test_detectors_that_answer_nothing_at_all_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"in layer 1 answer 0 at every forget position.*GateSettings\(units=None\)"):
        measured(torch.zeros(3))


def test_only_what_is_edited_is_stored() -> None:
    model, *_ = fitted("llama")
    stored = {
        name.split("mlp.")[1]: part.shape for name, part in get_peft_model_state_dict(model).items() if "mlp." in name
    }
    assert stored == {
        "gate_proj.unierase_A": (8, 32),
        "up_proj.unierase_A": (8, 32),
        "down_proj.unierase_B": (32, 8),
        # What the base has there, for bases that are quantised when it is loaded.
        "gate_proj.unierase_base": (8, 32),
        "up_proj.unierase_base": (8, 32),
        "down_proj.unierase_base": (32, 8),
    }


@pytest.mark.parametrize("index", [[], [-1], [1.5], [True], [3, 3]])
@pytest.mark.parametrize("role", ["rows", "columns"])
def test_features_that_cannot_be_are_refused_by_the_name_of_their_module(role: str, index: Any) -> None:
    with pytest.raises(ValueError, match=rf"{role}\['up_proj'\] must list different whole numbers"):
        UniEraseConfig(**{role: {"up_proj": index}})


def test_a_module_is_edited_by_rows_or_by_columns() -> None:
    with pytest.raises(ValueError, match=r"\['up_proj'\] are in rows and in columns"):
        UniEraseConfig(rows={"up_proj": [1]}, columns={"up_proj": [1]})


def test_features_beyond_the_projection_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows \[96\] are beyond the projection's 96"):
        get_peft_model(tiny("llama"), UniEraseConfig(rows={"up_proj": [5, 96]}, target_modules=["up_proj"]))


@pytest.mark.parametrize(("facts", "weight"), [(1, 1.0), (40, 1.0), (400, 4.0)])
def test_forget_positions_weigh_more_where_there_are_more_facts(facts: int, weight: float) -> None:
    assert UnitSettings().steering(facts).declined == weight


@pytest.mark.parametrize(
    ("held", "refused", "doors", "threshold"),
    [
        (0.2, 0.4, 1.05, 0.7),  # half way between 0.4 and the doors' 1.05 without the ramp
        (1.4, 0.4, 1.05, 1.0),  # doors count more
        (-3.0, -2.0, 0.0, -0.1),  # never below the lowest
    ],
)
def test_the_threshold_lies_between_what_stays_shut_and_what_opens(
    held: float, refused: float, doors: float, threshold: float
) -> None:
    gate: Any = UnitGate.__new__(UnitGate)
    gate.settings, gate.refused = UnitSettings(missed=0.05, ramp=0.05, lowest=-0.1), ([], [])
    gate.forget = held_out = Sequences([[1, 2]], [[3]])
    answers = iter([torch.full((40,), held), torch.full((40,), refused), torch.full((40,), doors)])
    gate._highest = lambda tokens, positions: next(answers)
    gate.set_threshold = lambda value: setattr(gate, "threshold", value)
    assert gate.choose_threshold(held_out, 0.005) == pytest.approx(threshold)
