"""One file of a repository on the Hub: what an adapter is is told from its config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from peft_unierase.lm.adapters import refuse_adapter
from peft_unierase.records.read import adapter_type


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """What is asked of a Hub that has a LoRA in `org/lora`, and nothing else."""
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}), encoding="utf-8"
    )
    asked = []

    def download(repository: str, name: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repository, name, revision))
        if repository != "org/lora" or not (tmp_path / name).is_file():
            raise LocalEntryNotFoundError("there is no such file, or no network")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_an_adapter_in_the_place_of_a_base_is_refused_by_its_config(hub: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"org/lora is a PEFT adapter \(LORA\) of base org/base"):
        refuse_adapter("org/lora", "abc")
    assert ("org/lora", "adapter_config.json", "abc") in hub
    refuse_adapter("org/model", "abc")


def test_the_type_of_an_adapter_is_read_from_its_config(hub: list[Any]) -> None:
    assert adapter_type("org/lora", "abc") == "LORA"
    assert adapter_type("org/model") is None
    assert hub == [("org/lora", "adapter_config.json", "abc"), ("org/model", "adapter_config.json", None)]
