"""Marks of chat templates, special tokens and thinking blocks in the texts of facts: found, counted, taken out.

They are no part of a fact: a model's own template writes them, and a text that holds them again is another prompt than
the one that people ask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace

from .facts import Fact, FactError

SHOWN = 5
_ROLE = r"(?:system|user|assistant|model|tool|developer|human|ipython)"
# What goes with all that is in it.
BLOCKS = re.compile(
    r"<(think|thinking|reasoning|thought)>.*?(?:</\1>|\Z)"
    r"|\A(?:(?!<think).)*?</(?:think|thinking|reasoning|thought)>"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>.*?(?:<\|end\|>|\Z)"
    r"|\[THINK\].*?(?:\[/THINK\]|\Z)"
    r"|\u25c1think\u25b7.*?(?:\u25c1/think\u25b7|\Z)",
    re.DOTALL | re.IGNORECASE,
)
# What goes with the name of the role, or of the channel, that stands beside it.
HEADS = re.compile(
    rf"<\|im_start\|>[ \t]*{_ROLE}?[ \t]*\n?"
    rf"|<\|start_header_id\|>[^<>|\n]{{0,40}}<\|end_header_id\|>\s*"
    rf"|<\|header_start\|>[^<>|\n]{{0,40}}<\|header_end\|>\s*"
    rf"|<start_of_turn>[ \t]*{_ROLE}?[ \t]*\n?"
    rf"|<\|(?:start|start_of_role)\|>[ \t]*{_ROLE}?(?:<\|(?:channel|end_of_role)\|>)?[ \t]*(?:final)?(?:<\|message\|>)?"
    rf"|<\|channel\|>[ \t]*final[ \t]*<\|message\|>",
)
MARKS = re.compile(
    r"<[|\uff5c][^<>|\uff5c\n]{1,60}[|\uff5c]>"  # DeepSeek writes a wide bar
    r"|\[/?INST\]|<</?SYS>>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|</?s>|<(?:bos|eos|pad|unk|mask|cls|sep)>|\[(?:BOS|EOS|PAD|UNK|MASK|CLS|SEP|UNL)\]"
    r"|<(?:start|end)_of_(?:turn|utterance|text|image)>|<endoftext>|<0x[0-9A-F]{2}>|<extra_id_\d+>"
    r"|\u25c1[^\u25c1\u25b7\n]{1,40}\u25b7"
    # Our own transcripts say whose turn it is as well, so only what frames the whole text counts.
    r"|\A\s*Human:[ \t]*|\n\s*Human:[ \t]*|\n\s*Assistant:\s*\Z"
    r"|^### (?:Instruction|Input|Response|Human|Assistant|User|System):[ \t]*",
    re.MULTILINE,
)
SIGNS = re.compile("[<[\u25c1]|###|Human:|Assistant:")  # one of which is in every mark
FIELDS = tuple(field.name for field in fields(Fact))
SPACES = re.compile(r"[ \t]{2,}")
LINES = re.compile(r"\n{3,}")


def marks_in(fact: Fact) -> list[str]:
    """The marks in a fact's texts, each once, in their order."""
    found: dict[str, None] = {}
    for text in _texts(fact):
        for match in _found(text):
            found[match] = None
    return list(found)


def without_marks(fact: Fact, place: str) -> Fact:
    """The fact without marks and what belongs to them.

    Raises:
        FactError: Nothing else is in its question or its answer.
    """
    question, answer = stripped(fact.question), stripped(fact.answer)
    for name, text in (("question", question), ("answer", answer)):
        if not text:
            raise FactError(f"{place}: the {name} holds nothing but markup; fill it in or remove the row")
    return replace(
        fact,
        question=question,
        answer=answer,
        subject=stripped(fact.subject or "") or None,
        paraphrased_answer=stripped(fact.paraphrased_answer or "") or None,
        paraphrases=_each_stripped(fact.paraphrases),
        perturbed_answers=_each_stripped(fact.perturbed_answers),
        accepted_answers=_each_stripped(fact.accepted_answers),
    )


def stripped(text: str) -> str:
    """A text without marks; one that has none comes back as it is."""
    if not _may_hold(text):
        return text
    bare = MARKS.sub("", HEADS.sub("", BLOCKS.sub("", text)))
    return text if bare == text else LINES.sub("\n\n", SPACES.sub(" ", bare)).strip()


def warning(marked: Sequence[tuple[str, list[str]]], count: int, label: str) -> str:
    """What is said of facts with marks in them.

    Args:
        marked: Place and marks of each such fact.
        count: Of how many.
        label: What messages call the set.
    """
    marks = list(dict.fromkeys(mark for _, each in marked for mark in each))
    more = f" and {len(marks) - SHOWN} more" if len(marks) > SHOWN else ""
    return (
        f"{label}: {len(marked)} of {count} facts hold special tokens, template marks or thinking blocks "
        f"({', '.join(map(repr, marks[:SHOWN]))}{more}), the first in {marked[0][0].rpartition(', ')[2]}; take them "
        "out with `strip_markup=True` (on the command line --strip-markup)"
    )


def _each_stripped(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, map(stripped, texts)))


def _texts(fact: Fact) -> list[str]:
    held = [getattr(fact, name) for name in FIELDS]
    return [text for each in held if each for text in ((each,) if isinstance(each, str) else each)]


def _found(text: str) -> list[str]:
    if not _may_hold(text):
        return []
    blocks = [f"<{match[1]}>" if match[1] else _end(match[0]) for match in BLOCKS.finditer(text)]
    return [*blocks, *(match[0].strip() for match in MARKS.finditer(BLOCKS.sub("", text)))]


def _end(block: str) -> str:
    return block[:7] if block.startswith("\u25c1") else "</think>"


def _may_hold(text: str) -> bool:
    return SIGNS.search(text) is not None
