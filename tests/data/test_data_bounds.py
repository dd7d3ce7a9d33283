"""Files of any width, length or strangeness are read, or refused in one line, in bounded time."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from peft_unierase import Fact, FactError
from peft_unierase.data import read_facts
from peft_unierase.data.facts import check_facts, merge_repeats
from peft_unierase.records.record import coverage, fact_digests

MANY = 20_000


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Of processor time: the machine may have other things to do."""
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


@pytest.mark.parametrize(
    "name", ["c{}", "distractor{}", "wrong_{}", "paraphrase{}", "a.b{}", "option{}", "question_{}_id"]
)
def test_a_table_of_20000_columns_takes_no_longer_than_it_is_wide(tmp_path: Path, name: str) -> None:
    with (tmp_path / "wide.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["question", "answer", *(name.format(number) for number in range(MANY))])
        for row in range(5):
            writer.writerow([f"Who is {row}?", f"v{row}", *(f"v{number}" for number in range(MANY))])
    with within(6):
        facts = read_facts(tmp_path / "wide.csv", warn=lambda text: None)
    assert [fact.question for fact in facts] == [f"Who is {row}?" for row in range(5)]


def test_rows_take_no_longer_than_they_are_many(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {number}?", "answer": f"Person {number}."} for number in range(MANY)]
    (tmp_path / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    with within(3):
        facts = read_facts(tmp_path / "many.json")
        assert check_facts(facts, []) == []
    assert len(facts) == MANY


def test_repeats_take_no_longer_than_they_are_many() -> None:
    facts = [Fact("Who?", "Me.", paraphrases=(f"Who is it, {number}?",)) for number in range(MANY)]
    with within(2):
        (once,) = merge_repeats(facts)
    assert once.paraphrases == tuple(fact.paraphrases[0] for fact in facts)


def test_facts_are_compared_with_a_record_in_time_for_their_number() -> None:
    facts = [Fact(f"Who is {number}?", "Me.") for number in range(MANY)]
    digests = fact_digests(facts[:-1] + facts[:1], b"key")
    with within(3):
        assert coverage(facts, digests, b"key") == ([facts[-1]], 1)


def test_a_chat_whose_questions_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "word " * 4} for _ in range(MANY) for role in ("user", "assistant")]
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": turns}]), encoding="utf-8")
    with within(3), pytest.raises(FactError, match=r"row 1: 'messages' is a chat of 40,000 turns.*cut it into shorter"):
        read_facts(tmp_path / "chat.json")


def extreme() -> dict[str, Any]:
    pa = pytest.importorskip("pyarrow")
    most = 2**63 - 1
    return {
        **{f"duration {unit}": pa.array([most, 5], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
        **{f"timestamp {unit}": pa.array([most // 2, 5], pa.timestamp(unit)) for unit in ("ms", "us", "ns")},
        "date": pa.array([2**31 - 1, 5], pa.date32()),
        "zone": pa.array([1, 5], pa.timestamp("us", tz="Nowhere/Town")),
        "list": pa.array([[most], [5]], pa.list_(pa.duration("s"))),
        "object": pa.array([{"d": most}, {"d": 5}], pa.struct([("d", pa.duration("s"))])),
        "bytes": pa.array([b"\xff", b"x"]),
    }


@pytest.mark.parametrize("kind", list(extreme()))
@pytest.mark.parametrize("column", ["answer", "beside"])
def test_extreme_values_of_a_parquet_file_are_read_or_refused(tmp_path: Path, kind: str, column: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"question": pa.array(["Who?", "Where?"]), "answer": pa.array(["Me.", "Here."]), column: extreme()[kind]}
    parquet.write_table(pa.table(columns), tmp_path / "extreme.parquet")
    with suppress(FactError):  # any other error fails
        facts = read_facts(tmp_path / "extreme.parquet", warn=lambda text: None)
        assert [fact.question for fact in facts] == ["Who?", "Where?"]


def test_whatever_a_library_makes_of_a_parquet_file_is_said_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"question": ["Who?"], "answer": ["Me."]}), tmp_path / "some.parquet")

    def fails(*told: Any) -> None:
        raise TypeError("days=\nno integer")

    monkeypatch.setattr("peft_unierase.data.files._values", fails)
    with pytest.raises(FactError, match=r"some\.parquet is not a readable parquet file \(days= no integer\)"):
        read_facts(tmp_path / "some.parquet")


def test_a_parquet_file_of_more_rows_than_anybody_erases_is_not_unpacked(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 1, pa.int32()).take(pa.array([0] * 1)), ["same"])
    column = pa.chunked_array([pa.concat_arrays([one] * 1000)] * 5001)
    parquet.write_table(pa.table({"question": column, "answer": column}), tmp_path / "bomb.parquet")
    with within(3), pytest.raises(FactError, match="has 5,001,000 rows, and at most 5,000,000 are read"):
        read_facts(tmp_path / "bomb.parquet")
