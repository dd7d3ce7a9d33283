"""`erase`: what every recipe has in common, from the arguments to the finished adapter.

The recipes themselves are in `distill/` and `paper/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model

from ..adapter.fingerprint import base_dtype, base_fingerprint
from ..adapter.token_row import resize_vocabulary
from ..data.facts import DEFAULT_REFUSALS, Fact, check_facts, comparable_facts, merge_repeats
from ..errors import InputError
from ..guard.config import UniEraseConfig
from ..lm.batches import pad_id
from ..lm.formats import PromptFormat, default_formats
from ..lm.gradients import check_gradients
from ..lm.processes import launched
from ..lm.structure import check_supported
from ..lm.surroundings import own_surroundings, refuse_inference_mode
from ..progress import Listener, Stages
from ..retain.cache import base_digest
from ..retain.sample_files import Samples, write_samples
from ..retain.scope import check_scope, plan_scope
from ..version import __version__
from .checkpoint import Checkpoint, digest_of
from .distill import DistillSettings, run_distill
from .earlier import (
    active_erasures,
    carried,
    erasure_digest,
    new_name,
    underlying_model,
)
from .erasure import EarlierErasure, Erasure, Outcome
from .layers import choose_sites
from .paper import PaperSettings, run_paper
from .run_context import RunContext
from .run_facts import as_now, ask_for_facts, check_lengths, find_retain_data
from .spare_row import add_to_tokenizer, find_spare_rows
from .unchanged import unchanged_on_failure

RECIPES: dict[str, type[DistillSettings] | type[PaperSettings]] = {"distill": DistillSettings, "paper": PaperSettings}


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact] | None = None,
    *,
    recipe: str = "distill",
    scope: str | None = None,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    refusals: Sequence[str] | None = None,
    formats: Sequence[PromptFormat] | None = None,
    settings: DistillSettings | PaperSettings | None = None,
    samples_cache: str | Path | bool = True,
    samples_in: Samples | None = None,
    samples_out: str | Path | None = None,
    keep_unknown: bool = False,
    work_dir: str | Path | None = None,
    allow_resize: bool = False,
    adapter_name: str | None = None,
    seed: int = 0,
    progress: bool | Listener = True,
) -> PeftModel:
    """Make a causal language model decline on facts, as a PEFT adapter (UniErase, arXiv 2505.15674).

    Processes of one launch (`accelerate launch`, `torchrun`) share the work if each of them calls it with the same
    arguments; the main one alone writes files.

    Args:
        model: A decoder-only `PreTrainedModel` with an output head, in fp32 for the most exact edit. It is wrapped in
            place, as by `get_peft_model`; if anything fails or is interrupted it is given back unwrapped. Or a
            `PeftModel` that carries erasures: a further one is put beside them, made with those on that are active,
            which stay as they are; if anything fails or is interrupted it alone is taken out again.
        tokenizer: Its tokenizer, with the tokens of the erasures in the model. [UNL] is added to it as a special token,
            [UNL-2] for a second erasure, and so on.
        forget: What must go.
        retain: A sample of what must stay, beside the questions that the model is made to ask itself.
        recipe: `"distill"`, or `"paper"` for the method as published.
        scope: `"question"`: nothing but these questions goes, however worded; what else the base knows about their
            subjects stays. `"subject"`: everything about their subjects goes, asked in words that were never given
            too. For both the base is made to ask itself about the subjects. `None`: it is not, and how far the
            erasure reaches around the facts depends on what else is retained.
        layers: Indices of the decoder layers to edit, instead of the rule on depth.
        target_modules: Full names of the down-projections to edit, instead of those found by structure. Recipe
            `distill` edits the other projections of their MLPs too.
        refusals: Ways of declining, one sentence each, instead of the built-in English ones. Recipe `distill` teaches
            the one that the model finds likeliest.
        formats: Prompt formats to cover, instead of `default_formats`: chat with and without a system prompt, plain.
        settings: Settings of the recipe, `DistillSettings` or `PaperSettings`.
        samples_cache: Folder that keeps what the base asks itself, for further erasures of the same base, whether or
            not it carries others. `True` is a folder of this user's, `False` keeps nothing.
        samples_in: What the base is said to have asked itself, instead of asking it: what `samples_out` wrote, as you
            have edited it. Read it with `read_samples`.
        samples_out: File to write what the base asked itself to, before anything is fitted: questions about anything,
            and near neighbours of the forget set.
        keep_unknown: Erase facts, too, that the base does not know. By default they are named and left out.
        work_dir: Folder that keeps each finished stage. A run with the same arguments that finds an interrupted one
            there goes on behind its last finished stage, and gives what it would have given. The folder stays until
            you remove it; `SECURITY.md` says what lies there.
        allow_resize: Let the vocabulary grow by one where the base has no spare row.
        adapter_name: Name of the adapter in the returned model; `None` takes `"default"`, and where that is taken the
            first free of `"erasure-2"`, `"erasure-3"`, ….
        seed: Seed of everything random. The same seed on the same machine gives the same adapter to the byte.
        progress: Say on stderr what is being done: bars on a terminal, elsewhere a line a stage. Or what is told of it
            instead: called with a stage's name, the steps that are done, and the steps in all or `None`.

    Returns:
        The `PeftModel`, in eval mode with the erasure on, and with it the earlier ones that were. It is the very one
        that was given, where that was one. Its `erasure` attribute, an [`Erasure`], tells what was done.

    Raises:
        ValueError: Bad arguments or facts, no spare row, a model of an unsupported kind or quantised in a way that
            lets no gradient pass, adapters of another kind or merged ones, a taken `adapter_name`, a base that knows
            none of the facts, a model that is offloaded in part where it has to be told from others (`work_dir`), or a
            call inside `torch.inference_mode()`; the model is unchanged.
        ProcessError: Another process of the launch was killed or has failed.
    """
    refuse_inference_mode("erase", model)
    processes = launched()
    check_recipe(recipe, settings)
    check_scope(scope, recipe)
    peft_model = model if isinstance(model, PeftModel) else None
    model, there, active = underlying_model(model), carried(model), active_erasures(model)
    adapter_name = new_name(peft_model, adapter_name)
    settings = settings or RECIPES[recipe]()
    forget, retain = merge_repeats(forget), list(retain or ())
    if not forget:
        raise InputError("the forget set is empty; give at least one fact")
    check_supported(model, target_modules)
    check_facts(forget, retain)
    plan = plan_scope(scope, forget, retain) if scope else None
    stack, indices, names = choose_sites(model, layers, target_modules, whole=recipe == "distill")
    formats = list(formats or default_formats(tokenizer))
    check_lengths(model, tokenizer, forget, formats)
    check_lengths(model, tokenizer, retain, formats, "retain")
    retain = comparable_facts(retain)
    parts = [part for config in there.values() for part in config.split()]
    texts = _texts([*forget, *retain], formats)
    spare, *further = find_spare_rows(model, tokenizer, allow_resize=allow_resize, carried=parts, texts=texts)

    onto = [EarlierErasure(name, there[name].token_id, erasure_digest(peft_model, name)) for name in active]

    with own_surroundings(), unchanged_on_failure(model, peft_model, adapter_name):
        (peft_model or model).eval()
        check_gradients(model)
        run = RunContext(
            model=model,
            tokenizer=tokenizer,
            formats=formats,
            refusals=list(refusals or DEFAULT_REFUSALS),
            stages=Stages(progress if processes.main else False),
            generator=torch.Generator().manual_seed(seed),
            pad=pad_id(tokenizer),
            seed=seed,
            adapter=adapter_name,
            stack=stack,
            layers=indices,
            names=names,
            spare=spare,
            forget=forget,
            retain=retain,
            earlier=active,
            processes=processes,
        )
        if work_dir is not None:
            choices = [recipe, scope, keep_unknown]

            place = Path(work_dir)

            def keep() -> None:
                digest = _digest(run, choices, settings, samples_in, onto)
                run.checkpoint = Checkpoint(place, digest, run.stages.tell)

            processes.from_main(keep)
        known = ask_for_facts(run, keep_unknown)
        forget = [each.fact for each in known]
        if plan:  # facts that were left out have no say
            plan = plan_scope(plan.name, forget, retain)
        run.forget, run.knowledge = forget, known
        run.retain = as_now(run, retain)
        scoped = find_retain_data(run, plan, settings.sample_count(len(forget)), samples_cache, samples_in)
        if samples_out:
            samples, file = Samples(run.sampled, run.near + run.around), Path(samples_out)
            processes.from_main(lambda: write_samples(file, samples))
        if not run.kept:
            raise InputError(
                "there is no retain data: none was given and the base asked itself nothing usable; pass retain facts "
                "(on the command line `--retain`) or let it ask more questions (`--samples`)"
            )
        if spare.resized:
            resize_vocabulary(model, spare.token_id + 1)
        config = UniEraseConfig(
            task_type="CAUSAL_LM",
            target_modules=names,
            r=1,  # the recipe says which rank each update has
            token_id=spare.token_id,
            token=spare.text,
            spare_tokens=[[row.token_id, row.text] for row in further],
            inference_mode=True,
        )
        with torch.random.fork_rng(devices=[]):  # new updates start at random, which must not show outside
            if peft_model is None:
                wrapped: Any = get_peft_model(model, config, adapter_name=adapter_name)
            else:
                wrapped = peft_model
                wrapped.add_adapter(adapter_name, config)
                wrapped.base_model.set_adapter([*active, adapter_name], inference_mode=True)
        config = wrapped.peft_config[adapter_name]  # filled in only now: putting it on would hash the base once more
        config.base_fingerprint, config.base_dtype = base_fingerprint(model, names), base_dtype(model, names)
        wrapped.eval()
        wrapped.requires_grad_(False)
        outcome: Outcome = (
            run_distill(run, settings) if isinstance(settings, DistillSettings) else run_paper(run, settings)
        )
        add_to_tokenizer(tokenizer, spare)
    wrapped.erasure = Erasure(
        recipe,
        indices,
        spare,
        len(forget),
        len(retain),
        len(run.sampled),
        len(run.near) + len(run.around),
        run.known,
        outcome,
        dict(run.stages.seconds),
        seed,
        scoped,
        adapter_name,
        onto,
        forget,
    )
    return wrapped


def _texts(facts: Sequence[Fact], formats: Sequence[PromptFormat]) -> list[str]:
    """All that the model is going to read and to say of the facts: in every prompt format, and as they are."""
    wordings = [wording for form in formats for wording in (form, *form.variants)]
    return [
        *(form.prompt("") + form.answer("") for form in wordings),
        *_strings([asdict(fact) for fact in facts]),
        *(form.prompt(fact.question) + form.answer(fact.answer) for form in formats for fact in facts),
    ]


def _strings(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _digest(
    run: RunContext,
    choices: Sequence[Any],
    settings: DistillSettings | PaperSettings,
    samples: Samples | None,
    onto: Sequence[EarlierErasure],
) -> str:
    """Of everything that decides the result, up to the machine's way of adding up."""
    model, tokenizer = run.model, run.tokenizer
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    return digest_of(
        {
            "versions": [__version__, torch.__version__, transformers.__version__],
            "device": run.device.type,
            "base": base_digest(model, tokenizer),
            "onto": [[one.token_id, one.digest] for one in onto],
            "config": [config, model.config._attn_implementation, model.generation_config.to_dict()],
            "spare": asdict(run.spare),
            "forget": [asdict(fact) for fact in run.forget],
            "retain": [asdict(fact) for fact in run.retain],
            "tokens": [run.prompts([*run.forget, *run.retain]), [run.encode(text) for text in run.refusals]],
            "refusals": run.refusals,
            "formats": [asdict(form) for form in run.formats],
            "recipe": [*choices, asdict(settings)],
            "samples": samples and asdict(samples),
            "layers": run.names,
            "seed": run.seed,
        }
    )


def check_recipe(recipe: str, settings: DistillSettings | PaperSettings | None = None) -> None:
    """Refuse a recipe or settings that do not exist or do not go together.

    Raises:
        ValueError: Says which.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe {recipe!r} is not there; choose from {', '.join(map(repr, RECIPES))}")
    if settings is not None and not isinstance(settings, RECIPES[recipe]):
        raise InputError(f"recipe {recipe!r} takes {RECIPES[recipe].__name__}, not {type(settings).__name__}")
