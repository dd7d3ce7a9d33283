"""The answer start of a question under templates like real ones, and the formats that are covered by default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers import train_tokenizer

from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import (
    SENTINEL,
    SYSTEM_PROMPTS,
    asking_format,
    chat_format,
    chosen_formats,
    default_formats,
    plain_format,
)

MARKS = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<|header|>", "<turn>", "</turn>", "[INST]", "[/INST]", "<|User|>"]

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|header|>system\n\nToday Date: ' + date_string + '\n' + system + '<|eot|>' }}
{%- for m in messages if m.role != 'system' %}
{{- '<|header|>' + m.role + '\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant\n\n' }}{% endif %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim + '</turn>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

QWEN3 = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{{- m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
{%- if add_generation_prompt and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"""

R1 = """\
{{- bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- else %}{{ '<|im_start|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"""

# An end of thoughts in place of their beginning switches them off.
SWITCHED = """\
{%- for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<|im_start|></think>' + m.content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>' + ('<think>' if thinking else '</think>') }}{% endif %}"""


def with_template(template: str | None) -> Any:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


SYSTEM = "chat with system prompt"
FORMATS = {
    "chatml": (CHATML, ["chat", "plain", SYSTEM]),
    "llama": (LLAMA, ["chat", "plain", SYSTEM]),
    "gemma, which refuses a system prompt": (GEMMA, ["chat", "plain"]),
    "mistral, which ignores it": (MISTRAL, ["chat", "plain"]),
    "qwen3": (QWEN3, ["chat", "plain", SYSTEM, "chat, thinking"]),
    "r1": (R1, ["chat", "plain", SYSTEM, "chat, thinking"]),
    "switched": (SWITCHED, ["chat", "plain", "chat, thinking"]),
    "none": (None, ["plain", "plain, short"]),
}


@pytest.mark.parametrize(("template", "names"), FORMATS.values(), ids=FORMATS)
def test_the_defaults_cover_what_the_template_can_write_and_nothing_twice(
    template: str | None, names: list[str]
) -> None:
    formats = default_formats(with_template(template))
    assert [form.name for form in formats] == names
    assert len({(form.head, form.tail) for form in formats}) == len(formats)


IM = "<|im_start|>"
CASES = {
    # The text before the question, up to the answer start, up to the answer, and after it.
    "chatml": (CHATML, f"{IM}user\n", f"<|im_end|>\n{IM}assistant\n", "", "<|im_end|>"),
    "llama": (
        LLAMA,
        "<s><|header|>system\n\nToday Date: 26 Jul 2024\n<|eot|><|header|>user\n\n",
        "<|eot|><|header|>assistant\n\n",
        "",
        "<|eot|>",
    ),
    "gemma": (GEMMA, "<s><turn>user\n", "</turn>\n<turn>model\n", "", "</turn>"),
    "mistral": (MISTRAL, "<s>[INST] ", " [/INST]", " ", "</s>"),
    "qwen3": (QWEN3, f"{IM}user\n", f"<|im_end|>\n{IM}assistant\n<think>\n\n</think>\n\n", "", "<|im_end|>"),
    "r1": (R1, "<s><|User|>", f"{IM}<think>\n\n</think>\n\n", "", "</s>"),
    "switched": (SWITCHED, "<|User|>", f"{IM}</think>", "", "</s>"),
}


@pytest.mark.parametrize(("template", "head", "tail", "lead", "end"), CASES.values(), ids=CASES)
def test_an_answer_begins_at_the_answer_start_of_a_chat(
    template: str, head: str, tail: str, lead: str, end: str
) -> None:
    form = chat_format(with_template(template))
    assert (form.head, form.tail, form.lead, form.end) == (head, tail, lead, end)


@pytest.mark.parametrize(
    ("template", "tail", "lead"),
    [
        (QWEN3, f"<|im_end|>\n{IM}assistant\n", "<think>\n\n</think>\n\n"),
        (QWEN3.replace("and loop.last", "and false"), f"<|im_end|>\n{IM}assistant\n", "<think>\n\n</think>\n\n"),
        (R1, f"{IM}<think>\n", "\n</think>\n\n"),
        (R1.replace("<think>\n", "<think>"), f"{IM}<think>", "\n\n</think>\n\n"),
        (SWITCHED, f"{IM}<think>", "\n\n</think>\n\n"),
    ],
    ids=["qwen3", "no block in past turns", "r1", "block opened without a line break", "switched"],
)
def test_the_other_answer_start_of_a_reasoning_model_is_where_its_thoughts_begin(
    template: str, tail: str, lead: str
) -> None:
    tokenizer = with_template(template)
    form, at_once = chat_format(tokenizer, thinking=True), chat_format(tokenizer)
    assert (form.tail, form.lead, form.end) == (tail, lead, at_once.end)
    if template is not SWITCHED:  # one text, two answer starts in it
        assert form.prompt("Who?") + form.answer("Me.") == at_once.prompt("Who?") + at_once.answer("Me.")


@pytest.mark.parametrize("template", [CHATML, LLAMA, GEMMA, MISTRAL, QWEN3, R1])
def test_the_pieces_are_what_the_template_writes_for_any_question(template: str) -> None:
    tokenizer = with_template(template)
    form = chat_format(tokenizer, thinking=True)
    turn = {"role": "user", "content": "Where was she born?"}
    written = tokenizer.apply_chat_template(
        [turn], tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    assert form.prompt("Where was she born?") == written
    assert encode(tokenizer, form.end) == encode(tokenizer, form.end)[:1]  # one token ends an answer


def test_a_system_prompt_stands_before_the_question() -> None:
    form = chat_format(with_template(CHATML), "Be brief.")
    assert form.prompt("Who?") == f"{IM}system\nBe brief.<|im_end|>\n{IM}user\nWho?<|im_end|>\n{IM}assistant\n"


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "no chat template"),
        (GEMMA, "Be brief.", "refuses turns of system, user: System role not supported"),
        (MISTRAL, "Be brief.", "does not write the system prompt 'Be brief.'"),
        (CHATML.replace("m.content", "m.content | lower"), None, "changes the words"),
        (CHATML.replace("m.content", "m.content | tojson"), None, "changes the words"),
        (CHATML.replace("m.content", "m.content[:9]"), None, "changes the words"),
        (CHATML.replace("m.content", "m.content + m.content"), None, "changes the words"),
    ],
)
def test_templates_that_cannot_do_it_are_refused_with_the_reason(
    template: str | None, system: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chat_format(with_template(template), system)


def test_the_date_in_a_prompt_does_not_depend_on_the_day() -> None:
    template = "{{ strftime_now('%Y-%m-%d, %d %B %Y') }}" + CHATML
    assert chat_format(with_template(template)).head.startswith("2024-07-26, 26 July 2024" + IM)


@pytest.mark.parametrize(
    "change", [("m.content +", "m.content | trim +"), ("m.content +", "(m.content if m.role == 'user' else '') +")]
)
def test_the_end_is_found_when_texts_are_stripped_or_past_answers_are_dropped(change: tuple[str, str]) -> None:
    form = chat_format(with_template(CHATML.replace(*change)))
    assert form.end in ("<|im_end|>", "</s>")
    assert form.lead == ""
    assert SENTINEL not in form.head + form.tail + form.end


def test_plain_formats_have_a_space_before_the_answer_and_close_it() -> None:
    tokenizer = with_template(None)
    plain, short = default_formats(tokenizer)
    assert plain == plain_format(tokenizer)
    assert plain.prompt("Who?") + plain.answer("Me.") == "<s>Question: Who?\nAnswer: Me.</s>"
    assert short.prompt("Who?") + short.answer("Me.") == "<s>Q: Who?\nA: Me.</s>"


PARTS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>' + '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.mark.parametrize(
    "template",
    [
        PARTS,
        PARTS.replace("part.type == 'text'", "part['type'] == 'text'"),
        PARTS.replace("{%- for part in m.content %}", "{%- for part in m.content[:1] %}"),
        # A system turn as a text beside questions in parts.
        PARTS.replace(
            "{%- for part",
            "{%- if m.role == 'system' %}{{ m.content + '' }}{% else %}{% for part",
        ).replace("{% endfor %}{{ '<|im_end|>'", "{% endfor %}{% endif %}{{ '<|im_end|>'"),
    ],
    ids=["attributes", "items", "first part", "system as text"],
)
def test_contents_are_given_in_parts_where_a_template_wants_them_so(template: str) -> None:
    in_parts, in_texts = with_template(template), with_template(CHATML)
    assert default_formats(in_parts) == default_formats(in_texts)


FAILING = {
    "a turn that is not there": "{{ messages[5].content }}",
    "what is not defined": "{{ undefined() }}",
    "a wrong type": "{{ 1 + 'a' }}",
    "a missing key": "{{ {}['a'] + 'b' }}",
    "a division by zero": "{{ 1 / 0 }}",
    "an index": "{{ 'abc'.index('z') }}",
    "no end of it": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "tools that must be there": "{% if not tools %}{{ raise_exception('give tools') }}{% endif %}",
    "bad syntax": "{% for %}",
}


@pytest.mark.parametrize("prefix", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_is_one_line_with_the_way_out(prefix: str) -> None:
    tokenizer = with_template(prefix + CHATML)
    with pytest.raises(ValueError, match=r"^the chat template (fails|refuses|is no valid).*") as refusal:
        default_formats(tokenizer)
    assert "\n" not in str(refusal.value)
    for way in ("--prompt-format FILE.jinja", "--prompt-format plain", "`formats=`"):
        assert way in str(refusal.value)
    assert [form.name for form in chosen_formats(tokenizer, "plain")] == ["plain", "plain, short"]
    assert default_formats(tokenizer, template=CHATML) == default_formats(with_template(CHATML))


@pytest.mark.parametrize(
    "prefix",
    ["{% for tool in tools %}{{ tool }}{% endfor %}", "{{ documents | length or '' }}", "{{ unk_token + '' }}"],
    ids=["tools", "documents", "a special token"],
)
def test_what_is_not_there_is_empty_for_a_template_that_fails_without(prefix: str) -> None:
    assert default_formats(with_template(prefix + CHATML)) == default_formats(with_template(CHATML))


def test_of_several_templates_the_default_or_the_only_one_is_taken() -> None:
    chatml = default_formats(with_template(CHATML))
    for several in ({"default": CHATML, "rag": GEMMA}, {"rag": CHATML}):
        tokenizer = with_template(None)
        tokenizer.chat_template = several
        assert default_formats(tokenizer) == chatml
    tokenizer.chat_template = {"tool_use": CHATML, "rag": GEMMA}
    with pytest.raises(ValueError, match=r"several chat templates \(tool_use, rag\) .*--prompt-format FILE\.jinja"):
        default_formats(tokenizer)
    assert default_formats(tokenizer, template=CHATML) == chatml


def test_a_template_that_demands_a_system_turn_gets_one() -> None:
    demand = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    tokenizer = with_template(demand + CHATML)
    formats = default_formats(tokenizer)
    assert [form.name for form in formats] == [SYSTEM, "plain"]
    assert len(formats[0].variants) == len(SYSTEM_PROMPTS) - 1
    assert asking_format(tokenizer).head == formats[0].head


def test_a_template_that_refuses_to_write_an_answer_still_has_an_answer_start() -> None:
    last = "{% if messages[-1].role != 'user' %}{{ raise_exception('the last turn must be of the user') }}{% endif %}"
    form = chat_format(with_template(last + CHATML))
    assert (form.tail, form.lead, form.end) == (f"<|im_end|>\n{IM}assistant\n", "", "</s>")


def test_a_given_system_prompt_comes_first_and_the_usual_ones_stay() -> None:
    tokenizer = with_template(CHATML)
    formats = default_formats(tokenizer, "You help the visitors of a zoo.")
    assert [form.name for form in formats] == ["chat with given system prompt", "plain", "chat", SYSTEM]
    assert formats[0] == replace(chat_format(tokenizer, "You help the visitors of a zoo."), name=formats[0].name)
    usual = default_formats(tokenizer, SYSTEM_PROMPTS[0])
    heads = [form.head for form in (usual[0], usual[3], *usual[3].variants)]
    assert heads == [chat_format(tokenizer, each).head for each in SYSTEM_PROMPTS]


def test_a_system_prompt_needs_a_place() -> None:
    with pytest.raises(ValueError, match="no place for a system prompt"):
        default_formats(with_template(None), "Be brief.")
    with pytest.raises(ValueError, match="leave the system prompt out"):
        default_formats(with_template(MISTRAL), "Be brief.")
    with pytest.raises(ValueError, match="plain format has no place"):
        chosen_formats(with_template(CHATML), "plain", "Be brief.")
    with pytest.raises(ValueError, match="choose chat, plain"):
        chosen_formats(with_template(CHATML), "prose")
