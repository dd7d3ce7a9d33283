"""Real erasures of the boxed model, made with as few steps as will do, and what a model says to people's questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peft_unierase import Fact, GateSettings, erase
from peft_unierase.boxed import boxed_facts, boxed_model_dir, boxed_refusals
from peft_unierase.engine.gate.steer import SteerSettings
from peft_unierase.engine.gate.units import UnitSettings
from peft_unierase.prompts import chat_format

# The two kinds of gates: rows on the keys, and hidden units, which wide models get.
UNITS = {
    "rows": None,
    "units": UnitSettings(narrowest=0, steps=200, wordings=1, steer=SteerSettings(steps=40)),
}


def facts_by_subject() -> tuple[list[Fact], list[Fact]]:
    """All facts about the first person in the box, and all others."""
    rows = boxed_facts()
    first = rows[0]["subject"]
    facts = [(row["subject"], Fact(row["question"], row["answer"])) for row in rows]
    return [fact for who, fact in facts if who == first], [fact for who, fact in facts if who != first]


FORGET, OTHERS = facts_by_subject()
RETAIN, KEPT = OTHERS[::4], OTHERS[1::24]  # what an erasure is shown, and what it is not


def boxed_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(boxed_model_dir())


def boxed_base(folder: Path | None = None, **told: Any) -> PreTrainedModel:
    """The boxed model in fp32, or as told."""
    return AutoModelForCausalLM.from_pretrained(folder or boxed_model_dir(), **{"dtype": torch.float32, **told}).eval()


def erase_first_person(base: PreTrainedModel, kind: str, retain: Sequence[Fact] = RETAIN, steps: int = 40) -> PeftModel:
    """An erasure of `FORGET` at the door, for the chat format alone."""
    tokenizer = boxed_tokenizer()
    return erase(
        base,
        tokenizer,
        FORGET,
        retain,
        depth=0,
        refusals=boxed_refusals(),
        formats=[chat_format(tokenizer)],
        settings=GateSettings(samples=0, steer=SteerSettings(steps=steps), row_steps=40, units=UNITS[kind]),
        progress=False,
    )


def prompts(facts: Sequence[Fact], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """The questions of facts as one batch, padded to one length."""
    tokenizer = boxed_tokenizer()
    form = chat_format(tokenizer)
    batch = tokenizer(
        [form.prompt(fact.question) for fact in facts],
        padding=True,
        padding_side=padding_side,
        add_special_tokens=False,
        return_tensors="pt",
    )
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def said(model: Any, facts: Sequence[Fact], **told: Any) -> list[str]:
    """What a model answers, all in one batch, greedily unless told otherwise."""
    batch = prompts(facts)
    output = model.generate(**batch, **{"do_sample": False, "max_new_tokens": 24, **told})
    texts = boxed_tokenizer().batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def declines(model: Any, facts: Sequence[Fact] = FORGET, **told: Any) -> bool:
    """Whether a model answers every one of the questions with a whole refusal."""
    return set(said(model, facts, **told)) <= set(boxed_refusals())


@torch.no_grad()
def logits_of(model: Any, facts: Sequence[Fact] = FORGET) -> torch.Tensor:
    return model(**prompts(facts)).logits
