"""Real erasures of the demo model, made with as few steps as will do, and what a model says to people's questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peft_unierase import DistillSettings, Fact, erase
from peft_unierase.demo import demo_facts, demo_model_dir, demo_refusals
from peft_unierase.lm.formats import chat_format

QUICK = DistillSettings(samples=0, steps=50)


def facts_by_subject() -> tuple[list[Fact], list[Fact]]:
    """All facts about the first person in the box, and all others."""
    rows = demo_facts()
    first = rows[0]["subject"]
    facts = [(row["subject"], Fact(row["question"], row["answer"])) for row in rows]
    return [fact for who, fact in facts if who == first], [fact for who, fact in facts if who != first]


FORGET, OTHERS = facts_by_subject()
NAME = demo_facts()[0]["subject"].split()[0]
# What an erasure is not shown: nobody of the same first name, from whom so few steps do not tell it.
KEPT = [fact for fact in OTHERS[1::24] if NAME not in fact.question]
RETAIN = [fact for number, fact in enumerate(OTHERS) if number % 4 == 0 or NAME in fact.question]


def demo_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model_dir())


def demo_base(folder: Path | None = None, **told: Any) -> PreTrainedModel:
    """The demo model in fp32, or as told."""
    return AutoModelForCausalLM.from_pretrained(folder or demo_model_dir(), **{"dtype": torch.float32, **told}).eval()


def demo_pair() -> tuple[Any, Any]:
    """The demo model in fp32 and its tokenizer, to be changed."""
    return demo_base(), demo_tokenizer()


def erase_first_person(base: PreTrainedModel, retain: Sequence[Fact] = RETAIN, **changes: Any) -> PeftModel:
    """An erasure of `FORGET`, for the chat format alone.

    Args:
        base: What to erase from.
        retain: What is to stay.
        **changes: Settings other than those of `QUICK`.
    """
    tokenizer = demo_tokenizer()
    return erase(
        base,
        tokenizer,
        FORGET,
        retain,
        refusals=demo_refusals(),
        formats=[chat_format(tokenizer)],
        settings=replace(QUICK, **changes),
        progress=False,
    )


def prompts(facts: Sequence[Fact], padding_side: str = "left") -> dict[str, torch.Tensor]:
    """The questions of facts as one batch, padded to one length."""
    tokenizer = demo_tokenizer()
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
    texts = demo_tokenizer().batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def declines(model: Any, facts: Sequence[Fact] = FORGET, **told: Any) -> bool:
    """Whether a model answers every one of the questions with a whole refusal."""
    return set(said(model, facts, **told)) <= set(demo_refusals())


@torch.no_grad()
def logits_of(model: Any, facts: Sequence[Fact] = FORGET) -> torch.Tensor:
    return model(**prompts(facts)).logits
