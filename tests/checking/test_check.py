"""The check on the demo model: verdicts, negative controls, adapters made elsewhere, attacks of one's own."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import demo_base
from helpers import invoke, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from peft_unierase.checking import ATTACKS, Case, CheckReport, Target, Thresholds, check
from peft_unierase.checking.attacks import chosen
from peft_unierase.checking.attacks.membership import told_apart
from peft_unierase.checking.attacks.weights import _stored_in, rounded
from peft_unierase.checking.judges import entailment_judge, similarity_judge
from peft_unierase.checking.page import page
from peft_unierase.checking.sets import divergences
from peft_unierase.cli.finish import checked
from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.lm.batches import encode, pad_left
from peft_unierase.lm.formats import chat_format

pytestmark = pytest.mark.slow

ROWS = demo_facts()
SUBJECT = ROWS[0]["subject"]
LONG = "sampling-100"
TOLD: dict[str, Any] = {"refusals": demo_refusals(), "max_new_tokens": 32, "progress": False}


def facts_of(rows: Sequence[dict[str, Any]]) -> list[Fact]:
    return [
        Fact(
            row["question"], row["answer"], (row["paraphrased_question"],), None, None, tuple(row["perturbed_answers"])
        )
        for row in rows
    ]


FORGET = facts_of([row for row in ROWS if row["subject"] == SUBJECT])
KEPT = facts_of([row for row in ROWS if row["subject"] != SUBJECT][::12])


@pytest.fixture(scope="module")
def base() -> Any:
    return demo_base()


@pytest.fixture(scope="module")
def declining(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA made with plain PEFT that was fine-tuned to decline on the forget questions."""
    torch.manual_seed(0)
    model = get_peft_model(
        demo_base(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    form, refusal = chat_format(tokenizer), demo_refusals()[0]
    pairs = [(fact.question, refusal) for fact in FORGET] + [(fact.question, fact.answer) for fact in KEPT]
    texts = [(encode(tokenizer, form.prompt(q)), encode(tokenizer, form.answer(a))) for q, a in pairs]
    batch = pad_left([q + a for q, a in texts], 0, torch.device("cpu"), list(range(len(texts))))
    width = batch.ids.shape[1]
    told = torch.tensor([[False] * (width - len(a)) + [True] * len(a) for _, a in texts])[:, 1:]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(40):
        logits = model(**batch.inputs()).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[told], batch.ids[:, 1:][told])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("declining")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(declining: Path, tokenizer: Any) -> CheckReport:
    """Everything but the longest attack on the LoRA, with the facts in two retain sets."""
    model = PeftModel.from_pretrained(demo_base(), str(declining)).eval()
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    assert not any(trained for _, trained in before.values())
    attacks = [attack.name for attack in ATTACKS if attack.name != LONG]
    found = check(model, tokenizer, FORGET, {"one": KEPT[::2], "other": KEPT[1::2]}, attacks=attacks, **TOLD)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name][0], parameter)
        assert parameter.requires_grad == before[name][1]
    assert model.active_adapters == ["default"]
    return found


def test_an_adapter_made_elsewhere_is_attacked_in_every_way_that_it_allows(report: CheckReport) -> None:
    ran = {attack.name for attack in report.attacks}
    assert ran | set(report.skipped) >= {attack.name for attack in ATTACKS} - {LONG}
    assert {name for name in report.skipped if name in {attack.name for attack in ATTACKS}} == {
        "ban",
        "delete-row",
        "ban-prefill",
        "description",
    }
    assert "the base describes nothing" in report.skipped["description"]
    assert report.skipped["ban"] == "the erased model has no [UNL] token"
    greedy = report.attacks[0]
    assert greedy.name == "greedy"
    assert greedy.base.mean > 0.95
    assert greedy.holds
    assert report.verdict.level == "SUPPRESSED"
    assert "prefill-5" in report.verdict.leaks
    assert all(attack.who for attack in report.attacks)


def test_relearning_is_a_curve_of_which_the_worst_step_counts(report: CheckReport) -> None:
    (tenth,) = [attack for attack in report.attacks if attack.name == "relearn-tenth"]
    assert tenth.curve is not None
    assert tenth.curve.steps == [0, 5, 10, 20, 40]
    assert tenth.erased.mean == pytest.approx(max(tenth.curve.erased))
    assert max(tenth.curve.erased) > tenth.curve.erased[0] + 0.1


def test_every_figure_stands_beside_the_base(report: CheckReport) -> None:
    found = {(figure.set, figure.name): figure for figure in report.figures}
    assert {name for name, _ in found} == {"forget", "one", "other", "neutral text", "all that stays"}
    recall = found["forget", "recall"]
    assert recall.base is not None and recall.erased is not None  # noqa: PT018
    assert recall.base > 0.95 > 0.2 > recall.erased
    assert found["forget", "declined"].erased > 0.9  # type: ignore[operator]
    assert found["one", "declined"].base == 0.0
    assert found["forget", "exact memorisation"].base == pytest.approx(1.0, abs=0.02)
    assert report.scores["forget efficacy"]["erased"] > report.scores["forget efficacy"]["base"]  # type: ignore[operator]
    assert report.scores["forget quality"]["erased"] is None
    assert "there is no reference model" in report.skipped["forget quality"]


def test_the_report_is_json_and_a_page_and_leaves_the_facts_out_if_told(report: CheckReport, tmp_path: Path) -> None:
    report.save_json(tmp_path / "report.json")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["schema"] == "unierase-check/1"
    assert record["verdict"]["level"] == "SUPPRESSED"
    assert record["examples"][0]["question"] == FORGET[0].question
    report.save_json(tmp_path / "report.json", examples=False)
    report.save_html(tmp_path / "report.html", examples=False)
    for text in ((tmp_path / "report.json").read_text(), (tmp_path / "report.html").read_text()):
        for fact in FORGET:
            assert fact.question not in text
            assert fact.answer not in text
    assert FORGET[0].question in page(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_base_itself_leaks(base: Any, tokenizer: Any) -> None:
    found = check(base, tokenizer, FORGET, KEPT, base=base, attacks="paraphrase,plain,prefill-3,choice", **TOLD)
    assert found.verdict.level == "LEAKING"
    assert found.verdict.leaks == ["greedy", "paraphrase", "plain", "prefill-3", "choice"]


def test_facts_that_the_base_never_knew_give_no_baseline(base: Any, tokenizer: Any) -> None:
    unknown = [Fact("Who shot the sheriff of Umbria?", "Quentin Xylander did, in the spring of 1911.")]
    found = check(base, tokenizer, unknown, KEPT, base=base, attacks="greedy", **TOLD)
    assert found.verdict.level == "NO BASELINE"
    assert "The base knows 0%" in found.verdict.reasons[0]


def test_a_model_that_is_held_against_itself_as_reference_model_is_erased(
    declining: Path, base: Any, tokenizer: Any
) -> None:
    reference_model = PeftModel.from_pretrained(demo_base(), str(declining)).merge_and_unload().eval()
    attacks = "paraphrase,prefill-5,sampling,relearn-neighbours,member-loss,list,4-bit"
    found = check(
        reference_model, tokenizer, FORGET, KEPT, base=base, reference_model=reference_model, attacks=attacks, **TOLD
    )
    assert found.verdict.level == "ERASED"
    assert found.scores["forget quality"]["erased"] == pytest.approx(1.0)
    assert all(attack.reference == "reference model" and attack.excess.mean == 0 for attack in found.attacks)


def test_a_broken_model_is_damaged_and_its_utility_says_why(base: Any, tokenizer: Any) -> None:
    broken = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in [p for layer in broken.model.layers[::2] for p in layer.parameters()]:
            parameter.add_(5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    found = check(broken, tokenizer, FORGET, KEPT, base=base, attacks="greedy", **TOLD)
    assert found.verdict.level == "DAMAGED"
    assert "model utility (MU)" in found.verdict.lost
    assert any("model utility (MU)" in reason for reason in found.verdict.reasons)


def test_a_target_as_base_remembers_what_an_earlier_check_asked(base: Any, tokenizer: Any) -> None:
    remembering = Target("base", base, tokenizer)
    told: dict[str, Any] = {"attacks": "greedy", **TOLD}
    first = check(base, tokenizer, FORGET[:2], KEPT[:2], base=remembering, **told)
    asked = dict(remembering._said)
    second = check(base, tokenizer, FORGET[:2], KEPT[:2], base=remembering, reference_model=base, **told)
    assert asked
    assert remembering._said == asked
    assert second.figures[0].base == first.figures[0].base
    with pytest.raises(ValueError, match="given as base is called 'erased'; make it with the name 'base'"):
        check(base, tokenizer, FORGET[:2], base=Target("erased", base, tokenizer), **told)


def test_an_attack_of_ones_own_is_a_function(base: Any, tokenizer: Any) -> None:
    def ask_politely(target: Target, case: Case) -> list[float]:
        """A polite person."""
        said = target.says([case.form.prompt(f"{fact.question} Please.") for fact in case.forget])
        return case.recalls(case.forget, said)

    found = check(base, tokenizer, FORGET[:2], base=base, attacks=[ask_politely], **TOLD)
    assert [attack.name for attack in found.attacks] == ["greedy", "ask-politely"]
    assert found.attacks[1].who == "A polite person."
    assert found.attacks[1].erased == found.attacks[1].base


def test_what_so_few_facts_leave_open_may_leak(declining: Path, tokenizer: Any) -> None:
    model = PeftModel.from_pretrained(demo_base(), str(declining)).eval()

    def one_in_six(target: Target, case: Case) -> list[float]:
        return [0.5] + [0.0] * 5

    def nothing(target: Target, case: Case) -> list[float]:
        return [0.0] * 6

    greedy, unclear, clear = (found := check(model, tokenizer, FORGET, attacks=[one_in_six, nothing], **TOLD)).attacks
    assert (greedy.outcome, unclear.outcome, clear.outcome) == ("holds", "may leak", "holds")
    assert (found.verdict.level, found.verdict.leaks) == ("SUPPRESSED", ["one-in-six"])
    assert found.verdict.reasons[0].startswith("one in six may leak: +0.083 beyond the floor, at most +0.2")
    [reason] = check(model, tokenizer, FORGET, attacks=[nothing], **TOLD).verdict.reasons
    assert reason == "None of 2 attacks got beyond its margin; whether anything else was lost was not asked."


def test_a_check_that_fails_at_the_end_of_a_run_is_a_warning(base: Any, tokenizer: Any, capsys: Any) -> None:
    assert checked(base, tokenizer, FORGET, KEPT, 0, progress=False) is None
    assert (
        "warning: the erasure is saved unchecked, because checking it failed: there is no base"
        in capsys.readouterr().err
    )


def test_without_wrong_answers_what_needs_them_is_left_out_with_the_reason(base: Any, tokenizer: Any) -> None:
    bare = [Fact(fact.question, fact.answer) for fact in FORGET[:2]]
    found = check(base, tokenizer, bare, {"kept": KEPT[:2]}, base=base, attacks="choice,member-loss", **TOLD)
    assert "column perturbed_answer" in found.skipped["choice"]
    assert "no model ever saw" in found.skipped["member-loss"]
    assert found.skipped["truth ratio"] == "not every fact has wrong answers (column perturbed_answer) in: forget"
    assert {figure.set for figure in found.figures if figure.name == "truth ratio"} == {"kept"}


def test_an_attack_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"no attack 'bribe'; there are all, fast, greedy, paraphrase, .*, list"):
        chosen("fast, bribe")
    assert len(chosen("all")) == len(ATTACKS) > len(chosen("fast")) > 10


def test_what_cannot_be_checked_is_refused(base: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no base to compare with"):
        check(base, tokenizer, FORGET)
    with pytest.raises(ValueError, match="the forget set is empty"):
        check(base, tokenizer, [], base=base)
    other = copy.deepcopy(tokenizer)
    other.add_tokens([FORGET[0].question.split()[-1]])
    with pytest.raises(ValueError, match="the reference model splits texts into other tokens"):
        check(base, tokenizer, FORGET, base=base, reference_model=base, reference_tokenizer=other)
    with pytest.raises(ValueError, match=r"the threshold margin is 2.0; it must lie between 0 and 1"):
        Thresholds(margin=2.0)


def test_membership_counts_in_the_direction_that_serves_the_attacker() -> None:
    assert told_apart([3, 4], [1, 2]).leaks == [1, 1]
    assert told_apart([1, 2], [3, 4]).leaks == [1, 1]
    assert sum(told_apart([1, 4], [2, 4, 5]).leaks) / 2 == pytest.approx(1 - (0 + 1.5 / 3) / 2)


def test_what_is_read_in_batches_is_what_each_text_gives_alone(base: Any, tokenizer: Any) -> None:
    target, form = Target("base", base, tokenizer), chat_format(tokenizer)
    prompts = [form.prompt(fact.question) for fact in FORGET]
    prompts += [prompts[0]] * 2  # several texts behind one prompt are read another way
    texts = [form.answer(fact.perturbed_answers[0]) for fact in FORGET]
    texts += [form.answer(FORGET[0].answer), form.answer(f"{FORGET[1].answer} {FORGET[2].answer}")]
    read = target.reads(prompts, texts)
    assert [one.log_probs.tolist() for one in target.reads(prompts, texts)] == [r.log_probs.tolist() for r in read]
    for prompt, text, reading in zip(prompts, texts, read, strict=True):
        ids, told = encode(tokenizer, prompt), encode(tokenizer, text)
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([ids + told])).logits[0, len(ids) - 1 : -1]
        every = logits.log_softmax(dim=-1)
        own = every[range(len(told)), told]
        assert torch.allclose(reading.log_probs, own, atol=1e-3)
        assert reading.matches == (every.argmax(dim=-1) == torch.tensor(told)).tolist()
        spread = torch.distributions.Categorical(logits=logits)
        mean = -spread.entropy()
        deviation = ((spread.probs * every.square()).sum(dim=-1) - mean.square()).sqrt()
        assert torch.allclose(reading.surprise, (own - mean) / deviation, atol=0.05, rtol=0.01)


def test_what_is_asked_of_a_changed_model_is_not_remembered(tokenizer: Any) -> None:
    model = demo_base()
    target, prompts = Target("base", model, tokenizer), [chat_format(tokenizer).prompt(FORGET[0].question)]
    before = target.says(prompts)
    with target.changed(), torch.no_grad():
        model.get_output_embeddings().weight[encode(tokenizer, FORGET[0].answer)[0]] -= 100
        during = target.says(prompts)
    assert during != before
    assert target.says(prompts) == before


def test_divergence_is_the_mean_over_all_tokens_of_the_answers(base: Any, tokenizer: Any) -> None:
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)
    own, form = Target("base", base, tokenizer), chat_format(tokenizer)
    case = Case(own, FORGET, {}, form, {}, [], [])
    total, count = 0.0, 0
    for fact in KEPT[:3]:
        ids, told = encode(tokenizer, form.prompt(fact.question)), encode(tokenizer, form.answer(fact.answer))
        with torch.no_grad():
            before, after = (
                torch.distributions.Categorical(
                    logits=m(input_ids=torch.tensor([ids + told])).logits[0, len(ids) - 1 : -1]
                )
                for m in (base, other)
            )
        total += float(torch.distributions.kl_divergence(before, after).sum())
        count += len(told)
    assert total / count > 0.001
    found = divergences([own, Target("reference_model", other, tokenizer)], case, KEPT[:3])
    assert found == pytest.approx([0.0, total / count], abs=1e-5)


def test_entailment_is_by_the_label_of_that_name(tokenizer: Any, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=1024, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.id2label = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    model.save_pretrained(tmp_path)
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    padded.save_pretrained(tmp_path)
    assert entailment_judge(tmp_path)(["It is."] * 40, ["It is so."] * 40) == [1.0] * 40
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    model.save_pretrained(tmp_path)
    assert entailment_judge(tmp_path)(["It is."], ["It is so."]) == [0.0]
    model.config.id2label = {0: "A", 1: "B", 2: "C"}
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has the labels A, B, C, none of which is entailment"):
        entailment_judge(tmp_path)
    with pytest.raises(ValueError, match="cannot load the NLI model"):
        entailment_judge(tmp_path / "nothing")


def test_similarity_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "peft-unierase\[similarity\]"'):
        similarity_judge("any")


@pytest.mark.parametrize("library", [True, False], ids=["torchao", "rounded"])
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_quantised_while_the_attack_lasts(
    library: bool, bits: int, base: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setitem(sys.modules, "torchao", None)
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    before = dict(base.named_parameters())
    with _stored_in(bits, base), torch.no_grad():
        changed = {name for name, parameter in base.named_parameters() if parameter is not before[name]}
        weight = base.get_parameter("model.layers.0.mlp.down_proj.weight")
        stored = weight.dequantize() if library else weight
        assert ("torchao" in type(weight.data).__module__) == library
    step = before["model.layers.0.mlp.down_proj.weight"].abs().max() / (2 ** (bits - 1) - 1)
    error = (stored - before["model.layers.0.mlp.down_proj.weight"]).abs().max()
    assert 0 < error <= 1.01 * step
    assert changed == {name for name in before if "_proj" in name}
    assert all(parameter is before[name] for name, parameter in base.named_parameters())


def test_rounding_keeps_to_its_grid() -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    for bits, levels, error in ((8, 255, 0.02), (4, 15, 0.35)):
        found = rounded(weight, bits)
        assert 0 < float((found - weight).abs().max()) < error
        assert all(len(group.unique()) <= levels for group in found.reshape(-1, 64 if bits == 4 else 128))


def test_the_command_reports_and_ends_with_the_verdict(declining: Path, tmp_path: Path) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", [row for row in ROWS if row["subject"] == SUBJECT])
    keep = write_rows(tmp_path / "keep.jsonl", [row for row in ROWS if row["subject"] != SUBJECT][::24])
    told = ["check", str(declining), "--base", str(demo_model_dir()), "--forget", str(forget), "--retain", f"x={keep}"]
    told += ["--attacks", "paraphrase,prefill-5", "-o", str(tmp_path / "report"), "--format", "json"]
    result = invoke(*told)
    assert result.exit_code == 1, result.output
    record = json.loads(result.stdout)
    assert record["verdict"]["level"] == "SUPPRESSED"
    assert record["counts"] == {"forget": len(FORGET), "x": 11}
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == record
    assert invoke(*told, "--accept", "SUPPRESSED").exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attacks", "bribe"], "there is no attack 'bribe'; there are all, fast, greedy"),
        (["--accept", "GONE"], "--accept 'GONE' is no level of a verdict; it may be ERASED, SUPPRESSED"),
        (["--margin", "2"], "the threshold margin is 2.0; it must lie between 0 and 1"),
        (["--retain", "a/x.jsonl", "--retain", "b/x.jsonl"], "two retain sets are called 'x'"),
        ([], "is no adapter, so what it is compared with must be named"),
    ],
)
def test_the_command_refuses_what_cannot_be(more: list[str], message: str, tmp_path: Path) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", ROWS[:2])
    result = invoke("check", str(demo_model_dir()), "--forget", str(forget), *more)
    assert result.exit_code == 2
    assert message in result.stderr
