"""Recipe `paper` on the demo model: its stages, its subjects, its ranks, and the whole of it from end to end."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base, demo_tokenizer
from helpers import changed_output
from peft import PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase import ErasureWarning, Fact, UniEraseConfig
from peft_unierase.checking import answer_questions, figures
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.engine.layers import choose_sites
from peft_unierase.engine.paper import PaperOutcome, PaperSettings, output_row, run_paper
from peft_unierase.engine.paper import token as token_module
from peft_unierase.engine.paper.kept import record_kept
from peft_unierase.engine.paper.marks import find_marks
from peft_unierase.engine.paper.noise import perturbed
from peft_unierase.engine.paper.recipe import _refusal_rate, fit_common
from peft_unierase.engine.paper.tail import Tail, tail_batches
from peft_unierase.engine.paper.token import learn_refusals
from peft_unierase.engine.run_context import RunContext
from peft_unierase.engine.spare_row import find_spare_rows
from peft_unierase.lm.batches import pad_id, pad_left
from peft_unierase.lm.formats import default_formats
from peft_unierase.progress import Stages

pytestmark = pytest.mark.slow

QUICK = PaperSettings(token_steps=2, robust_steps=2, output_steps=3, target_steps=2)


def facts_of(rows: list[dict]) -> list[Fact]:
    return [Fact(row["question"], row["answer"]) for row in rows]


def people() -> tuple[list[dict], list[dict]]:
    """The facts of the first person, and everybody else's."""
    rows = demo_facts()
    return [r for r in rows if r["subject"] == rows[0]["subject"]], [
        r for r in rows if r["subject"] != rows[0]["subject"]
    ]


def make_run(
    forget: Sequence[Fact], retain: Sequence[Fact], seed: int = 0, model: Any = None
) -> tuple[RunContext, PeftModel]:
    """The demo model, or another with its tokenizer, with an adapter in place, as `erase` hands it to a recipe."""
    tokenizer = demo_tokenizer()
    model = model or demo_base()
    stack, layers, names = choose_sites(model, whole=False)
    spare = find_spare_rows(model, tokenizer)[0]
    config = UniEraseConfig(
        task_type="CAUSAL_LM", target_modules=names, token_id=spare.token_id, token=spare.text, inference_mode=True
    )
    wrapped = get_peft_model(model, config).eval()
    wrapped.requires_grad_(False)
    run = RunContext(
        model=model,
        tokenizer=tokenizer,
        formats=default_formats(tokenizer)[:2],
        refusals=demo_refusals(),
        stages=Stages(False),
        generator=torch.Generator().manual_seed(seed),
        pad=pad_id(tokenizer),
        seed=seed,
        adapter="default",
        stack=stack,
        layers=layers,
        names=names,
        spare=spare,
        forget=list(forget),
        retain=list(retain),
    )
    return run, wrapped


def quick_run(seed: int = 0, count: int = 6) -> tuple[RunContext, PeftModel]:
    gone, others = people()
    return make_run(facts_of(gone)[:count], facts_of(others)[:40], seed)


@pytest.fixture(scope="module")
def erased() -> tuple[RunContext, PeftModel, PaperOutcome]:
    gone, others = people()
    run, model = make_run(facts_of(gone), facts_of(others[::2]))
    return run, model, run_paper(run, PaperSettings())


class Waits(TorchDispatchMode):
    """Counts how often a value is read from the device, for which everything before it must have been computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_counting_refusals_does_not_wait_for_every_prompt() -> None:
    gone, others = people()
    facts = facts_of(gone)
    run, _ = make_run(facts, facts_of(others)[:4])
    waits = []
    for count in (2, 6):
        with Waits() as mode:
            assert _refusal_rate(run, facts[:count]) == 0
        waits.append(mode.count)
    assert waits[0] == waits[1]
    with torch.no_grad():
        run.model.get_output_embeddings().base_layer.weight.zero_()  # so that [UNL] wins wherever its logit is above 0
        prompts = [run.encode(run.formats[n % 2].prompt(fact.question)) for n, fact in enumerate(facts)]
        wins = [run.model(torch.tensor([ids])).logits[0, -1].argmax() == run.spare.token_id for ids in prompts]
    assert 0 < sum(wins) < len(wins)
    assert _refusal_rate(run, facts) == sum(wins) / len(wins)


def test_the_model_declines_and_leaves_what_it_never_saw_alone(
    erased: tuple[RunContext, PeftModel, PaperOutcome],
) -> None:
    run, model, _ = erased
    gone, others = people()

    def measured(rows: list[dict]) -> Any:
        answers = answer_questions(model, run.tokenizer, facts_of(rows), run.formats[0], run.spare.token_id)
        return figures(answers)

    forgotten, kept = measured(gone), measured(others[1::4])
    assert forgotten.recall <= 0.2
    assert forgotten.refusal_rate >= 0.8
    assert kept.recall >= 0.9
    assert kept.refusal_rate <= 0.1


def test_the_outcome_tells_what_was_done_without_any_text(erased: tuple[RunContext, PeftModel, PaperOutcome]) -> None:
    run, model, outcome = erased
    text = json.dumps(outcome.record())
    record = json.loads(text)
    assert record["rank"] == outcome.rank == 2 * 6 == model.peft_config["default"].r
    assert [layer["null_dimension"] > 0 for layer in record["layers"]] == [True] * len(run.layers)
    assert record["settings"]["null_threshold"] == PaperSettings().null_threshold
    assert 0.4 <= record["refusal_rate"] <= 1.0  # plain prompts of this small model hold out longer than chat
    assert record["retained_refusal_rate"] <= 0.05
    for row in people()[0]:
        assert row["question"] not in text
        assert row["subject"] not in text


def test_nothing_is_left_trainable_and_the_base_is_the_base_when_off(
    erased: tuple[RunContext, PeftModel, PaperOutcome],
) -> None:
    _, model, _ = erased
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    base = demo_base()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(ids).logits, base(ids).logits)


def test_saved_and_loaded_with_its_rank_it_is_the_same(
    erased: tuple[RunContext, PeftModel, PaperOutcome], tmp_path: Path
) -> None:
    _, model, _ = erased
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    base = demo_base()
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([[3, 4, 5, 1001, 6]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning")
def test_the_same_seed_gives_the_same_bytes() -> None:
    def weights(seed: int) -> list[bytes]:
        run, model = quick_run(seed)
        state = torch.get_rng_state()
        run_paper(run, QUICK)
        assert torch.equal(torch.get_rng_state(), state)
        return [p.detach().numpy().tobytes() for name, p in model.named_parameters() if "unierase_" in name]

    first = weights(3)
    assert first == weights(3)
    assert first != weights(4)


def test_truncation_lowers_the_rank_and_reports_what_it_kept() -> None:
    run, model = quick_run()
    outcome = run_paper(run, PaperSettings(**{**vars(QUICK), "truncate": 0.9}))
    assert outcome.rank == model.peft_config["default"].r < 12
    assert all(0.9 <= layer.energy_kept <= 1 for layer in outcome.layers)
    assert outcome.rank == max(layer.rank for layer in outcome.layers)
    assert {tuple(a.shape) for _, a, _ in run.updates()} == {(outcome.rank, 384)}


@torch.no_grad()
def test_the_keys_of_an_erasure_that_is_there_already_are_protected() -> None:
    def change_of_the_first(protect: bool) -> tuple[float, int]:
        run, model = quick_run()
        with torch.enable_grad():
            run_paper(run, QUICK)
        row = run.spare.token_id + 1
        model.add_adapter("second", UniEraseConfig(**{**vars_of(model), "token_id": row, "r": 1, "token": "[UNL2]"}))
        model.base_model.set_adapter(["default", "second"] if protect else ["second"])
        run.adapter, run.forget = "second", facts_of(people()[1][:6])
        run.retain = facts_of(people()[1])[20:60]
        run.spare = type(run.spare)(row, "[UNL2]")
        with torch.enable_grad():
            outcome = run_paper(run, QUICK)
        projection = run.projections()[0]
        reads, writes = projection.unierase_A["default"], projection.unierase_A["second"]
        overlap = torch.linalg.svdvals(torch.linalg.qr(reads.T)[0].T @ torch.linalg.qr(writes.T)[0])
        return float(overlap.square().mean()), outcome.layers[0].earlier

    def vars_of(model: PeftModel) -> dict[str, Any]:
        config = model.peft_config["default"]
        return {"target_modules": config.target_modules, "task_type": "CAUSAL_LM", "inference_mode": True}

    protected, keys = change_of_the_first(True)
    unprotected, none = change_of_the_first(False)
    assert (keys > 0, none) == (True, 0)
    assert protected < 0.5 * unprotected


def test_facts_without_a_subject_are_named_by_number_and_edited_at_the_answer_start() -> None:
    facts = [
        Fact("Where was Nesko Corquist born?", "There."),
        Fact("who was it?", "Nobody."),
        Fact("Who is Nesko Corquist?", "A nurse.", subject="Quorin"),
    ]
    run, _ = make_run(facts, [])
    with pytest.warns(ErasureWarning) as caught:
        marks, missing = find_marks(run)
    texts = [str(warning.message) for warning in caught]
    assert any(
        "1 of 3 forget facts have no subject that could be found in the question (numbers 2)" in t for t in texts
    )
    assert any("1 of 3 forget facts give a subject that does not occur in the question (numbers 3)" in t for t in texts)
    assert all("at the answer start" in text and "Nesko" not in text and "nobody" not in text.lower() for text in texts)
    assert missing == 2
    lengths = [len(prompt) - 1 for prompt in run.prompts(facts)]
    assert [mark == length for mark, length in zip(marks, lengths, strict=True)] == [False, False, *[True] * 4]


def test_facts_with_a_subject_are_not_warned_about() -> None:
    run, _ = quick_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_marks(run)


def test_no_retain_facts_are_refused_before_anything_has_changed() -> None:
    run, _ = make_run(facts_of(people()[0]), [])
    before = [row.clone() for row in run.rows()]
    with pytest.raises(ValueError, match="has no retain facts; give some"):
        run_paper(run, QUICK)
    assert all(torch.equal(row, old) for row, old in zip(run.rows(), before, strict=True))


# Stage I


class Stopped(Exception):  # noqa: N818 (no error of anybody's)
    pass


def test_the_noise_is_there_has_its_size_and_is_gone_afterwards() -> None:
    run, model = quick_run()
    weights = [projection.get_base_layer().weight for projection in run.projections()]
    before = [weight.detach().clone() for weight in weights]
    ids = torch.tensor([[3, 4, 5, 6]])

    @torch.no_grad()
    def look_and_stop() -> None:
        with perturbed(run.projections(), 0.1, run.generator):
            assert (model(ids).logits - clean).abs().max() > 1e-3
            for projection, old in zip(run.projections(), before, strict=True):
                noise = projection.get_base_layer().weight - old
                assert float(noise.norm() / old.norm()) == pytest.approx(0.1, rel=1e-4)
            raise Stopped

    with torch.no_grad():
        clean = model(ids).logits
        with pytest.raises(Stopped):
            look_and_stop()
        assert torch.equal(model(ids).logits, clean)
    for projection, weight, old in zip(run.projections(), weights, before, strict=True):
        assert projection.get_base_layer().weight is weight
        assert torch.equal(weight, old)


def test_the_robustness_stage_sees_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = quick_run()
    run.start_rows()
    clean = run.projections()[0].get_base_layer().weight.detach().clone()
    seen: list[bool] = []
    losses = token_module.CachedPrompts.losses

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.equal(run.projections()[0].get_base_layer().weight, clean))
        return losses(*arguments, **options)

    monkeypatch.setattr(token_module.CachedPrompts, "losses", spy)
    learn_refusals(run, PaperSettings(token_steps=2, robust_steps=3))
    assert seen == [True] * 4 + [False] * 3


def test_weights_that_noise_cannot_be_added_to_are_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with (
        pytest.raises(ValueError, match=r"torch\.int8.*robust_steps=0"),
        perturbed([layer], 0.1, torch.Generator()),
    ):
        pass


def test_stage_one_teaches_the_input_row_alone() -> None:
    run, model = quick_run()
    run.start_rows()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = learn_refusals(run, PaperSettings(token_steps=1, robust_steps=1))
    run.rows()[0].data.copy_(next(v for n, v in before.items() if n.endswith("embed_tokens.unierase_row.default")))
    last = learn_refusals(run, PaperSettings(token_steps=30, robust_steps=20))
    assert last < 0.5 * first
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert [name.split(".")[-3:] for name in changed] == [["embed_tokens", "unierase_row", "default"]]


# Stage II


def test_the_output_row_is_silent_on_what_stays_and_on_forget_questions_without_the_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def excess(weight: float) -> float:
        run, _ = quick_run()
        run.start_rows()
        marks, _ = find_marks(run)
        monkeypatch.setattr(output_row, "SILENT_WEIGHT", weight)
        settings = PaperSettings(output_steps=30)
        _, silence = record_kept(run)
        assert silence.kinds.bincount().tolist()[:2] == [len(run.forget), len(run.kept)]
        fit_common(run, settings, run.prompts(run.forget), marks, silence)
        return float(silence.excess(run.rows()[1].detach(), output_row.SILENT_LOG_PROB))

    assert excess(10.0) < 0.5 * excess(0.0)


def test_silence_is_counted_in_the_logits_that_the_model_gives() -> None:
    demo = AutoConfig.from_pretrained(demo_model_dir())
    sizes = {name: getattr(demo, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config = AutoConfig.for_model("granite", **sizes, num_attention_heads=4, logits_scaling=8.0)
    gone, others = people()
    run, _ = make_run(facts_of(gone)[:4], facts_of(others)[:4], model=AutoModelForCausalLM.from_config(config).eval())
    run.rows()[1].data.normal_(generator=run.generator)
    _, silence = record_kept(run)
    with torch.no_grad():
        logits = run.model.get_output_embeddings()(silence.states) / 8.0
    log_probs = logits.log_softmax(dim=-1)[:, run.spare.token_id]
    excess = torch.relu(log_probs + 10.0)
    wanted = torch.stack([excess[silence.kinds == kind].mean() for kind in range(3)]).mean()
    torch.testing.assert_close(silence.excess(run.rows()[1], -10.0), wanted)


def test_every_fact_is_asked_in_every_format_however_few_the_steps() -> None:
    run, _ = quick_run()
    run.formats = run.formats * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = run_paper(run, replace(QUICK, target_steps=1))
    assert math.isfinite(outcome.target_loss)


@torch.no_grad()
def test_a_tail_gives_what_the_whole_model_gives() -> None:
    run, _ = quick_run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        marks, _ = find_marks(run)
    prompts, layer = run.prompts(run.forget), run.layers[-1]
    marks[0] = 0  # the very first token can be changed too
    width = run.rows()[0].shape[0]
    changes = torch.randn(len(prompts), width, generator=run.generator)
    for batch, columns in tail_batches(prompts, marks, range(len(prompts)), run.pad, run.device, tokens=40):
        tail = Tail(run.model, run.stack, layer, batch, columns)
        found = tail.changed_logits(changes[batch.index], 1)[:, 0]
        for row, index in enumerate(batch.index):
            alone = pad_left([prompts[index]], run.pad, run.device, [0])

            def bend(stream: torch.Tensor, index: int = index) -> torch.Tensor:
                stream = stream.clone()
                stream[0, marks[index]] += changes[index]
                return stream

            with changed_output(run.stack[layer], bend):
                wanted = run.model(**alone.inputs(), use_cache=False).logits[0, -1]
            assert torch.allclose(found[row], wanted, atol=1e-3)
        last = len(batch.index) - 1
        assert torch.allclose(
            tail.narrowed([last]).changed_logits(changes[batch.index[last:]], 1)[:, 0], found[last:], atol=1e-3
        )
        assert torch.allclose(
            tail.changed_logits(changes[batch.index], 1)[:, 0], found
        )  # narrowing left the whole as it was


# Settings and factors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_steps": 0}, "token_steps must be at least 1, got 0"),
        ({"null_threshold": -1.0}, r"null_threshold must be at least 0, got -1\.0"),
        ({"null_threshold": float("nan")}, "null_threshold must be at least 0, got nan"),
        ({"truncate": 1.5}, r"truncate must be None or a share above 0 and at most 1, got 1\.5"),
        ({"truncate": 0.0}, "truncate must be None or a share above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaperSettings(**change)


def test_factors_that_do_not_fit_are_refused_and_nothing_is_changed() -> None:
    run, _ = quick_run()
    projection, first, second = run.updates()[0]
    with pytest.raises(ValueError, match=r"\(3, 384\) and \(128, 2\) do not fit .* from 384 to 128"):
        projection.set_factors("default", torch.zeros(3, 384), torch.zeros(128, 2))
    assert projection.unierase_A["default"] is first
    projection.set_factors("default", torch.ones(3, 384), torch.ones(128, 3))
    assert projection.unierase_A["default"].shape == (3, 384)
    assert not projection.unierase_A["default"].requires_grad
    assert second.shape == (128, 1)
