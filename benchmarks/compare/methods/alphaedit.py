"""AlphaEdit to a refusal (Fang et al., arXiv 2410.02355, section 3; for unlearning: Li et al., arXiv 2505.19855).

    δ_i = argmin_δ - 1/|y_r| log p_0(y_r | x_i, h_L += δ) + w || δ || / || h_L ||²,   || δ || <= κ || h_L ||
    Δ_l = R K_lᵀ P_l ( K_l K_lᵀ P_l + λ I )⁻¹,   R = [ δ_1 … δ_u ] / (layers left)

`h_L` is the stream after the last edited layer L at one place of the prompt, `K_l (d_ff, u)` what the down-projection
of layer l reads there, and P_l the projector on the directions that retained texts hardly use. What the earlier layers
achieved is taken off δ before the next one is solved. The answer `y_r` is one sentence that declines, without any token
of its own. Differences:

* the published place is the last token of the subject. With `place="subject"` it is that too if one is found in the
  question, and else the answer start, as everywhere with `place="start"` (`fact_token="last"` of the papers' programs);
  layers are given as shares of the depth, and others act at the answer start than at the subject;
* each fact is edited in the first two prompt formats, chat and plain; the papers take prefixes of random words instead;
* the rate at which δ is found is in the unit of the stream's components, whose size differs from model to model;
* if the budget does not hold the 25 steps for δ, fewer are taken with a rate that is higher by as much, and if it holds
  less than four, the chat format alone is edited;
* P comes from the retained facts, not from Wikipedia, with a threshold relative to the mean eigenvalue, and λ is in the
  unit of the mean squared length of the keys;
* the refusal is the one that the model finds likeliest after some forget questions.

κ is 0.75 for Llama-3 and 4 for GPT-J, from which some candidates take it. The rank is what the equation gives: the
number of keys, at most d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peft_unierase import Fact
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.engine.paper.null_space import SecondMoment, null_space
from peft_unierase.engine.paper.update import exact_factors, ridge_rows
from peft_unierase.errors import InputError
from peft_unierase.lm.batches import encode, pad_id, pad_left
from peft_unierase.lm.formats import default_formats
from peft_unierase.lm.replay import Recording
from peft_unierase.lm.structure import find_decoder_layers, find_down_projections
from peft_unierase.retain.subjects import find_subjects, subject_position

from ..budget import Budget, Erased, Meter
from ..editing import (
    by_turns,
    check_sets,
    everywhere,
    inputs_of,
    prompts_of,
    set_edit,
    texts_of,
    with_edits,
)
from ..training import Question, erased, likeliest_refusal, span

STEPS, RATE, DECAY = 25, 0.1, 0.5  # Adam's for δ, and w
FEWEST = 4  # steps for which a second format is given up
FORMATS, AT_ONCE = 2, 32  # formats that are edited, and texts whose δ are found together
GRID: tuple[dict[str, Any], ...] = (
    {"place": "subject", "layers": (0.125, 0.28), "null_threshold": 0.02, "clamp": 0.75},
    {"place": "start", "layers": (0.3, 0.7), "null_threshold": 0.2, "clamp": 0.75},
    {"place": "start", "layers": (0.3, 0.7), "null_threshold": 0.2, "clamp": 4.0},
    {"place": "start", "layers": (0.5, 0.85), "null_threshold": 0.2, "clamp": 4.0},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    refusals: Sequence[str] = DEFAULT_REFUSALS,
    place: str = "subject",
    layers: tuple[float, float] = (0.125, 0.28),
    null_threshold: float = 0.02,
    clamp: float = 0.75,
    ridge: float = 0.01,
) -> Erased:
    """Solve the edits; a tenth of the budget may go to retained texts, and the steps for δ get what is left.

    Raises:
        ValueError: A set is empty, the budget too small, or there is no such place.
    """
    check_sets(forget, retain)
    if place not in ("subject", "start"):
        raise InputError(f"place must be 'subject' or 'start', got {place!r}")
    meter, forms = Meter(budget), default_formats(tokenizer)[:FORMATS]
    layer = min(span(model, *layers)[-1], len(find_decoder_layers(model)[1]) - 2)  # L, whose stream a layer must read
    names = find_down_projections(model)[min(span(model, *layers)[0], layer) : layer + 1]
    refusal = likeliest_refusal(model, tokenizer, forms[0], forget, refusals, meter)
    kept = texts_of(tokenizer, by_turns(retain, forms)[: max(1, budget.texts * 3 // 10)])
    spaces = []
    for keys in inputs_of(model, tokenizer, names, kept, meter):
        moment = SecondMoment()
        moment.add(keys)
        spaces.append(null_space(moment.mean(), null_threshold))

    # Every prompt is read once a layer, and once more to find δ.
    affordable = {n: int(meter.left / (n * len(forget)) - (len(names) + 1) / 3) for n in range(1, len(forms) + 1)}
    forms = forms[: max((n for n, steps in affordable.items() if steps >= FEWEST), default=1)]
    steps = max(1, min(STEPS, affordable[len(forms)]))
    questions = everywhere(forget, forms)
    prompts = prompts_of(tokenizer, questions)
    if place == "subject":
        subjects = dict(zip([fact.question for fact in forget], find_subjects(forget), strict=True))
        ends = [_subject_end(tokenizer, each, subjects[each.fact.question]) for each in questions]
        prompts = [prompt[:end] for prompt, end in zip(prompts, ends, strict=True)]
    delta = _steering(
        model,
        tokenizer,
        texts_of(tokenizer, [each.answered(refusal) for each in questions]),
        [len(prompt) - 1 for prompt in prompts],
        [len(encode(tokenizer, each.form.answer(refusal))) for each in questions],
        layer,
        steps,
        clamp,
        meter,
    )
    width = model.get_submodule(names[0]).weight.shape[0]
    reading = f"{find_decoder_layers(model)[0]}.{layer + 1}"  # what it reads is the stream after L
    peft_model = with_edits(model, names, min(len(questions), width))
    wanted: torch.Tensor | None = None
    for number, (name, space) in enumerate(zip(names, spaces, strict=True)):
        keys, stream = inputs_of(peft_model, tokenizer, [name, reading], prompts, meter, last=True)
        wanted = stream + delta if wanted is None else wanted
        residuals = (wanted - stream).T / (len(names) - number)
        projected = space.project(keys.double())
        rows = ridge_rows(projected, projected[:0], ridge * float(keys.double().square().sum(dim=-1).mean()))
        set_edit(peft_model, name, *exact_factors(residuals.double(), rows))
    return erased(peft_model, tokenizer)


def _subject_end(tokenizer: Any, question: Question, subject: str | None) -> int | None:
    """How many tokens of the prompt end with the subject; `None` without one."""
    if subject is None:
        return None
    return subject_position(tokenizer, question.form, question.fact.question, subject) + 1


def _steering(
    model: Any,
    tokenizer: Any,
    texts: Sequence[list[int]],
    places: Sequence[int],
    answers: Sequence[int],
    layer: int,
    steps: int,
    clamp: float,
    meter: Meter,
) -> torch.Tensor:
    """δ at one place of each text, `(texts, d)` in fp32.

    Args:
        model: The plain model.
        tokenizer: Its tokenizer.
        texts: Token ids of prompts with the refusal.
        places: Where δ is added.
        answers: How many of the last tokens of each text are the refusal.
        layer: L.
        steps: Steps of the optimizer.
        clamp: κ.
        meter: Counts the texts.
    """
    found = []
    layers = find_decoder_layers(model)[1]
    device = model.get_input_embeddings().weight.device
    for start in range(0, len(texts), AT_ONCE):
        some = [list(ids) for ids in texts[start : start + AT_ONCE]]
        lengths = torch.tensor(answers[start : start + AT_ONCE], device=device)
        meter.read(len(some))
        meter.trained(len(some) * steps)
        batch = pad_left(some, pad_id(tokenizer), device, list(range(len(some))))
        recording = Recording(model, layers, layer, batch)
        length, longest = batch.ids.shape[1], int(lengths.max())
        rows = torch.arange(len(some), device=device)
        shifted = torch.tensor([length - len(ids) for ids in some], device=device)
        columns = shifted + torch.tensor(places[start : start + AT_ONCE], device=device)
        told = torch.arange(longest, device=device) >= longest - lengths[:, None]
        states = recording.states.detach().float()
        own = states[rows, columns]
        most = clamp * own.norm(dim=-1, keepdim=True)
        delta = torch.zeros_like(own, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=RATE * STEPS / steps * float(own.square().mean().sqrt()))
        for _ in range(steps):
            moved = states.index_put((rows, columns), own + delta)
            logits = recording.logits(moved.to(recording.states), longest + 1)[:, :-1].float()
            log_probs = logits.log_softmax(-1).gather(-1, batch.ids[:, -longest:, None])[..., 0]
            likelihood = (log_probs * told).sum(dim=-1) / lengths
            decay = DECAY * delta.norm(dim=-1) / own.square().sum(dim=-1)
            (delta.grad,) = torch.autograd.grad((decay - likelihood).sum(), delta)
            adam.step()
            with torch.no_grad():
                delta *= (most / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        found.append(delta.detach())
    return torch.cat(found)
