"""The table of files that belong to an erasure: which are pushed, recorded and taken out again."""

from __future__ import annotations

import pytest

from peft_unierase.storage.names import FILES, is_allowed, is_ours, is_pushed, is_recorded


@pytest.mark.parametrize(
    ("name", "pushed", "ours", "recorded"),
    [
        ("adapter_config.json", True, True, True),
        ("lora/adapter_model.safetensors", True, True, True),
        ("additional_chat_templates/tool.jinja", True, True, True),
        ("README.md", True, True, False),
        ("erasure.json", True, True, False),
        ("LICENSE.md", True, False, False),
        ("notes.md", False, False, True),
        ("lora/erasure.json", False, False, True),
        (".cache/x", False, False, False),
    ],
)
def test_each_file_has_its_role(name: str, pushed: bool, ours: bool, recorded: bool) -> None:
    assert (is_pushed(name), is_ours(name), is_recorded(name)) == (pushed, ours, recorded)


def test_each_is_named_once_and_the_guard_passes_its_kind() -> None:
    names = [file.name for file in FILES]
    assert len(names) == len({*names})
    assert all(is_allowed(name.replace("/*", "/any").replace("*", "")) for name in names)
