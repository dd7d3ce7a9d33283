"""Chats in the dialects that data sets are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peft_unierase.data import read_facts
from peft_unierase.data.facts import Fact

WHO = Fact("Who?", "He.")
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]

DIALECTS: dict[str, Any] = {
    "texts in turns": {"conversations": ["Who?", "He."]},
    "pairs": {"conversation": [["Who?", "He."]]},
    "roles as keys": {"conversation": [{"human": "Who?", "assistant": "He."}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "Who?"}]}, {"role": "model", "parts": ["He."]}]},
    "author": {"messages": [{"author": {"role": "user"}, "content": "Who?"}, {"author": "bot", "content": "He."}]},
    "sender": {"messages": [{"sender": "Human", "text": "Who?"}, {"sender": "Claude", "text": "He."}]},
    "capitals": {"messages": [{"Role": "User", "Content": "Who?"}, {"Role": "Assistant", "Content": "He."}]},
    "bing": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "bing", "value": "He."}]},
    "columns": {"conversations": {"from": ["human", "gpt"], "value": ["Who?", "He."]}},
    "one text": [{"chosen": "\n\nHuman: Who?\n\nAssistant: He.", "rejected": "\n\nHuman: Who?\n\nAssistant: He."}],
    "a list of messages": CHAT,
    "a list of chats": [CHAT, CHAT],
}


@pytest.mark.filterwarnings("ignore:.*repeat an earlier one")
@pytest.mark.parametrize("name", DIALECTS)
def test_a_chat_of_each_dialect_is_its_fact(tmp_path: Path, name: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(DIALECTS[name]))
    assert read_facts(path) == [WHO]


@pytest.mark.parametrize("prompt", [{}, {"prompt": "Who?"}, {"prompt": CHAT[:1]}])
def test_a_chosen_chat_is_right_and_a_rejected_one_wrong(tmp_path: Path, prompt: dict[str, Any]) -> None:
    path = tmp_path / "pairs.json"
    rejected = [CHAT[0], {**CHAT[1], "content": "She."}]
    path.write_text(json.dumps([{**prompt, "chosen": CHAT, "rejected": rejected}]))
    assert read_facts(path) == [Fact("Who?", "He.", perturbed_answers=("She.",))]


def test_an_assistant_may_answer_with_a_number(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "When?"}, {**CHAT[1], "content": 1969}]}))
    assert read_facts(path) == [Fact("When?", "1969")]
