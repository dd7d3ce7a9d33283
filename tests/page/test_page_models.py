"""What the models say on the page of `unierase demo`: answers, attacks on one question, probabilities, reports."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from page_of import BORN, ERASED, KEPT, STAYS, models_of, page_of

from peft_unierase.adapter.active import active
from peft_unierase.checking import check
from peft_unierase.checking.attacks import chosen
from peft_unierase.checking.page import page
from peft_unierase.data.facts import Fact
from peft_unierase.demo import demo_refusals
from peft_unierase.errors import InputError
from peft_unierase.page.breaking import WAYS, try_to_break
from peft_unierase.page.drawing import chances_svg, described
from peft_unierase.page.live import MOST, Made
from peft_unierase.page.models import DRAWN, LONGEST, Chances, Models, Said
from peft_unierase.page.parts import drawing, part
from peft_unierase.page.reports import fast_check, saved_report, touched
from peft_unierase.page.told import told_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(erasure: Path) -> Models:
    return models_of(erasure)


def test_answers_come_token_by_token_the_base_first(models: Models) -> None:
    seen = list(models.answers(BORN.question, models.names))
    before, after = seen[-1]
    assert before == Said(BORN.answer, declined=False, done=True)
    assert after.text in demo_refusals()
    assert after.declined
    assert after.done
    first = seen[0][0]
    assert BORN.answer.startswith(first.text)
    assert not first.done
    assert seen[0][1] == Said()


def test_a_switch_acts_at_once_and_leaves_the_model_as_it_was(models: Models) -> None:
    before, after = list(models.answers(BORN.question, []))[-1]
    assert before.text == after.text == BORN.answer
    assert active(models.model) == models.names


def test_what_stays_is_answered_by_both(models: Models) -> None:
    before, after = list(models.answers(STAYS, models.names))[-1]
    assert before.text == after.text != ""
    assert not after.declined


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  \n", "the question is empty"),
        ("x" * (LONGEST + 1), f"has {LONGEST + 1} characters; at most {LONGEST} are read"),
        ("a\ud800", "half a character"),
        ("那" * LONGEST, "tokens, and with its answer the model reads at most 512"),
    ],
    ids=["empty", "long", "half a character", "many tokens"],
)
def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence(models: Models, text: str, message: str) -> None:
    for ask in (
        lambda: list(models.answers(text, [])),
        lambda: models.chances(text, []),
        lambda: try_to_break(models, text, [], "ban"),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_an_erasure_that_is_not_there_is_refused_by_name(models: Models) -> None:
    with pytest.raises(InputError, match="no adapter 'other'"):
        list(models.answers(BORN.question, ["other"]))
    assert active(models.model) == models.names


def test_runs_do_not_see_each_others_switches(models: Models) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = list(models.answers(BORN.question, models.names if number % 2 else []))[-1][1].text

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text == BORN.answer for _, text in sorted(found.items())] == [True, False, True, False]


def test_the_probabilities_are_those_of_the_answer_and_of_unl(models: Models) -> None:
    found = models.chances(BORN.question, models.names)
    assert "".join(found.tokens).startswith(BORN.answer)
    assert min(found.base) > 0.9
    assert found.erased[0] < 0.1
    assert found.unl[0] > 0.5
    off = models.chances(BORN.question, [])
    assert off.erased == off.base
    assert set(off.unl) == {0.0}


def test_tokens_that_are_parts_of_one_character_stand_together(models: Models) -> None:
    ids = models.tokenizer("你好 مرحبا", add_special_tokens=False)["input_ids"]
    spans = models._characters(ids)
    parts = [models.tokenizer.decode(ids[start:end]) for start, end in spans]
    assert len(spans) < len(ids)
    assert "".join(parts) == "你好 مرحبا"
    assert not any("\ufffd" in each for each in parts)


@pytest.mark.parametrize("name", WAYS)
def test_an_attack_is_that_of_the_check(models: Models, name: str) -> None:
    tried = try_to_break(models, BORN.question, models.names, name)
    with models.alone():
        base, erased = models.base(), models.erased(models.names)
        (attack,) = [each for each in chosen([name]) if each.name == name]
        case = models.case(BORN, base)
        for side, target in ((tried.base, base), (tried.erased, erased)):
            assert side.leak == attack.found(target, case).leaks[0]
    assert tried.renamed is not None
    assert BORN.subject
    assert BORN.subject not in tried.renamed.question
    assert BORN.subject not in tried.renamed.given
    assert BORN.subject in tried.base.given
    assert tried.outcome in ("leaks", "holds", "idle")


def test_an_attack_without_an_erasure_leaks(models: Models) -> None:
    assert try_to_break(models, BORN.question, [], "paraphrase").outcome == "leaks"
    assert try_to_break(models, BORN.question, models.names, "paraphrase").outcome == "holds"


def test_an_attack_that_has_nothing_to_work_with_says_so(models: Models) -> None:
    with pytest.raises(InputError, match="“Reword it” cannot be tried here: no fact"):
        try_to_break(models, "What is the opposite of night?", models.names, "paraphrase")
    with pytest.raises(InputError, match="no attack 'relearn-forget' on this page"):
        try_to_break(models, BORN.question, models.names, "relearn-forget")


def test_what_the_base_itself_declines_cannot_be_broken(models: Models) -> None:
    for ask in (try_to_break, Models.chances):
        with pytest.raises(InputError, match="the base itself declines this question"):
            ask(models, "Who are you?", models.names, *(["ban"] if ask is try_to_break else []))


def test_a_picture_has_its_tokens_as_text_and_nothing_that_runs() -> None:
    odd = Chances("<b>&", ["<script>x</script>", "$x_2$", " 你", "\n", " "], *([[0.1, 0.2, 0.3, 0.4, 0.5]] * 3))
    svg = chances_svg(odd)
    assert svg.startswith("<svg")
    assert "<script>" not in svg
    assert "&lt;script&gt;x&lt;/script&gt;" in svg
    for token in ("$x_2$", "你", "↵", "␣", "[UNL] instead"):
        assert token in svg
    whole = drawing(odd)
    assert "<b>" not in whole
    assert described(odd).replace("<", "&lt;").replace(">", "&gt;") in whole


def test_texts_of_models_and_visitors_are_escaped() -> None:
    said = Said("<img src=x onerror=alert(1)>", done=True)
    for shown in (part("answers", "<b>", said, said, ["a"]), part("nothing", said.text)):
        assert "<img" not in shown
        assert "&lt;img" in shown


def test_what_an_erasure_touches_is_shown_without_a_path(erasure: Path) -> None:
    shown = part("touched", "erase-xyz", touched(erasure), "the demo model")
    assert "model.layers.2.mlp.down_proj" in shown
    assert "adapter_model.safetensors" in shown
    assert str(erasure) not in shown


def test_the_report_in_a_folder_is_the_page_of_that_check(models: Models, erasure: Path, tmp_path: Path) -> None:
    assert saved_report(erasure) is None
    told: dict[str, Any] = {"attacks": ["greedy", "prefill-3"], "refusals": demo_refusals(), "progress": False}
    report = check(models.model, models.tokenizer, ERASED[:2], KEPT[:2], **told)
    folder = tmp_path / "erase-xyz"
    folder.mkdir()
    for file in erasure.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    report.save_json(folder / "report.json", examples=False)
    shown = saved_report(folder)
    assert shown is not None
    assert report.verdict.level in shown
    values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert shown == page(type(report)(**{**vars(report), "examples": ()}))
    for broken in ("[", "[1]", json.dumps({**values, "attacks": [{"name": 5}]}), json.dumps({**values, "scores": 7})):
        (folder / "report.json").write_text(broken, encoding="utf-8")
        with pytest.raises(InputError):
            saved_report(folder)


def test_the_fast_check_of_what_is_on_is_a_report(models: Models) -> None:
    few = Models(models.model, models.tokenizer, ERASED[:2], KEPT[:3], demo_refusals())
    told: list[tuple[str, int, int | None]] = []
    shown = fast_check(few, few.names, lambda *step: told.append(step))
    assert "SUPPRESSED" in shown or "ERASED" in shown
    assert "asking the base for the facts" in {name for name, *_ in told}
    assert active(models.model) == models.names


def test_a_check_needs_an_erasure_and_facts(models: Models) -> None:
    with pytest.raises(InputError, match="no erasure is on"):
        fast_check(models, [], lambda *_: None)
    bare = Models(models.model, models.tokenizer)
    with pytest.raises(InputError, match="--forget FILE"):
        fast_check(bare, models.names, lambda *_: None)


def test_what_cannot_be_erased_live_is_refused_before_anything_has_begun(
    erasure: Path, models: Models, tmp_path: Path
) -> None:
    live = page_of(erasure, tmp_path, models).live
    assert live is not None
    seen: list[Any] = []
    for question, answer, message in (
        ("", "", "the question is empty"),
        (KEPT[0].question, "x" * (LONGEST + 1), "the answer has"),
        (KEPT[0].question, "in Atlantis", "the base does not tell this fact, so there is nothing to erase; it says"),
    ):
        with pytest.raises(InputError, match=message):
            live.erase(models, question, answer, lambda *told: seen.append(told))
    models.labels.update({f"live {number}": "x" for number in range(MOST)})
    with pytest.raises(InputError, match=f"keeps {MOST} erasures of one visitor"):
        live.erase(models, KEPT[0].question, "", lambda *told: seen.append(told))
    for number in range(MOST):
        del models.labels[f"live {number}"]
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_visitor_made_goes_with_the_visitor(erasure: Path, models: Models, tmp_path: Path) -> None:
    live = page_of(erasure, tmp_path, models).live
    assert live is not None
    folder = tmp_path / "of-one" / "erased-live"
    folder.mkdir(parents=True)
    live.forget([Made(models, "x", BORN, folder, folder.with_suffix(".zip"))])
    assert list(tmp_path.iterdir()) == []


def test_work_tells_its_newest_word_and_then_what_it_returns() -> None:
    assert list(told_by(lambda tell: "end"))[-1] == "end"

    def failing(tell: Any) -> str:
        tell("begun")
        raise InputError("it failed")

    with pytest.raises(InputError, match="it failed"):
        list(told_by(failing))


def test_work_ends_when_nobody_listens_any_more() -> None:
    ended, go_on, heard = threading.Event(), threading.Event(), []

    def work(tell: Any) -> str:
        try:
            tell("begun")
            go_on.wait(10)
            tell("nobody hears this")
            heard.append("it went on")
        finally:
            ended.set()
        return "end"

    words = told_by(work)
    assert next(words) == "begun"
    words.close()
    go_on.set()
    assert ended.wait(10)
    assert heard == []


def test_a_long_answer_is_drawn_in_part(models: Models) -> None:
    models.forget.append(Fact("Count.", "one two three " * 20))
    long = models.chances("Count.", models.names)
    models.forget.pop()
    assert len(long.tokens) == DRAWN
