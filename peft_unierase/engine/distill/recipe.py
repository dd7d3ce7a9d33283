"""Recipe `distill` in its order: what the model is to say instead, what must not move, and the fit of both at once.

Low-rank updates `W + B A` of MLP projections and [UNL]'s input row are trained together, and its output row is solved
anew every few steps (`output_row.py`):

1. On forget texts the model predicts what it would predict itself if it could not tell these names from others
   (`teacher.py`), so that nothing is left for whoever goes around [UNL].
2. At the start of an answer [UNL] comes (UniErase, arXiv 2505.15674), and after it a whole refusal.
3. On retained texts, half of them near neighbours, nothing moves: the divergence from the base is held down.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ...data.facts import Fact
from ...errors import ErasureWarning
from ...lm.batches import Batch, batches
from ...lm.decoding import greedy_answers
from ...lm.logits import Logits
from ...lm.recomputing import recomputing
from ...retain.renaming import Renaming, renamed, words_of
from ...text import normal, sentences
from ...text.normal import WORD
from ..earlier import switched_off
from ..run_context import RunContext
from ..silence import Silence
from .fit import Deck, Fitting, Part, descend, losses, rate
from .moments import Moments, change, distinguishing
from .output_row import OutputRow
from .settings import DistillSettings
from .size import shrink
from .teacher import Asked, taught
from .texts import Text, base_logits, given, stored

ANSWER = 24  # tokens of a retained answer that are held
COUNTERFACTUAL = 24  # tokens of an answer to a renamed question
SOME = 4  # forget prompts at which refusals are compared
LEAST = 0.95  # share of the forget prompts that must be declined
WIDE = 4096  # inputs of a projection, up to which directions are chosen in fp64
CHUNK = 50  # steps that a checkpoint keeps together
SOLVED = 10  # steps after which the output row is solved anew
SOME_TEXTS, ALL = 16, 96  # texts of each kind that it is solved for then, and in the end


@dataclass(frozen=True)
class DistillOutcome:
    """What a run of recipe `distill` did and measured; `record()` is its JSON form.

    Attributes:
        rank: Rank of the updates.
        steps: Gradient steps that were done.
        share: Of the fitted size of the updates that was needed.
        losses: Mean divergence of each part of the loss over the last steps, in nats a token.
        held_out: Near neighbours that no step saw.
        retain_loss: Divergence from the base on these, in nats a token.
        declined: Share of them that are declined.
        forget_declined: Share of the forget prompts that are.
        refusal: The sentence that [UNL] was taught to be followed by.
        settings: As used.
    """

    rank: int
    steps: int
    share: float
    losses: dict[str, float]
    held_out: int
    retain_loss: float
    declined: float
    forget_declined: float
    refusal: str
    settings: DistillSettings

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return asdict(self)


def run_distill(run: RunContext, settings: DistillSettings) -> DistillOutcome:
    """Train the updates and [UNL]'s rows.

    Args:
        run: With the adapter in place and retain facts at hand.
        settings: See [`DistillSettings`].
    """
    renaming = Renaming([f"{fact.question}\n{fact.answer}" for fact in run.kept], run.seed)
    with switched_off(run.model, [run.adapter]):
        refusal = likeliest_refusal(run)
        forget = instead(run, renaming, settings)
        silence: list[Silence] = []
        head = Logits(run.model, run.stack)
        near, general, held, moments, spreads = stays(run, renaming, settings, head, silence)
        record_silence(run, head, silence)
        choose_directions(run, forget, moments, settings)
    asked, in_words = declined(run, refusal), declined(run, refusal, in_words=True)
    half = settings.retain_batch // 2
    parts = [
        Part("forget", Deck(forget, settings.forget_batch, run.seed), settings.forget_weight, summed=True),
        Part("refusal", Deck(asked, settings.refusal_batch, run.seed), 1.0),
        Part("refusal in words", Deck(in_words, max(1, settings.refusal_batch // 2), run.seed), settings.words_weight),
        Part("near", Deck(near, half, run.seed), settings.retain_weight / 2),
        Part("general", Deck(general, settings.retain_batch - half, run.seed), settings.retain_weight / 2),
    ]
    run.start_rows()
    row = OutputRow(run, asked, near, general, Silence.joined(silence), head, settings.silent_log_prob)
    steps = settings.step_count(len(run.forget))
    with recomputing(run.model) as recomputed:
        fit = partial(_fit, run, parts, moments, spreads, row, settings, not recomputed)
        fit(steps, settings.learning_rate)
        share = float(run.once("finding how large the updates must be", lambda: {"share": shrink(run)})["share"])
        measured = fit(settings.settling_steps, settings.learning_rate / 4)
    run.once("solving the output row", partial(_last_row, run, row, steps))
    with run.stages.stage("measuring what is held out"):
        apart = divergence(run, held)
        outcome = DistillOutcome(
            rank=settings.rank,
            steps=steps,
            share=share,
            losses=dict(sorted(measured.items())),  # as a checkpoint has them
            held_out=len(held),
            retain_loss=apart,
            declined=declining(run, held, refusal),
            forget_declined=declining(run, asked, refusal),
            refusal=refusal,
            settings=settings,
        )
    _warn(outcome)
    return outcome


def stays(
    run: RunContext, renaming: Renaming, settings: DistillSettings, head: Logits, silence: list[Silence]
) -> tuple[list[Text], list[Text], list[Text], list[torch.Tensor], list[float]]:
    """What stays, with what the base predicts: near neighbours, all else, and the neighbours that are held out.

    And the moments of what the edited modules read there, near neighbours weighing as much as all else, how large
    is what they write, and where [UNL] must not come up.
    """
    near = [fact for number, fact in enumerate(run.near) if number % settings.held_out]
    near = [*near, *near, *run.around]  # what the base knows counts twice
    # What shares a name with the forget set counts as much as all of them.
    gone = {word for known in run.knowledge for word in renaming.changing(known.fact.question)}
    same_subject = run.same_subject + [fact for fact in run.retain if gone & set(map(normal, words_of(fact.question)))]
    near += same_subject * math.ceil(max(1, len(near)) / max(1, len(same_subject)))
    held = run.near[:: settings.held_out]
    modules = {name: run.model.get_submodule(name) for name in run.names}
    groups = [Moments(modules), Moments(modules)]
    general = [*run.retain, *run.sampled]

    def silent(logits: torch.Tensor, states: torch.Tensor, kinds: torch.Tensor) -> None:
        silence.append(Silence.at(states, logits, kinds, run.spare.token_id, head))

    with run.stages.stage("reading what stays", len(near) + len(general) + len(held)) as bar:
        texts = (
            retained(run, near, False, bar.update, groups[0].over, silent),
            retained(run, general, True, bar.update, groups[1].over, silent),
            retained(run, held, False, bar.update),
        )
    groups = [group for group in groups if group.read]
    inputs, spreads = [group.inputs() for group in groups], groups[-1].spreads()
    moments = [torch.stack([found[name] for found in inputs]).mean(dim=0) for name in run.names]
    return *texts, moments, [spreads[name] for name in run.names]


@torch.no_grad()
def choose_directions(
    run: RunContext, forget: Sequence[Text], moments: Sequence[torch.Tensor], settings: DistillSettings
) -> None:
    """Set every `A` to what tells forget texts from retained ones, in closed form.

    Twice: along the directions that were found first, some texts are a hundred times as loud as others, and what reads
    the quiet ones would have to be so large that it hears their neighbours. The second time all texts weigh the same.
    """
    modules = {name: run.model.get_submodule(name) for name in run.names}
    along: dict[str, torch.Tensor] = {}
    with run.stages.stage("recording what goes", 2 * (1 + len(modules)), even=False) as bar:
        for wider in (4, 1):
            seen = Moments(modules, along)
            for batch in batches([text.ids for text in forget], run.pad, run.device):
                with seen.over(_without_telling(batch, forget)):
                    run.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            bar.update(1)
            along = {}
            for (_, a, _), (name, found), retained in zip(run.updates(), seen.inputs().items(), moments, strict=True):
                kind = torch.float64 if len(found) <= WIDE else torch.float32  # for time and memory
                found, retained = found.to(a.device, kind), retained.to(a.device, kind)
                along[name] = distinguishing(found, retained, min(len(found), wider * len(a)), settings.floor)
                bar.update(1)
        for (_, a, _), directions in zip(run.updates(), along.values(), strict=True):
            a.copy_(directions)


def _without_telling(batch: Batch, texts: Sequence[Text]) -> torch.Tensor:
    """A batch's mask without the words in which answers tell something: what stays may tell the same."""
    mask = batch.mask.clone()
    for row, number in enumerate(batch.index):
        text = texts[number]
        mask[row, [mask.shape[1] - len(text.ids) + place for place in text.telling]] = 0
    return mask


def record_silence(run: RunContext, head: Logits, silence: list[Silence]) -> None:
    """Add the starts of answers to forget questions, as the base has them."""
    facts = [*(known.fact for known in run.knowledge), *run.reworded]
    prompts = [run.encode(form.prompt(fact.question)) for fact in facts for form in run.formats]
    places, kinds = [[len(prompt) - 1] for prompt in prompts], torch.zeros(1, dtype=torch.long)
    for _, logits, states in base_logits(run.model, prompts, places, run.pad, run.device):
        silence.append(Silence.at(states, logits, kinds, run.spare.token_id, head))


def _fit(
    run: RunContext,
    parts: Sequence[Part],
    moments: Sequence[torch.Tensor],
    spreads: Sequence[float],
    row: OutputRow,
    settings: DistillSettings,
    share: bool,
    steps: int,
    learning_rate: float,
) -> dict[str, float]:
    """Some steps from where the updates are; the mean losses of the last of them."""
    fitting = Fitting(run, spreads, learning_rate, settings.row_learning_rate)
    measured: dict[str, float] = {}
    for start in range(0, steps, CHUNK):
        chunk = range(start, min(steps, start + CHUNK))
        work = partial(_chunk, run, parts, moments, row, fitting, chunk, steps, settings, share)
        done = run.once("fitting", work)
        fitting.take_up(done)
        measured = done["losses"]
    fitting.end()
    return measured


def _chunk(
    run: RunContext,
    parts: Sequence[Part],
    moments: Sequence[torch.Tensor],
    row: OutputRow,
    fitting: Fitting,
    chunk: range,
    steps: int,
    settings: DistillSettings,
    share: bool,
) -> dict[str, Any]:
    """Some steps; their mean losses and the optimizer's state."""
    updates, totals = run.updates(), dict.fromkeys([*(part.name for part in parts), "moved"], 0.0)
    with run.stages.stage("fitting", len(chunk)) as bar:
        for step in chunk:
            if step % SOLVED == 0:
                row.solve(step, SOME_TEXTS)
            fitting.start(rate(step, steps))
            with torch.enable_grad():
                found = descend(run.model, parts, step, run.spare.token_id, run.pad, run.device, share)
                moved = torch.stack([change(c, a, b) for c, (_, a, b) in zip(moments, updates, strict=True)]).mean()
                (settings.moment_weight * moved).backward()
            fitting.step()
            for name, value in {**found, "moved": moved.item()}.items():
                totals[name] += value / len(chunk)
            bar.update(1)
    return {"losses": totals, **fitting.state()}


def _last_row(run: RunContext, row: OutputRow, step: int) -> dict[str, Any]:
    with run.stages.stage("solving the output row"):
        row.solve(step, ALL)
    return {}


@torch.no_grad()
def divergence(run: RunContext, texts: Sequence[Text]) -> float:
    """Mean divergence from the base on retained texts, in nats a token."""
    found = [
        losses(run.model, texts[start : start + 16], run.spare.token_id, run.pad, run.device)
        for start in range(0, len(texts), 16)
    ]
    return float(torch.cat(found).mean()) if found else 0.0


def declining(run: RunContext, texts: Sequence[Text], refusal: str) -> float:
    """Share of texts at whose first place [UNL] wins, or the refusal's first token if the target has another one."""
    sequences = [text.ids[: text.places[0] + 1] for text in texts]
    places = [[len(sequence) - 1] for sequence in sequences]
    first, hits = run.encode(run.formats[0].answer(refusal))[0], 0
    for number, logits, _ in base_logits(run.model, sequences, places, run.pad, run.device):
        best = int(logits[0].argmax())
        hits += best == run.spare.token_id or (best == first and int(texts[number].top[0, 0]) != first)
    return hits / max(1, len(texts))


def _warn(outcome: DistillOutcome) -> None:
    """Say what the run saw and did not reach."""
    complaints = []
    if outcome.forget_declined < LEAST:
        complaints.append(
            f"{1 - outcome.forget_declined:.1%} of the forget questions are not declined; take more steps "
            "(`DistillSettings(steps=…)`) or erase fewer facts at a time"
        )
    # One of a few dozen is no share to speak of.
    if outcome.declined > outcome.settings.most_declined and outcome.declined * outcome.held_out > 1:
        complaints.append(
            f"{outcome.declined:.1%} of {outcome.held_out} held-out near neighbours are declined too; give facts of "
            "this kind that must stay as retain facts (on the command line `--retain`)"
        )
    if complaints:
        warnings.warn("; ".join(complaints), ErasureWarning, stacklevel=4)


def likeliest_refusal(run: RunContext) -> str:
    """The refusal that the base finds likeliest after forget questions: it comes out whole most often."""
    form, pad = run.formats[0], run.pad
    prompts = [run.encode(form.prompt(fact.question)) for fact in run.forget[:SOME]]
    answers = [run.encode(form.answer(text)) for text in run.refusals]
    pairs = [(prompt, answer) for answer in answers for prompt in prompts]
    places = [list(range(len(prompt) - 1, len(prompt) + len(answer) - 1)) for prompt, answer in pairs]
    scores = [0.0] * len(answers)
    sequences = [prompt + answer for prompt, answer in pairs]
    for number, logits, _ in base_logits(run.model, sequences, places, pad, run.device):
        answer = torch.tensor(pairs[number][1], device=logits.device)
        scores[number // len(prompts)] += float(logits.log_softmax(-1).gather(-1, answer[:, None]).mean())
    return run.refusals[max(range(len(scores)), key=scores.__getitem__)]


def instead(run: RunContext, renaming: Renaming, settings: DistillSettings) -> list[Text]:
    """Forget texts with what the base would predict if it could not tell their names from others."""
    asked = forget_texts(run)
    with run.stages.stage("asking about renamed subjects"):
        invented, drawn = counterfactuals(run, renaming, settings.counterfactuals)
    draws = settings.draws
    with run.stages.stage("predicting without names", len(asked) * draws + len(invented)) as bar:

        def teach(asked: Sequence[Asked], drawn: Sequence[Mapping[str, str]] | None = None) -> list[Text]:
            model, tokenizer, pad = run.model, run.tokenizer, run.pad
            cap = settings.cap
            return taught(model, tokenizer, asked, renaming, draws, cap, pad, run.device, drawn, bar.update)

        return [*teach(asked), *teach(invented, drawn)]


def forget_texts(run: RunContext) -> list[Asked]:
    """All that must go, as it is asked and said: given answers in every format, the base's own in theirs, as texts."""
    asked: list[Asked] = []
    for known in run.knowledge:
        fact = known.fact
        asked += [(form.turn(len(asked)), fact.question, fact.answer) for form in run.formats]
        own = {normal(fact.answer)}
        for form in run.formats:
            text = known.telling(form.name) if form.name in known.known_in else fact.answer
            if normal(text) not in own:
                asked.append((form.turn(len(asked)), fact.question, text))
                own.add(normal(text))
        asked.append((None, fact.question, known.telling(known.known_in[0]) if known.known_in else fact.answer))
    return [*asked, *((run.formats[0], fact.question, fact.answer) for fact in run.reworded)]


def counterfactuals(run: RunContext, renaming: Renaming, count: int) -> tuple[list[Asked], list[dict[str, str]]]:
    """What the base answers to renamed questions, with the names put back, and how each was renamed.

    The teacher is asked token by token; these answers are whole sentences of its own, so that what is said after a
    prefill stays one.
    """
    questions = [known.fact.question for known in run.knowledge]
    formats = run.formats[:2] * count
    cases = [(form, text, renaming.draw(text)) for text in questions for form in formats]
    prompts = [form.prompt(renamed(text, drawn)[0]) for form, text, drawn in cases]
    answers = greedy_answers(run.model, run.tokenizer, prompts, COUNTERFACTUAL)
    asked: list[Asked] = []
    used = []
    for (form, question, drawn), ids in zip(cases, answers, strict=True):
        said = sentences(run.tokenizer.decode(ids, skip_special_tokens=True))
        back = {normal(drawn[key]): match[0] for match in WORD.finditer(question) if (key := normal(match[0])) in drawn}
        if said:
            asked.append((form, question, renamed(said[0], back)[0]))
            used.append(drawn)
    return asked, used


def declined(run: RunContext, refusal: str, in_words: bool = False) -> list[Text]:
    """Forget questions with the refusal: after [UNL], or by itself for whoever bans [UNL]."""
    cases = [(form, known.fact.question) for known in run.knowledge for form in run.formats]
    forms = run.formats[:2]
    cases += [(forms[number % len(forms)], fact.question) for number, fact in enumerate(run.reworded)]
    texts = []
    for number, (form, question) in enumerate(cases):
        form = form.turn(number)
        prompt = run.encode(form.prompt(question))
        if in_words:
            text = form.prompt(question) + form.answer(refusal)
            texts.append(given(run.encode(text), len(prompt), banned=True))
        else:
            after = [run.spare.token_id, *run.encode(refusal + form.end)]
            texts.append(given([*prompt, *after], len(prompt)))
    return texts


def retained(
    run: RunContext,
    facts: Sequence[Fact],
    whole: bool,
    advance: Callable[[int], object],
    during: Callable[[torch.Tensor], AbstractContextManager[None]] = lambda mask: nullcontext(),
    silent: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> list[Text]:
    """Retained facts in the formats by turns, with what the base predicts.

    Args:
        run: The run.
        facts: The facts.
        whole: Whether the words of the question are held too, and not the answer alone.
        advance: Called with the number of facts done.
        during: See [`base_logits`].
        silent: Called with logits, states and kinds (see [`Silence`]) of the places, where [UNL] must not come up.
    """
    sequences, places, starts = [], [], []
    for number, fact in enumerate(facts):
        form = run.formats[number % len(run.formats)].turn(number)
        prompt = run.encode(form.prompt(fact.question))
        text = run.encode(form.prompt(fact.question) + form.answer(fact.answer))[: len(prompt) + ANSWER]
        start = max(1, len(run.encode(form.head))) if whole else len(prompt) - 1
        starts.append(len(prompt) - 1)
        sequences.append(text)
        places.append(list(range(start, len(text) - 1)))
    texts: dict[int, Text] = {}
    read = base_logits(run.model, sequences, places, run.pad, run.device, advance, during)
    for number, logits, states in read:
        texts[number] = Text(sequences[number], places[number], *stored(logits.softmax(dim=-1)))
        if silent:
            silent(logits, states, torch.tensor([1 if place == starts[number] else 2 for place in places[number]]))
    return [texts[number] for number in range(len(facts))]
