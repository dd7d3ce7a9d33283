"""`erase`: the whole method, in its order.

Recipe `gate`: all facts are steered to the same token, so one steer vector serves all, and each edited layer needs one
detector row. The stages are the private functions below, from top to bottom.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from ..facts import Fact, check_facts
from ..prompts import PromptFormat, batches, default_formats, encode, pad_id
from ..tuner import UniEraseConfig
from ..tuner.structure import check_supported, find_token_modules
from ..tuner.swap import SwappingLayer
from .detector import ShutKeys
from .erasure import Erasure, ErasureWarning, GateSettings
from .fingerprint import base_fingerprint
from .gates import Openings, edit_layers
from .known import ENOUGH, known_shares
from .layers import choose_gates
from .progress import Stages
from .refusal import RefusalLesson, fit_input_row, likely_refusals
from .refusals import DEFAULT_REFUSALS
from .replay import Recording
from .samples import drop_close, sample_facts
from .spare_row import SpareRow, add_to_tokenizer, find_spare_row
from .steer import SteerGoal, fit_steer
from .trace import inputs_at


@dataclass(frozen=True)
class _Bench:
    """What all stages work on."""

    model: Any
    tokenizer: Any
    formats: list[PromptFormat]
    stages: Stages
    generator: torch.Generator
    pad: int

    def prompts(self, facts: Sequence[Fact]) -> list[list[int]]:
        """Every question in every format, formats side by side."""
        return [encode(self.tokenizer, form.prompt(fact.question)) for fact in facts for form in self.formats]


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact] | None = None,
    *,
    recipe: str = "gate",
    depth: int = 0,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    refusals: Sequence[str] | None = None,
    formats: Sequence[PromptFormat] | None = None,
    settings: GateSettings | None = None,
    allow_resize: bool = False,
    adapter_name: str = "default",
    seed: int = 0,
    progress: bool = True,
) -> PeftModel:
    """Make a causal language model decline on facts, as a PEFT adapter (UniErase, arXiv 2505.15674).

    Args:
        model: A decoder-only `PreTrainedModel` with an output head, in fp32 for the most exact edit. It is wrapped in
            place, as by `get_peft_model`; if anything fails or is interrupted it is given back unwrapped.
        tokenizer: Its tokenizer. [UNL] is added to it as a special token.
        forget: What must go.
        retain: A sample of what must stay, beside the questions that the model is made to ask itself.
        recipe: Only `"gate"` in this version.
        depth: How many answer positions behind the door are gated too. Only 0, the door alone, in this version.
        layers: Indices of the decoder layers to edit, instead of the rule on depth.
        target_modules: Full names of the down-projections to edit, instead of those found by structure.
        refusals: Ways of declining, one sentence each, instead of the built-in English ones.
        formats: Prompt formats to cover, instead of the chat template and the plain format.
        settings: Settings of the recipe.
        allow_resize: Let the vocabulary grow by one where the base has no spare row.
        adapter_name: Name of the adapter in the returned model.
        seed: Seed of everything random. The same seed on the same machine gives the same adapter to the byte.
        progress: Draw progress bars on stderr.

    Returns:
        The `PeftModel`, in eval mode with the erasure on. Its `erasure` attribute, an [`Erasure`], tells what was done.

    Raises:
        ValueError: Bad arguments or facts, no spare row, or a model of an unsupported kind; the model is unchanged.
    """
    check_recipe(recipe, depth)
    if isinstance(model, PeftModel):
        raise ValueError("the model already is a PeftModel; merge its adapters first (merge_and_unload) or unload them")
    settings = settings or GateSettings()
    forget, retain = list(forget), list(retain or ())
    if not forget:
        raise ValueError("the forget set is empty; give at least one fact")
    check_supported(model, target_modules)
    check_facts(forget, retain)
    stack, indices, names = choose_gates(model, layers, target_modules)
    formats = list(formats or default_formats(tokenizer))
    check_lengths(model, tokenizer, forget, formats)
    check_lengths(model, tokenizer, retain, formats, "retain")
    spare = find_spare_row(model, tokenizer, allow_resize=allow_resize)

    with _unchanged_on_failure(model):
        model.eval()
        generator = torch.Generator().manual_seed(seed)
        bench = _Bench(model, tokenizer, formats, Stages(progress), generator, pad_id(tokenizer))
        known = _known_to_base(bench, forget)
        sampled = _sample_retain_data(bench, forget, retain, settings, seed)
        if not retain and not sampled:
            raise ValueError(
                "there is no retain data: none was given and the base asked itself nothing usable; pass retain facts "
                "(on the command line `--retain`) or let it ask more questions (`--samples`)"
            )
        if spare.resized:
            model.resize_token_embeddings(spare.token_id + 1)
        config = UniEraseConfig(
            task_type="CAUSAL_LM",
            target_modules=names,
            token_id=spare.token_id,
            token=spare.text,
            base_fingerprint=base_fingerprint(model, names),
            inference_mode=True,
        )
        with torch.random.fork_rng(devices=[]):  # new gates start at random, which must not show outside
            wrapped = get_peft_model(model, config, adapter_name=adapter_name)
        wrapped.eval()
        wrapped.requires_grad_(False)
        facts = (forget, retain, sampled)
        erasure = _run(bench, stack, indices, names, spare, facts, known, refusals, settings, adapter_name, seed)
        add_to_tokenizer(tokenizer, spare)
    wrapped.erasure = erasure
    return wrapped


@contextmanager
def _unchanged_on_failure(model: Any) -> Iterator[None]:
    """Give the model back as it came if the block fails or is interrupted."""
    was_training, rows = model.training, model.get_input_embeddings().weight.shape[0]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        yield
    except BaseException:
        for name, module in list(model.named_modules()):
            if isinstance(module, SwappingLayer):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
        vars(model).pop("peft_config", None)
        if model.get_input_embeddings().weight.shape[0] != rows:
            model.resize_token_embeddings(rows)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        model.train(was_training)
        raise


def check_recipe(recipe: str, depth: int) -> None:
    """Refuse what this version does not have.

    Raises:
        ValueError: Another recipe than `"gate"` or another depth than 0.
    """
    if recipe != "gate":
        raise ValueError(f"recipe {recipe!r} is not there; this version has 'gate'")
    if depth != 0:
        raise ValueError(f"depth {depth!r} is not there; this version gates the door alone, depth 0")


def check_lengths(
    model: Any, tokenizer: Any, facts: Sequence[Fact], formats: Sequence[PromptFormat], role: str = "forget"
) -> None:
    """Refuse questions that do not fit the model's context with their answers.

    Raises:
        ValueError: A question is too long; names it and the limit.
    """
    context = _context(model)
    for number, fact in enumerate(facts, start=1):
        if (length := _longest(tokenizer, fact, formats)) > context:
            raise ValueError(
                f"{role} fact {number} takes {length} tokens and the model's context holds {context:.0f}: "
                f"{fact.question[:60]!r}…; shorten it or leave it out"
            )


def _context(model: Any) -> float:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return math.inf if limit is None else limit


def _longest(tokenizer: Any, fact: Fact, formats: Sequence[PromptFormat]) -> int:
    """Tokens of a fact with its answer, in the format that takes most."""
    return max(len(encode(tokenizer, form.prompt(fact.question) + form.answer(fact.answer))) for form in formats)


def _known_to_base(bench: _Bench, forget: list[Fact]) -> float:
    with bench.stages.stage("asking the base", len(forget)) as bar:
        shares = known_shares(bench.model, bench.tokenizer, forget, bench.formats[0], bar.update)
    known = float(shares.mean())
    if known < ENOUGH:
        warnings.warn(
            f"the base predicts only {known:.0%} of the forget answers' tokens, so it hardly knows these facts and "
            "there is little or nothing to erase; check that this is the right base and that questions and answers are "
            "worded as it learnt them",
            ErasureWarning,
            stacklevel=3,
        )
    return known


def _sample_retain_data(
    bench: _Bench, forget: list[Fact], retain: list[Fact], settings: GateSettings, seed: int
) -> list[Fact]:
    if not settings.samples:
        return []
    with bench.stages.stage("sampling retain data", 2 * settings.samples) as bar:
        found = sample_facts(bench.model, bench.tokenizer, bench.formats[0], settings.samples, seed, advance=bar.update)
    given, context = {fact.question for fact in retain}, _context(bench.model)
    return [
        fact
        for fact in drop_close(found, forget)
        if fact.question not in given and _longest(bench.tokenizer, fact, bench.formats) <= context
    ]


def _run(
    bench: _Bench,
    stack: nn.ModuleList,
    indices: list[int],
    names: list[str],
    spare: SpareRow,
    facts: tuple[list[Fact], list[Fact], list[Fact]],
    known: float,
    refusals: Sequence[str] | None,
    settings: GateSettings,
    adapter: str,
    seed: int,
) -> Erasure:
    model, stages = bench.model, bench.stages
    forget, retain, sampled = facts
    embedding, head = (model.get_submodule(name) for name in find_token_modules(model))
    input_row, output_row = embedding.unierase_row[adapter], head.unierase_row[adapter]
    _start_rows(embedding, head, input_row, output_row, bench.generator)

    prompts = bench.prompts(forget)
    end = encode(bench.tokenizer, bench.formats[0].end)
    sentences = refusals or DEFAULT_REFUSALS
    texts = [encode(bench.tokenizer, sentence) + end for sentence in sentences]
    # Behind a plain prompt an answer begins with a space, and so with another token.
    starts = sorted({encode(bench.tokenizer, lead + sentence)[0] for sentence in sentences for lead in ("", " ")})
    easy = likely_refusals(model, prompts[:: max(1, len(prompts) // 16)], texts, bench.pad, settings.refusal_count)
    texts = [texts[index] for index in easy]

    projections = [model.get_submodule(name) for name in names]
    kept = retain + sampled
    answered = _answered(bench, kept)
    doors, others = _retain_keys(bench, projections, kept, answered)
    held = torch.arange(len(kept)) % settings.held_out == settings.held_out - 1
    goal = settings.goal

    layer = stack[indices[-1]]
    with stages.stage("fitting the steer vector", settings.steer.steps) as bar:
        recordings = _record(bench, stack, indices[-1], prompts)
        retained = _record(bench, stack, indices[-1], _spread(answered, settings.fit_samples))
        lesson = RefusalLesson(model, prompts, texts, spare.token_id, bench.pad)
        steer = fit_steer(
            model,
            layer,
            output_row,
            input_row,
            spare.token_id,
            recordings,
            retained,
            lesson,
            torch.tensor(starts, device=output_row.device),
            goal,
            settings.steer,
            bench.generator,
            bar.update,
        )

    refused = _refusal_keys(bench, projections, prompts, texts, spare.token_id)
    shut = [ShutKeys([d[~held].flatten(0, 1), o, r]) for d, o, r in zip(doors, others, refused, strict=True)]
    held_out = [keys[held].flatten(0, 1) for keys in doors]
    gates = [(gate, gate.unierase_A[adapter], gate.unierase_B[adapter]) for gate in projections]
    behind = stack[indices[-1] + 1]
    with stages.stage("editing layers", len(gates) * len(settings.retain_weights)) as bar:
        for weight in settings.retain_weights:
            openings = edit_layers(model, gates, behind, steer, prompts, shut, held_out, weight, bench.pad, bar.update)
            if float(openings.forget.min()) >= settings.open_share * goal.open_from:
                break

    _warn_if_it_does_not_hold(openings, goal)

    with stages.stage("fitting the input row", settings.row_steps) as bar:
        lesson = RefusalLesson(model, prompts, texts, spare.token_id, bench.pad)
        loss = fit_input_row(
            lesson, input_row, steps=settings.row_steps, learning_rate=settings.row_learning_rate, advance=bar.update
        )
    return Erasure(
        settings,
        indices,
        spare,
        weight,
        len(forget),
        len(retain),
        len(sampled),
        known,
        openings,
        loss,
        dict(stages.seconds),
        seed,
    )


def _warn_if_it_does_not_hold(openings: Openings, goal: SteerGoal) -> None:
    closed = float((openings.forget < goal.open_from).float().mean())
    leaking = float((openings.leak > goal.open_from).float().mean()) if len(openings.leak) else 0.0
    if closed:
        warnings.warn(
            f"{closed:.1%} of the forget doors open less than is needed to decline ({goal.open_from}): the edited "
            "layers cannot tell so many questions from what must stay. Erase fewer facts at a time or edit more layers",
            ErasureWarning,
            stacklevel=4,
        )
    if leaking > 0.01:
        warnings.warn(
            f"{leaking:.1%} of the held-out retained questions open the gate and will be declined. Give more retain "
            "data of that kind, or edit more layers",
            ErasureWarning,
            stacklevel=4,
        )


def _start_rows(
    embedding: Any, head: Any, input_row: nn.Parameter, output_row: nn.Parameter, generator: torch.Generator
) -> None:
    """Start both rows at random, in the scale of the base's own: a spare row may hold anything."""
    for layer, row in ((embedding, input_row), (head, output_row)):
        spread = layer.get_base_layer().weight.detach().float().std()
        row.data.copy_(torch.randn(row.shape, generator=generator).to(row.device) * spread)


def _retain_keys(
    bench: _Bench, projections: Sequence[nn.Module], kept: Sequence[Fact], answered: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys of retained facts under the base, for each layer: doors `(facts, formats, d_ff)` and others `(n, d_ff)`.

    They are taken once. The gates of lower layers leave the retained keys of higher ones all but unchanged, since they
    are shut on them: taking them anew before each layer gave the same erasure and cost as much again.
    """
    prompts = bench.prompts(kept)
    with bench.stages.stage("recording retain keys", len(prompts) + len(answered)) as bar:
        at_doors = inputs_at(bench.model, projections, prompts, [[len(p) - 1] for p in prompts], bench.pad, bar.update)
        positions = []
        for number, sequence in enumerate(answered):
            door = len(prompts[number * len(bench.formats) + number % len(bench.formats)]) - 1
            positions.append([p for p in range(len(sequence)) if p != door])
        elsewhere = inputs_at(bench.model, projections, answered, positions, bench.pad, bar.update)
    shape = (len(kept), len(bench.formats), -1)
    return [torch.cat(keys).reshape(shape) for keys in at_doors], [torch.cat(keys) for keys in elsewhere]


def _answered(bench: _Bench, kept: Sequence[Fact]) -> list[list[int]]:
    """Each retained fact with its answer, in one of the formats by turns."""
    turns = [bench.formats[number % len(bench.formats)] for number in range(len(kept))]
    return [
        encode(bench.tokenizer, form.prompt(fact.question) + form.answer(fact.answer))
        for form, fact in zip(turns, kept, strict=True)
    ]


def _spread(items: list[list[int]], count: int) -> list[list[int]]:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return items
    return [items[number * len(items) // count] for number in range(count)]


def _record(bench: _Bench, stack: nn.ModuleList, layer: int, sequences: Sequence[Sequence[int]]) -> list[Recording]:
    device = bench.model.get_input_embeddings().weight.device
    return [Recording(bench.model, stack, layer, batch) for batch in batches(sequences, bench.pad, device, tokens=640)]


def _refusal_keys(
    bench: _Bench,
    projections: Sequence[nn.Module],
    prompts: Sequence[Sequence[int]],
    refusals: Sequence[Sequence[int]],
    token_id: int,
    count: int = 160,
) -> list[torch.Tensor]:
    """Keys behind [UNL], inside refusals, for each layer `(n, d_ff)`: the gate must not fire again there."""
    chosen = [prompts[number % len(prompts)] for number in range(count)]
    sequences = [[*p, token_id, *refusals[number % len(refusals)]] for number, p in enumerate(chosen)]
    positions = [list(range(len(p), len(s))) for p, s in zip(chosen, sequences, strict=True)]
    return [torch.cat(keys) for keys in inputs_at(bench.model, projections, sequences, positions, bench.pad)]
