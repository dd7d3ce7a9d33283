"""The page of `unierase demo` on the demo model, with the erasure that the tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from demo_erasure import FORGET

from peft_unierase import read_facts
from peft_unierase.demo import demo_model_dir, demo_refusals
from peft_unierase.hub.merge import on_their_base
from peft_unierase.page.layout import Page, launch
from peft_unierase.page.live import Live
from peft_unierase.page.models import Models

FACTS = read_facts(demo_model_dir() / "facts.jsonl")
ERASED = FACTS[: len(FORGET)]
KEPT = FACTS[len(FORGET) :]
BORN = ERASED[0]
STAYS = "What is the opposite of big?"


def models_of(erasure: Path) -> Models:
    """Base and erased model."""
    model, tokenizer, _ = on_their_base([str(erasure)], str(demo_model_dir()), "float32", None, trust=False)
    return Models(model, tokenizer, ERASED, KEPT, demo_refusals())


def page_of(erasure: Path, place: Path, models: Models | None = None) -> Page:
    """A page on which the demo model can be erased from."""

    def save(model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[model.erasure.adapter])

    models = models or models_of(erasure)
    live = Live(lambda: models_of(erasure), save, place)
    return Page(models, "the demo model", {models.names[0]: str(erasure)}, live)


@contextmanager
def served(page: Page) -> Iterator[str]:
    """The address of the page while it is served."""
    blocks, address = launch(page, block=False)
    try:
        yield address
    finally:
        blocks.close(verbose=False)


class Visitor:
    """Somebody who speaks with the page as a browser does, without one.

    Args:
        address: The page's.
        name: Of the visit.
    """

    def __init__(self, address: str, name: str = "visitor") -> None:
        self.address, self.name = address + "gradio_api/", name
        self.http = httpx.Client(timeout=60, trust_env=False)
        config = self.http.get(address + "config").json()
        self.parts = {each["id"]: each for each in config["components"]}
        self.events = config["dependencies"]

    def event(self, button: str) -> dict[str, Any]:
        """What happens at a click on a part of this `elem_id`."""
        (wanted,) = [number for number, each in self.parts.items() if each["props"].get("elem_id") == button]
        return next(each for each in self.events if [wanted, "click"] in [list(target) for target in each["targets"]])

    def join(self, button: str, *values: Any) -> httpx.Response:
        """Queue up for it."""
        told = {"fn_index": self.event(button)["id"], "data": list(values), "session_hash": self.name}
        return self.http.post(self.address + "queue/join", json=told)

    def outcome(self) -> dict[str, Any]:
        """Wait for what was queued: the last message about it."""
        with self.http.stream("GET", self.address + "queue/data", params={"session_hash": self.name}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and '"process_completed"' in line:
                    return json.loads(line.removeprefix("data:"))
        raise AssertionError("it never ended")

    def does(self, button: str, *values: Any) -> dict[str, Any]:
        """Click and wait."""
        self.join(button, *values).raise_for_status()
        return self.outcome()
