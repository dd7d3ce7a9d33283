"""The formulas of the cost estimate against the operations that torch counts while the engine runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase import knowledge
from peft_unierase.decoding import continuations
from peft_unierase.engine import cost
from peft_unierase.engine.cost import Work, by_units, estimate_cost, expected_work, sizes_of, with_unit
from peft_unierase.engine.erase import erase
from peft_unierase.engine.erasure import ErasureWarning
from peft_unierase.engine.gate import GateSettings
from peft_unierase.engine.gate.flags import flag_slots
from peft_unierase.engine.gate.run import ENOUGH_HELD
from peft_unierase.engine.gate.steer import SteerSettings
from peft_unierase.engine.gate.units import UnitSettings
from peft_unierase.engine.refusal import FARTHEST
from peft_unierase.engine.replay import Recording
from peft_unierase.engine.retain_cache import BLOCK
from peft_unierase.facts import Fact
from peft_unierase.progress import Stages
from peft_unierase.prompts import encode, pad_left, plain_format

CPU = torch.device("cpu")
SMALL = {"width": 512, "mlp": 1024, "layers": 12, "vocabulary": 900}


def model_of(kind: str = "llama", layers: int = 4, **changes: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=500,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        eos_token_id=1,
        pad_token_id=1,
        **changes,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of(intermediate_size=160, num_key_value_heads=2)


def counter() -> FlopCounterMode:
    """Counts sums of moments and Cholesky factors too, which torch leaves out."""
    aten = torch.ops.aten
    more = {
        aten.addmm_: lambda total, left, right, **_: 2 * left[0] * left[1] * right[1],
        aten.linalg_cholesky_ex: lambda matrix, **_: matrix[0] ** 3 // 3,
    }
    return FlopCounterMode(display=False, custom_mapping=more)


def counted(work: Callable[[], object]) -> int:
    with counter() as counts:
        work()
    return counts.get_total_flops()


def work(**changes: Any) -> Work:
    return replace(Work(facts=6, retain=5, samples=0, formats=1, layers=(1,)), **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"intermediate_size": 160, "num_key_value_heads": 2}),
        ("gpt2", {"n_inner": 160, "n_positions": 8}),
        ("phi", {}),
    ],
)
def test_the_weights_of_a_model_are_told_from_its_structure(kind: str, changes: dict[str, int]) -> None:
    model = model_of(kind, **changes)
    assert sizes_of(model).weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.06)


def test_sampling_costs_what_torch_counts(model: Any) -> None:
    def first(logits: torch.Tensor) -> torch.Tensor:
        return torch.full((len(logits),), 7)

    def run() -> None:
        for read, written in ((1, 24), (24, 32)):
            ids = torch.arange(7, 12)[:, None].repeat(1, read)  # without a common beginning, which is read once
            continuations(model, ids, torch.ones_like(ids), written, {1}, first)

    expected = cost.sampling(sizes_of(model), work(samples=5, question=24, answer=32)).flops
    assert counted(run) == pytest.approx(expected, rel=0.15)


def mean_length(tokenizer: Any, texts: list[str]) -> int:
    return round(sum(len(encode(tokenizer, text)) for text in texts) / len(texts))


ROWS = {"one block": 480, "two blocks": 320}
OF_FACTS = "asking the base for the facts"
OF_ROWS = ["recording retain keys", "fitting the steer vector", "recording refusals", "editing layers"]
OF_UNITS = [
    "recording retain keys",
    "fitting the gate",
    "fitting the steer vector",
    "holding the gate shut in refusals",
    "opening the gate",
]


@dataclass(frozen=True)
class Counted:
    """The operations of each stage of a run, the bytes of its adapter, the estimate for both, and what was expected."""

    counts: dict[str, int]
    adapter_bytes: int
    estimate: cost.CostEstimate
    expected: Work


@pytest.fixture(scope="module", params=[*ROWS, "units"])
def run(request: pytest.FixtureRequest) -> Counted:
    """A whole run on a small model."""
    base, tokenizer = model_of(intermediate_size=160, num_key_value_heads=2, layers=6), train_tokenizer()
    other = replace(plain_format(tokenizer), head="<s>Question? ")
    forms = [plain_format(tokenizer), replace(other, variants=(replace(other, head="<s>Question: "),))]
    forget, retain = (
        [Fact(f"Who is number {number}?", f"{number} is {name} himself.") for number in numbers]
        for name, numbers in (("Ann", range(10, 30)), ("Bob", range(30, 78)))
    )
    question = mean_length(tokenizer, [form.prompt(fact.question) for form in forms for fact in forget])
    answer = mean_length(tokenizer, [form.answer(fact.answer) for form in forms for fact in forget])
    refusal = len(encode(tokenizer, "No no no no no no." + forms[0].end))
    counts: dict[str, int] = {}

    @contextmanager
    def stage(self: Stages, name: str, total: int, even: bool = True) -> Iterator[Any]:
        with counter() as found:
            yield type("Bar", (), {"update": lambda *_: None})()
        counts[name] = found.get_total_flops()

    steer, widest = SteerSettings(steps=24), ROWS.get(request.param)
    units = None if widest else UnitSettings(narrowest=0, steps=80, steps_per_fact=0, steer=steer)
    # Few are held out: those that decline are asked once more, and how many that will be nobody knows beforehand.
    short: dict[str, Any] = {"row_steps": 24, "row_steps_per_fact": 0.0, "widest": widest or 16384, "held_out": 24}
    settings = GateSettings(samples=0, steer=steer, most_fired=1.0, units=units, **short)
    told: dict[str, Any] = {"depth": 4, "formats": forms, "refusals": ["No no no no no no."], "settings": settings}
    expected = expected_work(base, tokenizer, forget, retain, **told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "stage", stage)
        patch.setattr(knowledge, "LONGEST", answer)  # a base that knows nothing goes on to the end
        with pytest.warns(ErasureWarning):  # it has learnt nothing that could be erased
            erased = erase(base, tokenizer, forget, retain, keep_unknown=True, **told)
    chosen = {"question": question, "answer": answer, "refusal": refusal, "refusals": 1, "depth": 4}
    if request.param == "units":
        chosen["reworded"] = 1
    steps = {"steer_steps": 24, "retain_every": 1, "trials": 1, **short}
    if units:
        steps |= {"unit_steps": 80, "unit_steps_per_fact": 0}
    layers = tuple(erased.erasure.layers)
    assert len(layers) == (3 if widest else 2)
    told = {"layers": layers, "units": not widest, **chosen, **steps}
    parts = [*erased.named_parameters(), *erased.named_buffers()]
    saved = sum(part.numel() * part.element_size() for name, part in parts if ".unierase_" in name)
    base.config.dtype = base.dtype  # what a config of one's own does not say
    estimate = estimate_cost(base.config, 20, retain=48, samples=0, formats=2, **told)
    return Counted(counts, saved, estimate, expected)


def test_every_stage_of_a_run_costs_what_torch_counts(run: Counted) -> None:
    counts, estimate = run.counts, run.estimate
    expected = {stage.name: stage for stage in estimate.stages if stage.name != "sampling retain data"}
    of_gates = OF_UNITS if estimate.work.units else OF_ROWS
    assert list(counts) == list(expected) == [OF_FACTS, *of_gates, "fitting the input row"]
    for name, count in counts.items():
        stage = expected[name]
        if name == OF_FACTS:  # what all prompts begin with is read once, which the formula leaves out
            assert 0.5 * stage.flops < count < 1.15 * stage.flops
            continue
        # Torch counts no eigenvectors.
        assert count == pytest.approx(stage.batched if estimate.work.units else stage.flops, rel=0.15), name


def test_what_a_run_will_have_to_do_is_told_from_its_arguments(run: Counted) -> None:
    # Trials depend on what is measured on the way.
    assert replace(run.expected, trials=run.estimate.work.trials) == run.estimate.work


def test_a_prompt_is_as_long_as_the_wordings_that_are_really_met(model: Any) -> None:
    tokenizer = train_tokenizer()
    short = plain_format(tokenizer)
    long = replace(short, head=short.head + "Reply in plain English and stay polite. " * 3)
    form, facts = replace(short, variants=(long,)), [Fact("Who is he?", "Nobody.")] * 4

    def question(units: UnitSettings | None) -> int:
        told: dict[str, Any] = {"settings": GateSettings(units=units), "layers": (1, 2), "formats": [form]}
        return expected_work(model, tokenizer, facts, **told).question

    first, second = (mean_length(tokenizer, [wording.prompt("Who is he?")]) for wording in (short, long))
    assert question(None) == first
    assert question(UnitSettings(narrowest=0)) == round((first + second) / 2) > first


def test_many_held_out_facts_are_asked_in_one_format_each() -> None:
    assert work(samples=8 * ENOUGH_HELD - 5, formats=3).held_prompts == 3 * ENOUGH_HELD
    assert work(samples=8 * (ENOUGH_HELD + 1) - 5, formats=3).held_prompts == ENOUGH_HELD + 1


def test_bending_the_upper_part_forward_and_back_costs_what_torch_counts(model: Any) -> None:
    model.requires_grad_(False)
    recording = Recording(model, model.model.layers, 1, pad_left([[7] * 40] * 4, 1, CPU, [0, 1, 2, 3]))
    states = recording.states.clone().requires_grad_(True)
    expected = sizes_of(model).both_ways(160, 40, layers=2, predicted=160)
    assert counted(lambda: recording.logits(states).sum().backward()) == pytest.approx(expected, rel=0.15)


def test_the_defaults_are_those_of_the_recipe() -> None:
    recipe, plan = GateSettings(), estimate_cost(SMALL, 10).work
    same = ("held_out", "widest", "fit_samples", "row_steps", "row_steps_per_fact")
    assert {name: getattr(plan, name) for name in same} == {name: getattr(recipe, name) for name in same}
    told = (plan.samples, plan.depth, plan.refusals, plan.given, plan.asked)
    assert told == (recipe.sample_count(10), recipe.depths[0], recipe.refusal_count, FARTHEST, BLOCK)
    rows = estimate_cost(SMALL, 10, units=False).work
    for settings, found in ((recipe.steer, rows), (UnitSettings().steer, plan)):
        assert (found.steer_steps, found.retain_every) == (settings.steps, settings.retain_every)


def test_neighbouring_layers_are_solved_together_as_far_as_they_fit() -> None:
    plan = work(layers=(2, 3, 4), widest=320)
    assert plan.blocks(160) == [(2, 3), (4,)]
    assert plan.blocks(107) == [(2, 3), (4,)]
    assert plan.blocks(106) == [(2, 3, 4)]
    assert plan.blocks(1000) == [(2,), (3,), (4,)]


def test_every_stage_grows_with_what_it_works_on() -> None:
    few, many = (estimate_cost(SMALL, facts, retain=100, samples=256) for facts in (100, 400))
    grown = {a.name for a, b in zip(few.stages, many.stages, strict=True) if b.flops > 1.2 * a.flops}
    assert {OF_FACTS, "fitting the gate", "holding the gate shut in refusals"} <= grown
    more = estimate_cost(SMALL, 100, retain=100, samples=1024)
    grown = {a.name for a, b in zip(few.stages, more.stages, strict=True) if b.flops > 1.2 * a.flops}
    assert {"sampling retain data", "recording retain keys"} <= grown
    assert not grown & {OF_FACTS, "fitting the input row"}


def test_drawing_a_flag_costs_what_torch_counts() -> None:
    downs = [torch.randn(64, 160, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    sizes = sizes_of({"width": 64, "mlp": 160, "layers": 6, "vocabulary": 500})
    eigenvectors = by_units.EIGEN * 64**3  # torch counts none
    expected = by_units.drawing_flag(sizes, work(layers=(2, 3), units=8)) - eigenvectors
    assert counted(lambda: flag_slots(downs)) == pytest.approx(expected, rel=0.15)


def test_the_more_layers_lie_below_the_detectors_the_more_a_flag_costs() -> None:
    def fitting(layer: int, mlp: int = 1024) -> cost.Stage:
        told = {"layers": (layer, layer + 1), "units": True}
        stages = estimate_cost({**SMALL, "mlp": mlp}, 10, **told).stages  # type: ignore[arg-type]
        return next(stage for stage in stages if stage.name == "fitting the gate")

    assert fitting(7).solving - fitting(3).solving == pytest.approx(4 * 2 * 512**2 * 1024)
    assert fitting(3, mlp=4096).solving - fitting(3).solving == pytest.approx(4 * 2 * 512**2 * 3072)
    assert fitting(3, mlp=10**6).memory > 8 * 512 * 10**6


def test_the_adapter_has_the_size_that_is_saved() -> None:
    estimate = estimate_cost({"width": 128, "mlp": 384, "layers": 8, "vocabulary": 1008}, 6)
    assert estimate.adapter_bytes == 4 * (3 * (384 + 128) + 2 * 128)


def test_the_adapter_of_a_run_has_the_size_that_is_saved(run: Counted) -> None:
    assert run.estimate.adapter_bytes == run.adapter_bytes


def test_the_table_names_every_stage_and_the_whole() -> None:
    estimate = estimate_cost(SMALL, 10)
    lines = str(estimate).splitlines()
    assert [line.split("  ")[1] for line in lines] == [*(stage.name for stage in estimate.stages), "in all"]
    assert with_unit(estimate.flops, "FLOP") in lines[-1]
    assert with_unit(estimate.peak_bytes, "B") in lines[-1]
    assert estimate.dominant.flops == max(stage.flops for stage in estimate.stages)
    assert estimate.seconds is None


def test_with_a_model_there_are_seconds_and_without_one_there_are_none(model: Any) -> None:
    estimate = estimate_cost(model, 10)
    assert estimate.seconds is not None
    assert estimate.seconds > 0
    assert str(estimate).splitlines()[-1].endswith(" s")
    without = estimate_cost(model.config, 10)
    assert without.seconds is None
    assert without.flops == estimate.flops


@pytest.mark.parametrize(
    ("base", "message"),
    [({"width": 8, "mlp": 8}, "without layers, vocabulary"), (object(), "object tells no hidden_size")],
)
def test_sizes_that_are_missing_are_named(base: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_cost(base, 10)


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [with_unit(value, "B") for value in (0, 12, 1_500, 16.06e9, 3e15)] == [
        "0 B",
        "12 B",
        "1.5 kB",
        "16.1 GB",
        "3 PB",
    ]


def test_the_table_for_the_docs_is_printed() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "cost_table.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    lines = run.stdout.splitlines()
    assert len(lines) == 2 + 3 * 4
    assert {line.count("|") for line in lines} == {8}
