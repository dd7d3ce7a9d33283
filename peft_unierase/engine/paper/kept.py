"""What must stay, recorded once: the key directions that retained facts use, and the states that [UNL] is silent on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...lm.batches import Batch, batches
from ...lm.logits import Logits
from ...lm.structure import find_token_modules
from ...lm.trace import traced_inputs
from ..run_context import RunContext
from ..silence import Silence
from .null_space import NullSpace, SecondMoment, null_space


@torch.no_grad()
def record_kept(run: RunContext) -> tuple[list[SecondMoment], Silence]:
    """The second moment of each edited layer's retained keys, and where [UNL] must stay silent.

    Keys are taken at every position of the retained questions and answers (AlphaEdit's K_0), in one of the formats by
    turns. [UNL] must stay silent there, and in the forget questions as long as they are not edited.

    Args:
        run: With the adapter in place and its edits zero.
    """
    turns = [run.formats[number % len(run.formats)] for number in range(len(run.kept))]
    asked = [run.encode(form.prompt(fact.question)) for form, fact in zip(turns, run.kept, strict=True)]
    told = [run.encode(form.answer(fact.answer)) for form, fact in zip(turns, run.kept, strict=True)]
    texts = [question + answer for question, answer in zip(asked, told, strict=True)]
    starts = [len(question) - 1 for question in asked]
    for number, fact in enumerate(run.forget):
        texts.append(run.encode(run.formats[number % len(run.formats)].prompt(fact.question)))

    projections = run.projections()
    head = run.model.get_submodule(find_token_modules(run.model)[1])
    moments, logits_of = [SecondMoment() for _ in projections], Logits(run.model, run.stack)
    silence: list[Silence] = []
    with run.stages.stage("recording retained texts", sum(map(len, texts))) as bar:
        for batch in batches(texts, run.pad, run.device):
            with traced_inputs([*projections, head], len(batch.index)) as seen:
                run.model(**batch.inputs(), use_cache=False)
            real = batch.mask.bool()
            retained = real & (torch.tensor(batch.index, device=real.device) < len(starts))[:, None]
            for moment, keys in zip(moments, seen[:-1], strict=True):
                moment.add(keys[retained].float())
            states = seen[-1][real]
            kinds = _kinds(batch, starts)[real]
            silence.append(Silence.at(states, logits_of(head(states)), kinds, run.spare.token_id, logits_of))
            bar.update(int(batch.mask.sum()))
    return moments, Silence.joined(silence)


def find_null_spaces(run: RunContext, moments: Sequence[SecondMoment], threshold: float) -> list[NullSpace]:
    """The null space of each layer's keys; see `null_space`.

    Raises:
        ValueError: There were no keys.
    """
    spaces = []
    with run.stages.stage("finding the null space", len(moments)) as bar:
        for moment in moments:
            spaces.append(null_space(moment.mean(), threshold))
            bar.update(1)
    return spaces


def _kinds(batch: Batch, starts: Sequence[int]) -> torch.Tensor:
    """What each token of a batch is, `(batch, length)`; see `Silence`. Retained texts come first."""
    kinds = torch.full_like(batch.ids, 2)
    for row, index in enumerate(batch.index):
        if index < len(starts):
            kinds[row, batch.mask.shape[1] - int(batch.mask[row].sum()) + starts[index]] = 1
        else:
            kinds[row, -1] = 0
    return kinds
