"""Which retained questions an erasure is likeliest to touch: those whose keys lie closest to what must go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..engine.layers import choose_gates
from ..engine.trace import traced_inputs
from ..facts import Fact
from ..prompts import PromptFormat, batches, encode, pad_id


def closeness(
    model: Any, tokenizer: Any, form: PromptFormat, forget: Sequence[Fact], retain: Sequence[Fact]
) -> list[float]:
    """For each retained question the cosine of its door's key to the nearest one of the forget set, `(retain,)`.

    Keys are the inputs of the down-projection of the lowest layer that would be edited, less the mean of the retained
    ones, which all doors share. Where a gate detects is there; what is far from all of them there is not touched.
    """
    if not forget or not retain:
        return [0.0] * len(retain)
    *_, names = choose_gates(model)
    keys = [_door_keys(model, tokenizer, form, facts, names[0]) for facts in (forget, retain)]
    mean = keys[1].mean(dim=0)
    gone, kept = (torch.nn.functional.normalize(each - mean, dim=-1) for each in keys)
    return (kept @ gone.T).amax(dim=1).tolist()


@torch.no_grad()
def _door_keys(model: Any, tokenizer: Any, form: PromptFormat, facts: Sequence[Fact], name: str) -> torch.Tensor:
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts]
    found = [torch.zeros(0)] * len(prompts)
    device = model.get_input_embeddings().weight.device
    for batch in batches(prompts, pad_id(tokenizer), device):
        with traced_inputs([model.get_submodule(name)], len(batch.index)) as seen:
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
        for row, index in enumerate(batch.index):
            found[index] = seen[0][row, -1].float().cpu()
    return torch.stack(found)
