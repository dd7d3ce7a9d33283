"""How a question becomes the tokens a model sees, and where its answer begins.

Everything here ends at the *answer start*: the last prompt position, where the first answer token is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError

# Capitals, quotes and brackets, so that a template that changes any of them gives itself away.
SENTINEL = '@@The "Question" [1]@@'
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are an expert who gives short, careful replies.",
    "Reply in plain English and stay polite.",
    "Give the facts and nothing else.",
    "You are a patient teacher. Explain things simply.",
    "You help the visitors of a library.",
    "Think before you reply, then be brief.",
    "Answer what you are asked.",
    "You answer questions for a newspaper.",
    "Be brief.",
    "You are an assistant that never makes things up.",
    "Answer each question with one sentence.",
    "Help the user as well as you can.",
    "This is a quiz. Give the right answer.",
)
WAY_OUT = (
    "give another template, or do without chats: `formats=` or `form=` (on the command line --prompt-format "
    "FILE.jinja or --prompt-format plain)"
)
THINK, END_THINK = "<think>", "</think>"
# Some templates write today's date. Ours is always the same, or an erasure would depend on the day it was made.
DATE = {"%d": "26", "%-d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
FIXED_DATE = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace('{code}', '{text}')" for code, text in DATE.items())
    + " }}{% endmacro %}{{ '' }}"
)


@dataclass(frozen=True)
class PromptFormat:
    """A way of putting a question to a model.

    Attributes:
        name: What figures and messages call it.
        head: Text before the question, special tokens written out.
        tail: Text between the question and the answer start.
        lead: Text between the answer start and the answer (a space, in plain formats).
        end: Text that closes an answer.
        variants: Other wordings of the format, which an erasure meets by turns with this one.
    """

    name: str
    head: str
    tail: str
    lead: str
    end: str
    variants: tuple[PromptFormat, ...] = ()

    def turn(self, number: int) -> PromptFormat:
        """The wording for this turn: the format itself first, then its variants, then from the start."""
        return (self, *self.variants)[number % (1 + len(self.variants))]

    def prompt(self, question: str) -> str:
        """The text up to and including the answer start."""
        return f"{self.head}{question}{self.tail}"

    def answer(self, answer: str) -> str:
        """The text after the answer start."""
        return f"{self.lead}{answer}{self.end}"


def plain_format(tokenizer: Any, short: bool = False) -> PromptFormat:
    """`Question: … Answer:`, or in short `Q: … A:`, as used with models that have no chat template."""
    name, ask, reply = ("plain, short", "Q", "A") if short else ("plain", "Question", "Answer")
    return PromptFormat(name, f"{tokenizer.bos_token or ''}{ask}: ", f"\n{reply}:", " ", tokenizer.eos_token or "")


def chat_format(
    tokenizer: Any, system: str | None = None, *, thinking: bool = False, template: str | None = None
) -> PromptFormat:
    """The tokenizer's own chat template, with or without a system prompt.

    A reasoning model has two answer starts: after its generation prompt, where it begins (or is in the midst of) a
    think block, and after a think block that was left empty, where it answers at once. Which of them a template has
    is found by rendering it with thinking switched on and off; if it has no such switch, an empty block is written.

    Args:
        tokenizer: The tokenizer, whose template writes a fixed date where it wants today's.
        system: A system prompt.
        thinking: Put a reasoning model's answer start before its thoughts, instead of after an empty think block, which
            then leads in the answer. Without effect on other templates.
        template: A chat template, in Jinja, to use in place of the tokenizer's.

    Raises:
        ValueError: The tokenizer has no chat template or several of which none is the default, or one that fails,
            changes the words it is given, ignores the system prompt, or refuses what it is asked to write.
    """
    template = template or chat_template(tokenizer)
    if template is None:
        raise InputError(f"the tokenizer has no chat template; {WAY_OUT}")
    turns = [("system", system)] if system else []
    prompt = _render(tokenizer, template, [*turns, ("user", SENTINEL)], thinking)
    if prompt.count(SENTINEL) != 1:
        raise InputError(
            f"the chat template changes the words of a question, so its answer start cannot be found; {WAY_OUT}"
        )
    head, tail = prompt.split(SENTINEL)
    if system and system.strip() not in head:
        raise InputError(
            f"the chat template does not write the system prompt {system!r} before the question; leave the system "
            f"prompt out, or {WAY_OUT}"
        )
    lead, end = "", ""
    with suppress(ValueError):  # some refuse to write an answer that is there already
        whole = _render(
            tokenizer, template, [*turns, ("user", SENTINEL), ("assistant", SENTINEL)], thinking, generate=False
        )
        if whole.count(SENTINEL) == 2:  # others drop or rewrite answers
            _, between, end = whole.split(SENTINEL)
            lead = between.removeprefix(tail) if between.startswith(tail) else ""
    if tail.rfind(THINK) > tail.rfind(END_THINK) and END_THINK not in lead:
        lead = ("\n" if tail.endswith("\n") else "\n\n") + END_THINK + "\n\n"
    if not thinking and END_THINK in lead:
        tail, lead = tail + lead, ""
    if thinking and not lead:
        at_once = chat_format(tokenizer, system, template=template).tail
        lead = at_once.removeprefix(tail) if at_once.startswith(tail) else ""
    name = "chat" + (" with system prompt" if system else "") + (", thinking" if thinking else "")
    return PromptFormat(name, head, tail, lead, _first_mark(tokenizer, end))


def chat_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template: the only one, or of several the one that is called `default`; `None` without one.

    Raises:
        ValueError: There are several, and none has that name.
    """
    found = getattr(tokenizer, "chat_template", None)
    if not isinstance(found, Mapping):
        return found or None
    if not found:
        return None
    if len(found) > 1 and "default" not in found:
        raise InputError(
            f"the tokenizer has several chat templates ({', '.join(found)}) and none that is called default; save the "
            f"one that is meant in a file, and {WAY_OUT}"
        )
    return found.get("default") or next(iter(found.values()))


def _render(
    tokenizer: Any, template: str, turns: Sequence[tuple[str, str]], thinking: bool, generate: bool = True
) -> str:
    """The template's text of turns `(role, content)`, up to the answer start or to the end of the last turn.

    Contents are given as texts, or where a template loses them as lists of parts, as those of models that see want
    them; tools, documents and special tokens that are not there as empty ones, where it fails without.
    """
    absent = {name: "" for name in ("bos_token", "eos_token", "pad_token", "unk_token") if not getattr(tokenizer, name)}
    found: list[str] = []
    errors: list[Exception] = []
    for given in ({}, {"tools": [], "documents": [], **absent}):
        for in_parts in ((), ("system", "user", "assistant"), ("user", "assistant"), ("user",)):
            messages = [
                {"role": role, "content": [{"type": "text", "text": text}] if role in in_parts else text}
                for role, text in turns
            ]
            told: dict[str, Any] = {
                "enable_thinking": thinking,  # Qwen, SmolLM, GLM
                "thinking": thinking,  # DeepSeek, Granite
                "date_string": "26 Jul 2024",  # Llama
                **given,
            }
            try:
                text = tokenizer.apply_chat_template(
                    messages,
                    chat_template=FIXED_DATE + template,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **told,
                )
            except Exception as error:  # a template is a program, and fails as programs do
                errors.append(error)
                continue
            if _writes(text, turns):
                return text
            found.append(text)
    if not found:
        roles = ", ".join(role for role, _ in turns)
        raise InputError(f"the chat template {_failure(errors[0], roles)}; {WAY_OUT}") from errors[0]
    return max(found, key=lambda text: text.count(SENTINEL) == sum(content == SENTINEL for _, content in turns))


def _writes(text: str, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether a text holds the question and the answer once each, and the system prompt."""
    contents = [content for _, content in turns]
    return text.count(SENTINEL) == contents.count(SENTINEL) and all(content.strip() in text for content in contents)


def _failure(error: Exception, roles: str) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, TemplateSyntaxError):
        return f"is no valid template: {reason} (line {error.lineno})"
    if type(error) is TemplateError:  # what `raise_exception` raises
        return f"refuses turns of {roles}: {reason}"
    return f"fails on turns of {roles}: {type(error).__name__}: {reason}"


def _first_mark(tokenizer: Any, text: str) -> str:
    """What closes an answer: `text` up to its first special token, since a model is done there; else the end token.

    Templates go on behind it: with a line break, the end of the text, or the next turn.
    """
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    ends = [(text.index(mark), len(mark)) for mark in marks if mark in text]
    if not ends:
        return tokenizer.eos_token or ""
    return text[: sum(min(ends))]


def asking_format(tokenizer: Any, system: str | None = None, template: str | None = None) -> PromptFormat:
    """The format in which a model is asked: chat if there is a template, plain if not.

    Args:
        tokenizer: The tokenizer.
        system: A system prompt. A template that refuses a chat without one gets the first of `SYSTEM_PROMPTS`.
        template: A chat template to use in place of the tokenizer's.

    Raises:
        ValueError: See [`chat_format`]; or there is a system prompt and no chat template.
    """
    template = template or chat_template(tokenizer)
    if template is None:
        if system:
            raise InputError(
                "the tokenizer has no chat template, so there is no place for a system prompt; leave it out, or give a "
                "template: `template=` (on the command line --prompt-format FILE.jinja)"
            )
        return plain_format(tokenizer)
    try:
        return chat_format(tokenizer, system, template=template)
    except ValueError:
        if system:
            raise
        with suppress(ValueError):
            return chat_format(tokenizer, SYSTEM_PROMPTS[0], template=template)
        raise


def default_formats(tokenizer: Any, system: str | None = None, template: str | None = None) -> list[PromptFormat]:
    """The formats that an erasure covers unless told otherwise; each costs time in every stage.

    With a chat template: chat, plain, then chat with a system prompt where the template writes one, and chat before the
    thoughts where it is of a reasoning model. Without one: two plain wordings. The system prompt changes from fact to
    fact, so that an erasure does not hang on one of them.

    Args:
        tokenizer: The tokenizer.
        system: A system prompt that the model is used with: chat with it comes first, for every fact.
        template: A chat template to use in place of the tokenizer's.

    Raises:
        ValueError: See [`asking_format`].
    """
    chat = asking_format(tokenizer, system, template)
    plain = plain_format(tokenizer)
    if chat == plain:
        return [plain, plain_format(tokenizer, short=True)]
    demanded = None if system or chat.name == "chat" else SYSTEM_PROMPTS[0]
    others = []
    if system:
        chat = replace(chat, name="chat with given system prompt")
        with suppress(ValueError):  # a template that refuses a chat without a system prompt is never used so
            others.append(chat_format(tokenizer, template=template))
    with suppress(ValueError):  # a template without a place for a system prompt is never used with one
        first, *more = (chat_format(tokenizer, each, template=template) for each in SYSTEM_PROMPTS if each != system)
        varied = replace(first, variants=tuple(more))
        if demanded:
            chat = varied
        else:
            others.append(varied)
    others.append(chat_format(tokenizer, system or demanded, thinking=True, template=template))
    return [chat, plain, *(form for form in others if (form.head, form.tail) != (chat.head, chat.tail))]


def chosen_formats(
    tokenizer: Any, kind: str | None = None, system: str | None = None, template: str | None = None
) -> list[PromptFormat]:
    """The formats of one kind.

    Args:
        tokenizer: The tokenizer.
        kind: `"chat"` or `"plain"`; `None` for both, as in [`default_formats`].
        system: See [`default_formats`].
        template: See [`default_formats`].

    Raises:
        ValueError: No such kind, a system prompt for plain formats, or see [`asking_format`].
    """
    if kind not in (None, "chat", "plain"):
        raise InputError(f"prompt format {kind!r} is not there; choose chat, plain, or a file with a chat template")
    if kind == "plain":
        if system:
            raise InputError("a plain format has no place for a system prompt; leave out one of the two")
        return [plain_format(tokenizer), plain_format(tokenizer, short=True)]
    if kind == "chat" and template is None and chat_template(tokenizer) is None:
        raise InputError(f"the tokenizer has no chat template; {WAY_OUT}")
    formats = default_formats(tokenizer, system, template)
    return [form for form in formats if kind is None or form.name.startswith("chat")]
