"""Published benchmarks become sets of facts, from small files of their layout, and a missing column is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peft_unierase import Fact, FactError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from compare import loaders

    return loaders


def write(path: Path, rows: list[dict[str, Any]], lines: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")


def perturbed(who: str) -> dict[str, Any]:
    return {
        "question": f"Where was {who} born?",
        "answer": f"{who} was born in Oslo.",
        "paraphrased_question": f"What is {who}'s place of birth?",
        "paraphrased_answer": f"Oslo is where {who} was born.",
        "perturbed_answer": [f"{who} was born in {town}." for town in ("Rome", "Bonn")],
    }


def tofu_folder(folder: Path) -> Path:
    write(folder / "forget10_perturbed.json", [perturbed("Ann")])
    write(folder / "retain_perturbed.json", [perturbed("Bob")])
    write(folder / "retain90.json", [{k: perturbed(who)[k] for k in ("question", "answer")} for who in ("Bob", "Cy")])
    short = {"question": "Who wrote Emma?", "answer": "Jane Austen", "perturbed_answer": ["Ann Radcliffe"]}
    write(folder / "real_authors_perturbed.json", [short])
    write(folder / "world_facts_perturbed.json", [{**short, "question": "What is the capital of Italy?"}])
    return folder


def test_tofu_brings_wordings_and_wrong_answers_and_measures_nothing_that_a_method_gets(
    loaders: Any, tmp_path: Path
) -> None:
    sets = loaders.tofu(tofu_folder(tmp_path))
    assert sets.forget == [
        Fact(
            "Where was Ann born?",
            "Ann was born in Oslo.",
            paraphrases=("What is Ann's place of birth?",),
            paraphrased_answer="Oslo is where Ann was born.",
            perturbed_answers=("Ann was born in Rome.", "Ann was born in Bonn."),
        )
    ]
    assert [fact.question for fact in sets.retain] == ["Where was Cy born?"]
    assert {name: len(facts) for name, facts in sets.held_out.items()} == {
        "retain": 1,
        "real authors": 1,
        "world facts": 1,
    }


def test_a_missing_column_is_named_with_those_that_are_there(loaders: Any, tmp_path: Path) -> None:
    folder = tofu_folder(tmp_path)
    write(folder / "forget10_perturbed.json", [{"question": "Where?", "answer": "There."}])
    with pytest.raises(FactError, match="no column 'paraphrased_question', 'paraphrased_answer', 'perturbed_answer'"):
        loaders.tofu(folder)


def test_a_missing_file_is_told_with_the_names_that_it_may_have(loaders: Any, tmp_path: Path) -> None:
    with pytest.raises(FactError, match=r"retain_perturbed, retain_perturbed/train.*\.parquet"):
        loaders.tofu(tmp_path)


@pytest.mark.parametrize("name", ["retain_qa", "retain2_qa"])
def test_muse_has_questions_and_texts_to_be_continued(loaders: Any, tmp_path: Path, name: str) -> None:
    rows = [{"question": f"Who was seen on day {n}?", "answer": f"Number {n}"} for n in range(4)]
    write(tmp_path / "knowmem" / "forget_qa.json", rows[:2], lines=False)
    write(tmp_path / "knowmem" / f"{name}.json", rows[2:], lines=False)
    write(tmp_path / "verbmem" / "forget.json", [{"prompt": "It was a dark", "gt": "and stormy night"}], lines=False)
    known, verbatim = loaders.muse(tmp_path), loaders.muse(tmp_path, "verbmem")
    assert [fact.answer for fact in known.forget] == ["Number 0", "Number 1"]
    assert [fact.answer for fact in known.retain] == ["Number 2"]
    assert [fact.answer for fact in known.held_out["retain"]] == ["Number 3"]
    assert verbatim.forget == [Fact("It was a dark", "and stormy night")]
    with pytest.raises(FactError, match="no part 'privleak'; choose knowmem or verbmem"):
        loaders.muse(tmp_path, "privleak")


def test_wmdp_forgets_the_text_of_the_right_choice_and_keeps_mmlu(loaders: Any, tmp_path: Path) -> None:
    choices = ["a mouse", "a virus", "a house", "a stone"]
    write(tmp_path / "wmdp-bio.json", [{"question": "What spreads?", "choices": choices, "answer": 1}])
    kept = [{"question": f"Which is {n}?", "subject": "maths", "choices": ["odd", "even"], "answer": n} for n in (0, 1)]
    write(tmp_path / "all" / "test-00000-of-00001.json", kept)
    sets = loaders.wmdp(tmp_path, mmlu=tmp_path)
    assert sets.forget == [Fact("What spreads?", "a virus", perturbed_answers=("a mouse", "a house", "a stone"))]
    assert [fact.answer for fact in sets.retain] == ["odd"]
    assert [fact.answer for fact in sets.held_out["MMLU"]] == ["even"]


def probe(query: str, answer: str, subject: str, level: int) -> dict[str, Any]:
    return {"query": query, "answer": answer, "subject": subject, "level": str(level), "type": "cloze"}


def rwku_folder(folder: Path) -> Path:
    write(
        folder / "forget_level1.json",
        [probe("Ann Ash wrote ___.", "Emma", "Ann Ash", 1), probe("Bo Birch sang ___.", "Aida", "Bo Birch", 1)],
    )
    write(folder / "forget_level2.json", [probe("What did Ann Ash write?", "Emma", "Ann Ash", 2)])
    write(folder / "neighbor_level1.json", [probe("Cy Cedar knew ___.", "Ann Ash", "Ann Ash", 1)])
    write(folder / "neighbor_level2.json", [probe("Whom did Di Dill meet?", "Bo", "Bo Birch", 2)])
    return folder


def test_rwku_forgets_a_person_s_probes_and_holds_their_neighbours_out(loaders: Any, tmp_path: Path) -> None:
    sets = loaders.rwku(rwku_folder(tmp_path), ["Ann Ash"])
    assert [(fact.question, fact.answer, fact.subject) for fact in sets.forget] == [
        ("Ann Ash wrote ___.", "Emma", "Ann Ash"),
        ("What did Ann Ash write?", "Emma", "Ann Ash"),
    ]
    assert [fact.question for fact in sets.retain] == ["Whom did Di Dill meet?"]
    assert [fact.question for fact in sets.held_out["neighbours"]] == ["Cy Cedar knew ___."]


def test_an_unknown_person_of_rwku_is_told_with_those_there_are(loaders: Any, tmp_path: Path) -> None:
    with pytest.raises(FactError, match="no probe about 'Ann Oak'; there are Ann Ash, Bo Birch"):
        loaders.rwku(rwku_folder(tmp_path), ["Ann Oak"])


def test_what_is_no_folder_is_a_name_on_the_hub(loaders: Any) -> None:
    assert loaders.Part("forget10_perturbed", "train", ()).place("locuslab/TOFU") == "locuslab/TOFU:forget10_perturbed"


def test_a_column_that_the_hub_lacks_is_named_too(loaders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pytest.importorskip("peft_unierase.data.files")
    table = files.Table("x", "row", [(1, {"query": "Who?", "answer": "Ann"})])
    monkeypatch.setattr(loaders, "read_table", lambda *told: table)
    with pytest.raises(FactError, match="jinzhuoran/RWKU:forget_level1 has no column 'subject', 'level', 'type'"):
        loaders.rwku()
