"""Chats as questions with their answers: each turn of the assistant, asked by all turns before it.

Knows the usual spellings of a message. No chat template: how a question becomes a prompt is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import shown
from .facts import FactError
from .table import quoted
from .values import answers_of, is_blank, parsed, text_of

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai", "chatbot", "answer"), ASSISTANT),
    **dict.fromkeys(("bing", "bard", "claude", "gemini", "llama", "llm"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
WHOSE = ("role", "from", "speaker", "author", "sender")
WHAT = ("content", "value", "text", "parts", "message")
SPOKEN = re.compile(r"\n\s*(Human|Assistant):")  # a chat as one text, as in HH-RLHF
MOST = 50_000_000  # turns times characters of a chat: about twice what the questions made of it hold
CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class Turn:
    """One message: whose it is and what it says; `None` of one that only calls a tool."""

    role: str
    text: str | None


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def turns_of(value: Any, column: str, place: str) -> list[Turn]:
    """The messages of a chat.

    Raises:
        FactError: It is no list of messages, or one of them has no text.
    """
    value = parsed(value, column, place)
    if isinstance(value, dict):
        value = _of_columns(value)
    if isinstance(value, str) and (parts := SPOKEN.split(f"\n{value.strip()}"))[1:] and not parts[0].strip():
        value = [{"role": role, "content": said} for role, said in zip(parts[1::2], parts[2::2], strict=True)]
    if isinstance(value, list) and len(value) > 1 and all(isinstance(said, str) for said in value):
        roles = (USER, ASSISTANT) * len(value)
        return [Turn(role, text_of(said, column, place)) for role, said in zip(roles, value, strict=False)]
    if value and is_pairs(value):
        return history_of(value, column, place)
    if not is_chat(value):
        raise FactError(
            f"{place}: {column!r} is {shown(value)}, not a list of messages; a message has a role and a content"
        )
    value = [turn for message in value for turn in _unfolded(message)]
    found = [_spelled(message, column, place) for message in value]
    turns = []
    for number, ((role, content), message) in enumerate(zip(found, value, strict=True)):
        name = f"{column}[{number}]"
        if is_blank(content) and (role not in (USER, ASSISTANT) or any(message.get(key) for key in CALLS)):
            turns.append(Turn(role, None))
        else:
            turns.append(Turn(role, _said(content, name, place)))
    return turns


def is_message(value: Any) -> bool:
    """Whether a value says whose it is and what it says."""
    keys = {key.lower() for key in map(str, value)} if isinstance(value, dict) else set()
    return not keys.isdisjoint(WHOSE) and not keys.isdisjoint(WHAT)


def is_pairs(value: Any) -> bool:
    """Whether a value is a list of pairs of texts."""
    return isinstance(value, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )


def chats_of_list(value: Any) -> list[Any] | None:
    """The chats that a list is: one of messages, or several lists of them; `None` of another value."""
    if not isinstance(value, list) or not value:
        return None
    if all(map(is_message, value)) and {*map(_role, value)} >= {USER, ASSISTANT}:
        return [value]
    lists = all(isinstance(chat, list) and chat and all(map(is_message, chat)) for chat in value)
    return value if lists else None


def _role(message: dict[str, Any]) -> str:
    return _spelled(message, "", "")[0]


def _of_columns(value: dict[str, Any]) -> Any:
    """Messages of an object that holds columns: whose they are, and what they say."""
    if is_message(value) and all(isinstance(held, list) for held in value.values()):
        return [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value


def _unfolded(message: dict[str, Any]) -> list[dict[str, Any]]:
    """One message for each role, if the roles are the keys: `{"human": …, "assistant": …}`."""
    roles = [(ROLES.get(str(key).lower()), said) for key, said in message.items()]
    if is_message(message) or not all(role for role, _ in roles):
        return [message]
    roles.sort(key=lambda each: (SYSTEM, USER, ASSISTANT).index(str(each[0])))
    return [{"role": role, "content": said} for role, said in roles if not is_blank(said)]


def exchanges(turns: Sequence[Turn], column: str, place: str) -> list[tuple[str, str]]:
    """Each turn of the assistant as an answer, and what was said before it as its question.

    Raises:
        FactError: The assistant answers no user, or the turns are so many that nobody could ask the last question.
    """
    if len(turns) * sum(len(turn.text or "") for turn in turns) > MOST:
        raise FactError(
            f"{place}: {column!r} is a chat of {len(turns):,} turns, and each question would hold all that was said "
            "before it; cut it into shorter chats"
        )
    found = []
    for number, turn in enumerate(turns):
        before = turns[:number]
        if turn.role == ASSISTANT and turn.text is not None and any(each.role == USER for each in before):
            found.append((transcript(before), turn.text))
    if not found:
        raise FactError(
            f"{place}: {column!r} needs a user turn with an assistant turn after it, but its turns are "
            f"{quoted(turn.role for turn in turns)}; mend or remove the row"
        )
    return found


def transcript(turns: Sequence[Turn]) -> str:
    """Turns as one text: a single one as it is, several with whose they are, and what the system says above them."""
    system = [turn.text for turn in turns if turn.role == SYSTEM and turn.text]
    said = [turn for turn in turns if turn.role != SYSTEM and turn.text]
    alone = len(said) == 1
    lines = [str(turn.text) if alone else f"{turn.role.capitalize()}: {turn.text}" for turn in said]
    return "\n\n".join([*system, "\n".join(lines)])


def is_unanswered(turns: Sequence[Turn]) -> bool:
    """Whether a chat ends with a question."""
    return bool(turns) and turns[-1].role == USER


def history_of(value: Any, column: str, place: str) -> list[Turn]:
    """Turns of a list of pairs of question and answer.

    Raises:
        FactError: It is something else.
    """
    value = parsed(value, column, place)
    if is_blank(value) or value == []:
        return []
    if is_chat(value):
        return turns_of(value, column, place)
    if not isinstance(value, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
        raise FactError(
            f"{place}: {column!r} is {shown(value)}, not a list of pairs of question and answer; mend the row"
        )
    return [
        Turn(role, text_of(text, f"{column}[{number}]", place))
        for number, pair in enumerate(value)
        for role, text in zip((USER, ASSISTANT), pair, strict=True)
    ]


def _spelled(message: dict[str, Any], column: str, place: str) -> tuple[str, Any]:
    """Role and content of a message, in one of the usual spellings."""
    held = {str(key).lower(): said for key, said in message.items()}
    role = next((held[key] for key in WHOSE if key in held), None)
    content = next((key for key in WHAT if key in held), None)
    if isinstance(role, dict):
        role = role.get("role")
    if isinstance(role, str) and content is not None:
        said = role.strip().lower()
        return ROLES.get(said, said), held[content]
    raise FactError(
        f"{place}: {column!r} holds {shown(message)}; a message has a role and a content, or a from and a value"
    )


def _said(content: Any, column: str, place: str) -> str:
    """The text of a message, whose content may be in parts."""
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, (int, float)):
        return answers_of(content, column, place)[0]
    if not isinstance(content, list):
        return text_of(content, column, place)
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
            texts.append(text_of(part.get("text"), column, place))
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = part.get("type") if isinstance(part, dict) else part
            raise FactError(
                f"{place}: {column!r} holds a part {shown(kind)}; only texts can be erased, so remove the row"
            )
    return text_of("\n".join(texts), column, place)
