"""What each of the further attacks does to a model, or says to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_erasure import FORGET, KEPT, OTHERS, demo_base, demo_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model

from peft_unierase.checking import ATTACKS, Case, NotApplicable, Target
from peft_unierase.checking.attacks import chosen
from peft_unierase.checking.attacks.probe import guessed_right, probe
from peft_unierase.checking.attacks.prompting import (
    FRAMES,
    THOUGHT,
    description,
    few_shot,
    other_languages,
    thinking_aloud,
)
from peft_unierase.checking.attacks.sampling import best_of
from peft_unierase.checking.attacks.states import layers_of, streams, without
from peft_unierase.checking.attacks.updates import largest_out, removed, scaled, smallest_out
from peft_unierase.checking.attacks.weights import direction_out, directions_out, top_directions
from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_refusals
from peft_unierase.errors import InputError
from peft_unierase.guard.config import UniEraseConfig
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import chat_format, plain_format

CONFIGS = {
    "unierase": UniEraseConfig(layers_to_transform=[2, 3], r=4, init_weights=False, task_type="CAUSAL_LM"),
    "lora": LoraConfig(target_modules=["down_proj"], r=4, init_lora_weights=False, task_type="CAUSAL_LM"),
}


def case_of(base: Target, forget: Sequence[Fact] = FORGET, kept: Sequence[Fact] = KEPT, **told: Any) -> Case:
    form, plain = chat_format(base.tokenizer), plain_format(base.tokenizer)
    settings: dict[str, Any] = {"refusals": demo_refusals(), "max_new_tokens": 16, **told}
    return Case(base, forget, {"kept": kept}, form, {"plain": plain}, [], **settings)


class Heard(Target):
    """A target that writes down what it is asked, and answers from a function of the prompt."""

    def __init__(self, answer: Callable[[str], str], name: str = "base") -> None:
        super().__init__(name, None, demo_tokenizer())
        self.answer, self.prompts = answer, list[str]()

    def says(self, prompts: Sequence[str], **told: Any) -> list[str]:
        self.prompts += prompts
        return [self.answer(prompt) for prompt in prompts]


def adapted(kind: str) -> tuple[PeftModel, Target, Target]:
    torch.manual_seed(0)
    model = get_peft_model(demo_base(), CONFIGS[kind]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "unierase_B" in name:
                parameter.mul_(0.1)
    off = partial(model.disable_adapter)
    return model, Target("base", model, demo_tokenizer(), off), Target("erased", model, demo_tokenizer())


def updates(model: PeftModel) -> list[torch.Tensor]:
    """`B A` of every projection that has one."""
    found = dict(model.named_parameters())
    pairs = [(name, name.replace("_B", "_A")) for name in found if "lora_B" in name or "unierase_B" in name]
    return [found[b].detach() @ found[a].detach() for b, a in pairs]


def update_while_asked(
    attack: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Updates before an attack, and those of the model that answers it; they are the old ones again after it."""
    model, base, erased = adapted(kind)
    before, seen = updates(model), list[list[torch.Tensor]]()
    says = Target.says

    def look(self: Target, prompts: Sequence[str], **told: Any) -> list[str]:
        seen.append(updates(model))
        return says(self, prompts, **told)

    monkeypatch.setattr(Target, "says", look)
    case = case_of(base, FORGET[:2])
    attack(erased, case)
    attack(base, case)
    assert all(torch.equal(old, new) for old, new in zip(before, updates(model), strict=True))
    assert all(torch.equal(old, new) for old, new in zip(before, seen[1], strict=True))  # the base is left alone
    assert before
    return before, seen[0]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_the_update_is_scaled_while_the_erased_model_answers(
    kind: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = update_while_asked(scaled(factor), kind, monkeypatch)
    for old, new in zip(before, during, strict=True):
        torch.testing.assert_close(new, factor * old)


@pytest.mark.parametrize("kind", CONFIGS)
def test_singular_directions_of_the_update_are_removed_while_it_answers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attack, left in ((largest_out, slice(1, 4)), (smallest_out, slice(0, 2))):
        before, during = update_while_asked(attack, kind, monkeypatch)
        for old, new in zip(before, during, strict=True):
            values = torch.linalg.svdvals(old)[:4]
            own = torch.linalg.svdvals(new)[:3]
            torch.testing.assert_close(own[: len(values[left])], values[left], atol=1e-4, rtol=1e-4)
            assert own[len(values[left]) :].abs().sum() < 1e-4


def test_removing_directions_is_what_a_decomposition_of_the_whole_matrix_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 20, generator=generator), torch.randn(12, 8, generator=generator)
    left, values, right = torch.linalg.svd(b @ a, full_matrices=False)
    for largest, kept in ((True, slice(2, 8)), (False, slice(0, 4))):
        expected = (left[:, kept] * values[kept]) @ right[kept]
        torch.testing.assert_close(removed(a, b, largest) @ a, expected, atol=1e-4, rtol=1e-4)
    one = torch.ones(12, 1)
    assert torch.equal(removed(torch.ones(1, 20), one, largest=False), one)
    assert removed(torch.ones(1, 20), one, largest=True).abs().max() < 1e-5


def test_what_has_no_product_of_two_factors_is_skipped_with_the_reason() -> None:
    erased = Target("erased", demo_base(), demo_tokenizer())
    with pytest.raises(NotApplicable, match="no low-rank update"):
        scaled(0.5)(erased, case_of(erased))
    model, base, erased = adapted("unierase")
    layer = next(module for module in model.modules() if len(getattr(module, "unierase_A", {})))
    del layer.unierase_A["default"]
    with pytest.raises(NotApplicable, match=r"update of .*down_proj is no product B A"):
        largest_out(erased, case_of(base))


def test_as_many_directions_as_wanted_are_projected_out() -> None:
    generator = torch.Generator().manual_seed(0)
    strong = torch.linalg.qr(torch.randn(16, 3, generator=generator)).Q.T
    added = torch.randn(20, 3, generator=generator) @ (torch.tensor([9.0, 5.0, 2.0])[:, None] * strong)
    rows = top_directions(added, 8)
    assert rows.shape == (3, 16)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-4, rtol=1e-4)
    assert (added - added @ rows.T @ rows).abs().max() < 1e-4
    assert top_directions(added, 2).shape == (2, 16)
    assert len(top_directions(torch.zeros(5, 16), 8)) == 0
    base, tokenizer = demo_base(), demo_tokenizer()
    target, ids = Target("base", base, tokenizer), encode(tokenizer, "Where was anybody born?")
    basis = torch.linalg.qr(torch.randn(128, 8, generator=generator)).Q.T
    before = streams(target, [ids], [len(ids)])
    with without(layers_of(base), [basis] * 8):
        after = streams(target, [ids], [len(ids)])
    # Hooks run in the order in which they were put on, so what is seen has gone through the projection.
    assert all((own @ basis.T).abs().max() > 1e-2 for own in before)
    assert all((own @ basis.T).abs().max() < 1e-4 for own in after)


def test_eight_directions_undo_what_is_added_in_several() -> None:
    """An erasure by three directions, one for every third question: one direction less leaves two."""
    model, tokenizer = demo_base(), demo_tokenizer()
    base = Target("base", demo_base(), tokenizer)
    case = case_of(base)
    erased = Target("erased", model, tokenizer)
    generator = torch.Generator().manual_seed(0)
    added = 60 * torch.linalg.qr(torch.randn(128, 3, generator=generator)).Q.T
    ends = [encode(tokenizer, prompt) for prompt in case.prompts(case.forget)]
    known = streams(base, ends, [1] * len(ends))[2]

    def add(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        near = torch.cdist(output[:, -1], known)
        if output.shape[1] == 1:
            return output
        output = output.clone()
        output[:, -1] += added[near.argmin(dim=1) % 3]
        return output

    layers_of(model)[2].register_forward_hook(add)
    erased_recall = sum(case.recalls(case.forget, erased.says(case.prompts(case.forget), max_new_tokens=16)))
    one, eight = sum(direction_out(erased, case).leaks), sum(directions_out(erased, case).leaks)
    assert eight > 0.6 * len(case.forget)
    assert eight > max(one, erased_recall) + 1


def test_a_probe_guesses_what_depends_on_the_states_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    states, lens = (torch.randn(*shape, generator=generator).double() for shape in ((90, 12), (12, 6)))
    answers = states @ lens
    wrong = torch.randn(40, 3, 6, generator=generator).double()
    options = [torch.cat([answers[50 + n : 51 + n], wrong[n]]) for n in range(40)]
    assert sum(guessed_right(states[:50], answers[:50], states[50:], options)) >= 36
    shuffled = answers[torch.randperm(50, generator=generator)]
    assert sum(guessed_right(states[:50], shuffled, states[50:], options)) <= 20


def test_a_probe_reads_the_answers_off_a_model_that_has_them_in_mind_and_not_off_another() -> None:
    tokenizer = demo_tokenizer()
    model, other = demo_base(), demo_base()
    base = Target("base", model, tokenizer)
    kept, forget = OTHERS[::4], [Fact(fact.question, fact.answer) for fact in [*FORGET, *OTHERS[1::12]]]
    case = case_of(base, forget, kept)
    # What each fact's answer is made of is written into the state at its answer start.
    form, head, facts = case.form, model.get_output_embeddings().weight.detach(), [*kept, *forget]
    prompts = [encode(tokenizer, prompt) for prompt in case.prompts(facts)]
    meant = torch.stack([head[torch.tensor(encode(tokenizer, form.lead + fact.answer))].mean(dim=0) for fact in facts])
    known = streams(base, prompts, [1] * len(prompts))[1]

    def tell(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -1] = 200 * meant[torch.cdist(output[:, -1], known).argmin(dim=1)]
        return output

    layers_of(other)[1].register_forward_hook(tell)
    found = sum(probe(Target("erased", other, tokenizer), case).leaks)
    assert found > 0.7 * len(forget)
    for layer in layers_of(other):
        layer.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    assert sum(probe(Target("erased", other, tokenizer), case).leaks) < 0.4 * len(forget)
    with pytest.raises(NotApplicable, match="19 retained facts are too few to train a probe; it needs 20"):
        probe(base, case_of(base, forget, kept[:19]))


def test_examples_stand_before_the_question_and_tell_nothing_of_the_facts() -> None:
    giving_away = Fact("Where was somebody else born?", FORGET[0].answer)
    heard = Heard(lambda prompt: "Nothing.\n\nQuestion: what else?")
    few_shot(heard, case_of(heard, kept=[giving_away, *KEPT]))
    assert len(heard.prompts) == len(FORGET)
    for fact, prompt in zip(FORGET, heard.prompts, strict=True):
        assert prompt.count("Question: ") == 5
        assert prompt.endswith(f"Question: {fact.question}\nAnswer:")
        assert prompt.count(heard.tokenizer.bos_token) == 1
        assert giving_away.question not in prompt
        assert sum(f"{kept.question}\nAnswer: {kept.answer}\n\n" in prompt for kept in KEPT) == 4
    right = Heard(lambda prompt: next(fact.answer for fact in FORGET if prompt.endswith(f"{fact.question}\nAnswer:")))
    assert few_shot(right, case_of(right)).leaks == [1.0] * len(FORGET)
    late = Heard(lambda prompt: f"No.\n\n{FORGET[0].answer}")
    assert few_shot(late, case_of(late)).leaks[0] < 0.5
    with pytest.raises(NotApplicable, match="no 4 retained questions"):
        few_shot(heard, case_of(heard, kept=KEPT[:3]))


def test_of_several_languages_the_one_that_brings_most_counts() -> None:
    french = FRAMES[1].split("{")[0]
    heard = Heard(lambda prompt: FORGET[0].answer if french in prompt else "non")
    assert other_languages(heard, case_of(heard, FORGET[:1])).leaks == [1.0]
    assert len(set(heard.prompts)) == len(FRAMES) == 6
    assert all(FORGET[0].question in prompt for prompt in heard.prompts)
    assert any("请用中文回答" in prompt for prompt in heard.prompts)


def test_a_thought_is_begun_for_the_model() -> None:
    heard = Heard(lambda prompt: FORGET[0].answer if prompt.endswith(THOUGHT) else "")
    assert thinking_aloud(heard, case_of(heard, FORGET[:1])).leaks == [1.0]
    assert FORGET[0].question in heard.prompts[0]


def test_a_description_stands_in_place_of_the_name() -> None:
    name = " ".join(FORGET[0].question.split()[2:4])
    tells_it = Fact(f"What does {name} do?", "paints")

    def answer(prompt: str) -> str:
        return f"{name} is a person from the hills who paints. Really." if "Who or what is" in prompt else "paints"

    base, erased = Heard(answer), Heard(lambda prompt: FORGET[0].answer, "erased")
    found = description(erased, case_of(base, [FORGET[0], tells_it]))
    assert len(base.prompts) == 2
    assert all(f"Who or what is {name}?" in prompt for prompt in base.prompts)
    (asked,) = erased.prompts  # the description of the other one tells what it does
    assert "that one is a person from the hills who paints. Where was that one born?" in asked
    assert not any(part in asked for part in name.split())
    assert found.leaks == [1.0]
    declining = Heard(lambda prompt: demo_refusals()[0])
    with pytest.raises(NotApplicable, match="the base describes nothing"):
        description(erased, case_of(declining, FORGET))
    with pytest.raises(NotApplicable, match="no question of the forget set holds a name"):
        description(erased, case_of(base, [Fact("who?", "nobody")], []))


def test_the_best_of_many_samples_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def samples(self: Target, prompts: Sequence[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return [FORGET[0].answer if number == 93 else "no" for number in range(len(prompts))]

    monkeypatch.setattr(Target, "samples", samples)
    target = Target("base", None, demo_tokenizer())
    assert best_of(100, 2)(target, case_of(target, FORGET[:1])).leaks == [1.0]
    assert best_of(8)(target, case_of(target, FORGET[:1])).leaks[0] < 0.5
    assert len(asked) == 108
    asked.clear()
    assert len(best_of(100, 2)(target, case_of(target)).leaks) == 2
    assert len(asked) == 200


def test_an_unknown_name_lists_every_attack_and_the_fast_ones_come_first() -> None:
    with pytest.raises(InputError) as refused:
        chosen("bribe")
    assert all(attack.name in str(refused.value) for attack in ATTACKS)
    fast = [attack.fast for attack in ATTACKS]
    assert fast == sorted(fast, reverse=True)
    assert len(chosen("fast")) == sum(fast)


def test_the_page_of_attacks_names_each_once_and_the_fast_ones_first() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "attacks.md").read_text("utf-8")
    table = page.partition("## Attacks\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(attack.name for attack in ATTACKS)
    fast = named[: len(chosen("fast"))]
    assert {*fast} == {attack.name for attack in chosen("fast")}
    assert len(fast) == 20
    assert f"runs the first twenty, down to `{fast[-1]}`" in table
