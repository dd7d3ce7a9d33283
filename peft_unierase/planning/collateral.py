"""Which retained questions an erasure is likeliest to touch: those whose keys lie closest to what must go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.facts import Fact
from ..engine.layers import choose_sites
from ..lm.batches import encode, pad_id
from ..lm.formats import PromptFormat
from ..lm.trace import inputs_at


def closeness(
    model: Any, tokenizer: Any, form: PromptFormat, forget: Sequence[Fact], retain: Sequence[Fact]
) -> list[float]:
    """For each retained question the cosine of its key at the answer start to the nearest forget key, `(retain,)`.

    Keys are the inputs of the down-projection of the middle one of the layers that would be edited, less the mean of
    the retained ones, which all keys share. An edit tells questions apart by them.
    """
    if not forget or not retain:
        return [0.0] * len(retain)
    _, layers, _ = choose_sites(model)
    *_, names = choose_sites(model, [layers[len(layers) // 2]], whole=False)
    module = [model.get_submodule(name) for name in names]
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in [*forget, *retain]]
    (found,) = inputs_at(model, module, prompts, [[len(prompt) - 1] for prompt in prompts], pad_id(tokenizer))
    keys = torch.cat(found).cpu()
    keys = torch.nn.functional.normalize(keys - keys[len(forget) :].mean(dim=0), dim=-1)
    return (keys[len(forget) :] @ keys[: len(forget)].T).amax(dim=1).tolist()
