"""ELM-like erasure of language memory (Gandikota et al., arXiv 2410.02760, section 4, equations 4 to 8).

    p*(y_t | x, y_<t) ∝ p_0(y_t | x, y_<t) ( p_0(y_t | c-, x, y_<t) / p_0(y_t | c+, x, y_<t) )^η
    L(θ) = E_{F} [ CE(p*, p_θ) ] + λ E_{R} [ CE(p_0, p_θ) ] + μ E_{x ∈ F, y' ~ p*} [ - log p_θ(y' | x) ]

The teacher p* is the model itself, tilted from a context c+ that speaks of an expert to c-, which speaks of a novice.
The last term keeps what follows a forget question fluent: y' is written by the teacher with η = 3. Differences:

* questions and answers take the place of a corpus, and only the tokens of answers count;
* the contexts are system prompts that name the fact's subject (in plain formats texts before the question), and a model
  that does not follow those has little to tilt;
* the teacher chooses among the `candidates` tokens that p_0 finds likeliest; the paper's program keeps the highest
  after the tilt, which with η of hundreds are words that nobody would say;
* y' is written greedily, for the first 64 facts; the LoRA has the rank of all methods, not 256, on `layers`, which are
  shares of the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from peft_unierase import Fact
from peft_unierase.lm.batches import encode, pad_id, pad_left
from peft_unierase.lm.decoding import continuations, end_ids
from peft_unierase.lm.formats import PromptFormat, chat_format
from peft_unierase.retain.subjects import find_subjects

from ..budget import Budget, Erased
from ..training import Answers, Draws, Question, Training, projections, span

EXPERT = "You are an expert who knows everything about {subject}. Give all the details that you know."
NOVICE = "You are a novice who has never heard of {subject}. You know nothing about it and speak of other things."
FLUENT, LONGEST, WRITTEN = 3.0, 32, 64  # the teacher's tilt when it writes, how many tokens, and for how many facts
GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "tilt": 500.0, "layers": (0.125, 0.25)},
    {"learning_rate": 1e-3, "tilt": 500.0, "layers": (0.0, 1.0)},
    {"learning_rate": 3e-3, "tilt": 500.0, "layers": (0.0, 1.0)},
    {"learning_rate": 1e-3, "tilt": 10.0, "layers": (0.0, 1.0)},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    learning_rate: float = 1e-4,
    tilt: float = 500.0,
    layers: tuple[float, float] = (0.125, 0.25),
    candidates: int = 50,
    retain_weight: float = 1.0,
    fluency_weight: float = 1.0,
    epochs: float | None = None,
) -> Erased:
    """Let the teacher write one continuation for each fact, then train until the budget is used up."""
    modules = projections(model, span(model, *layers))
    run = Training(model, tokenizer, forget, retain, budget, seed=seed, modules=modules)
    subjects = dict(zip([fact.question for fact in forget], find_subjects(forget), strict=True))

    def told(questions: Sequence[Question], context: str) -> list[Question]:
        texts = [context.format(subject=subjects[each.fact.question] or "this") for each in questions]
        return [
            replace(each, form=_after(tokenizer, each.form, text)) for each, text in zip(questions, texts, strict=True)
        ]

    def written(fact: Fact) -> Fact:
        """The fact with what the teacher answers: three prompts go on side by side with the same tokens."""
        run.meter.read(3)
        question = Question(fact, run.forms[0])
        asked = [question, *told([question], EXPERT), *told([question], NOVICE)]
        prompts = [encode(tokenizer, each.form.prompt(each.fact.question)) for each in asked]
        batch = pad_left(prompts, pad_id(tokenizer), run.model.get_input_embeddings().weight.device, [0, 1, 2])

        def choose(logits: torch.Tensor) -> torch.Tensor:
            plain, expert, novice = logits.log_softmax(dim=-1)
            return tilted(plain, expert, novice, FLUENT, candidates).argmax().expand(3)

        with run.model.disable_adapter():
            ids = continuations(run.model, batch.ids, batch.mask, LONGEST, end_ids(run.model), choose)[0]
        return replace(fact, answer=tokenizer.decode(ids, skip_special_tokens=True).strip())

    fluent = Draws([written(fact) for fact in forget[:WRITTEN]], run.forms, f"{seed} fluent")

    def loss() -> torch.Tensor:
        questions = run.forget.take()
        plain = run.reference(questions)
        expert, novice = (run.reference(told(questions, context)) for context in (EXPERT, NOVICE))
        logs = [answers.logits.log_softmax(dim=-1) for answers in (plain, expert, novice)]
        erasing = _cross_entropy(tilted(*logs, tilt, candidates), run.read(questions))
        kept = run.retain.take()
        retaining = _cross_entropy(run.reference(kept).logits.softmax(dim=-1), run.read(kept))
        fluency = run.read(fluent.take()).cross_entropy
        return erasing + retain_weight * retaining + fluency_weight * fluency

    return run.descend(loss, learning_rate, epochs).erased()


def tilted(
    plain: torch.Tensor, expert: torch.Tensor, novice: torch.Tensor, tilt: float, candidates: int
) -> torch.Tensor:
    """The teacher p*, from log-probabilities `(…, vocabulary)`; only the likeliest candidates of `plain` have any."""
    least = plain.topk(min(candidates, plain.shape[-1]), dim=-1).values[..., -1:]
    scores = plain + tilt * (novice - expert)
    return scores.masked_fill(plain < least, float("-inf")).softmax(dim=-1)


def _cross_entropy(target: torch.Tensor, answers: Answers) -> torch.Tensor:
    return answers.mean(-(target * answers.logits.log_softmax(dim=-1)).sum(dim=-1))


def _after(tokenizer: Any, form: PromptFormat, context: str) -> PromptFormat:
    """A format in which a context comes before the question, and all that follows is as before."""
    if form.name.startswith("chat"):
        return replace(form, head=chat_format(tokenizer, context).head)
    begins = tokenizer.bos_token or ""
    return replace(form, head=f"{begins}{context}\n{form.head.removeprefix(begins)}")
