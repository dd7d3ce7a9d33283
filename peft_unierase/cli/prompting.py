"""`--prompt-format` and `--system`: in which prompt formats a command asks and erases."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..storage.plain import read_text

if TYPE_CHECKING:
    from ..lm.formats import PromptFormat

KINDS = ("chat", "plain")


@dataclass(frozen=True)
class Prompting:
    """What both options say.

    Attributes:
        kind: `chat` or `plain`; `None` for both.
        system: The system prompt that a model is used with.
        template: A chat template in place of the tokenizer's.
        name: Name of the file that it was read from.
    """

    kind: str | None = None
    system: str | None = None
    template: str | None = None
    name: str | None = None

    def formats(self, tokenizer: Any) -> list[PromptFormat]:
        """The formats to cover, that to ask in first.

        Raises:
            ValueError: The chat template fails, or there is no place for the system prompt.
        """
        from ..lm.formats import chosen_formats

        return chosen_formats(tokenizer, self.kind, self.system, self.template)

    def asked(self, tokenizer: Any) -> dict[str, Any]:
        """`form` and `template` as `check` takes them.

        Raises:
            ValueError: See `formats`.
        """
        return {"form": self.formats(tokenizer)[0], "template": self.template}

    def record(self) -> dict[str, Any] | None:
        """What was told, for a record: names and digests, without a text; `None` if nothing was."""
        if self == Prompting():
            return None
        template = {"name": self.name, "digest": _digest(self.template)} if self.template else None
        return {"kind": self.kind, "template": template, "system": _digest(self.system) if self.system else None}


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Both options as they are given."""

    prompt_format: Annotated[
        str | None,
        typer.Option(
            help="Prompt formats: chat, plain, or a file with a chat template (FILE.jinja) that takes the place of the "
            "tokenizer's in this run; by default chat and plain.",
            show_default=False,
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(
            help="The system prompt that the model is used with; chats with it come first.", show_default=False
        ),
    ] = None

    def read(self) -> Prompting:
        """What they say; see [`read_prompting`]."""
        return read_prompting(self.prompt_format, self.system)


def read_prompting(prompt_format: str | None, system: str | None) -> Prompting:
    """What the two options say; a template is read and looked at.

    Raises:
        ValueError: `prompt_format` is neither a kind nor a file with a chat template, the system prompt is empty, or
            plain prompts are to have one.
    """
    if system is not None and not system.strip():
        raise InputError("--system is empty; give the system prompt's text, or leave it out")
    if prompt_format is None or prompt_format in KINDS:
        if prompt_format == "plain" and system:
            raise InputError("--prompt-format plain has no place for a system prompt; leave out --system or take chat")
        return Prompting(prompt_format, system)
    file = Path(prompt_format)
    if not file.is_file():
        raise InputError(
            f"--prompt-format {prompt_format!r} is not there; give chat, plain, or a file with a chat template "
            "(FILE.jinja)"
        )
    return Prompting(None, system, _read_template(file), file.name)


def _read_template(file: Path) -> str:
    from jinja2 import TemplateSyntaxError

    try:
        template = read_text(file, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    if not template.strip():
        raise InputError(f"{file} is empty; write a chat template in Jinja into it")
    if "messages" not in template:
        raise InputError(f"{file} is no chat template: it does not use `messages`")
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(template)
    except TemplateSyntaxError as error:
        raise InputError(f"{file} is no valid Jinja template: {error.message} (line {error.lineno})") from error
    return template


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
