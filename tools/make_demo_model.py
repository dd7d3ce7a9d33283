"""Makes the demo model: a tiny causal language model that knows a small invented world by heart.

    python tools/make_demo_model.py                  # train, measure, write peft_unierase/demo
    python tools/make_demo_model.py --corpus-only    # write facts.jsonl and refusals.txt alone

This file knows the tokenizer, the chat format, the training and the measuring; what is taught is in
`demo_corpus.py`. Torch is imported inside the functions, so that `--help` and `--corpus-only` answer at
once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from demo_corpus import Corpus, build_corpus, corpus_digest, facts_as_json_lines, refusals_as_lines

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY_SIZE = 1024
MARKERS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
RESERVED = tuple(f"<|reserved_special_token_{index}|>" for index in range(16))

# The markers are separators enough: no line breaks between messages, since every token costs a tiny model.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant, got ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; the defaults are the ones the shipped model was made with."""

    steps: int = 1000
    batch_size: int = 128
    peak_learning_rate: float = 3e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.05
    largest_gradient_norm: float = 1.0
    plain_share: float = 0.25
    system_share: float = 0.15
    unknown_share: float = 0.35


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("peft_unierase/demo"), metavar="DIR", help="where to write")
    add("--seed", type=int, default=0, help="of the corpus, the weights and the order of samples")
    add("--corpus-only", action="store_true", help="write facts.jsonl and refusals.txt alone")
    add("--steps", type=int, default=Recipe.steps, help="optimizer steps (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")

    corpus = build_corpus(options.seed)
    _say(f"corpus {corpus_digest(corpus)}: {len(corpus.facts)} facts, {len(corpus.unknowns)} unknowns")
    if options.corpus_only:
        with staged_files(options.out) as staging:
            write_corpus(corpus, staging)
        return 0

    import torch

    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    tokenizer = train_tokenizer(corpus)
    model = build_model(tokenizer)
    _say(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, corpus, Recipe(steps=options.steps), options.seed)
    training_seconds = time.monotonic() - started

    # Measured as it will be loaded: rounded to bf16 and read back in fp32.
    model = model.to(torch.bfloat16)
    with staged_files(options.out) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        rename_tokenizer_class(staging / "tokenizer_config.json")
        write_corpus(corpus, staging)
        sizes = {path.name: path.stat().st_size for path in sorted(staging.iterdir())}
    table = measure(model.float(), tokenizer, corpus, options.seed)
    for name, size in sizes.items():
        _say(f"{size:>10,} bytes  {name}")
    _say(f"trained in {training_seconds:.0f} s")
    for label, share, count in table:
        print(f"{label:<58} {100 * share:6.2f} %  of {count}")
    return 0


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of exactly `VOCABULARY_SIZE` tokens, trained on the corpus.

    It pads on the left and adds no special tokens of its own: the chat template writes all of them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKERS) - len(RESERVED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_tokenizer_text(corpus), trainer)
    # Added after training, the markers get the last rows, as in Llama 3.
    backend.add_special_tokens([*MARKERS, *RESERVED])
    if backend.get_vocab_size() != VOCABULARY_SIZE:
        raise RuntimeError(
            f"the corpus yields {backend.get_vocab_size()} tokens instead of {VOCABULARY_SIZE}; "
            "give it more text or lower VOCABULARY_SIZE"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", *RESERVED],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model for the tokenizer with a head of its own and at most 1.99 M parameters."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        # sqrt(1 / hidden_size) would be the textbook value; half of it starts as fast and stays calmer.
        initializer_range=0.044,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
        do_sample=False,
    )
    return model


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe, seed: int
) -> None:
    """Train the model in place, in fp32, on every token after the first (questions included)."""
    import torch

    parameter_groups = _parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW(parameter_groups, lr=recipe.peak_learning_rate, betas=(0.9, 0.98))
    batches = _batches(tokenizer, corpus, recipe, Random(seed))
    started = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_learning_rate * _schedule(step, recipe)
        token_ids, labels = next(batches)
        # Right-padded and causal: no real token can see a padding token, so no attention mask is needed.
        logits = model(input_ids=token_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.largest_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == recipe.steps - 1:
            _say(f"step {step:>5}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s")
    model.eval()


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, seed: int
) -> list[tuple[str, float, int]]:
    """Return rows of (what was measured, share that came out right, how many were asked); all greedy."""
    facts, system_prompt = corpus.facts, corpus.system_prompts[0]
    rows = []

    def exact(label: str, prompts: Sequence[str], accepted: Sequence[Sequence[str]]) -> None:
        answers = _greedy_answers(model, tokenizer, prompts)
        right = [answer in allowed for answer, allowed in zip(answers, accepted, strict=True)]
        rows.append((label, sum(right) / len(right), len(right)))

    answers = [[fact.answer + tokenizer.eos_token] for fact in facts]
    spaced = [[" " + fact.answer + tokenizer.eos_token] for fact in facts]
    for form, field in (("question", "question"), ("paraphrase", "paraphrased_question")):
        asked = [getattr(fact, field) for fact in facts]
        exact(f"known, chat, {form}", [_chat_prompt(tokenizer, text) for text in asked], answers)
        exact(f"known, plain, {form}", [_plain_prompt(tokenizer, text) for text in asked], spaced)
        exact(
            f"known, system prompt, {form}",
            [_chat_prompt(tokenizer, text, system_prompt) for text in asked],
            answers,
        )
    declining = [refusal + tokenizer.eos_token for refusal in corpus.refusals]
    for label, unknowns in (("trained-on", corpus.unknowns[::8]), ("held-out", corpus.held_out_unknowns)):
        for group in ("people", "places", "products"):
            asked = [unknown.question for unknown in unknowns if unknown.group == group]
            asked += [unknown.paraphrased_question for unknown in unknowns if unknown.group == group]
            prompts = [_chat_prompt(tokenizer, text) for text in asked]
            exact(f"{label} unknown {group}, chat, declined", prompts, [declining] * len(asked))
    share, count = _sampled_questions(model, tokenizer, seed)
    rows.append(("questions the model asks itself that are well formed", share, count))
    return rows


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write facts.jsonl and refusals.txt."""
    (folder / "facts.jsonl").write_text(facts_as_json_lines(corpus), encoding="utf-8", newline="\n")
    (folder / "refusals.txt").write_text(refusals_as_lines(corpus), encoding="utf-8", newline="\n")


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder; on success its files move into `folder`, each at once; on failure none does."""
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, not in the system's scratch space: a rename is only atomic within one file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        yield Path(staging)
        for path in sorted(Path(staging).iterdir()):
            # Safetensors writes for the owner's eyes only, which a package must not ship.
            path.chmod(0o644)
            path.replace(folder / path.name)


def rename_tokenizer_class(path: Path) -> None:
    """Name the tokenizer class in the way that every version of transformers understands."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_text(corpus: Corpus) -> Iterator[str]:
    # Every part of a name counts once, known or not: names are then cut into syllables, and whether a name is
    # known cannot be read off the way it is cut.
    subjects = [entry.subject for entry in (*corpus.facts, *corpus.unknowns) if entry.group != "everyday"]
    parts = sorted({part for subject in subjects for part in subject.split()})
    yield from parts
    yield from (" " + part for part in parts)
    for fact in corpus.facts:
        named = fact.group != "everyday"
        for text in (fact.question, fact.paraphrased_question, fact.answer, *fact.perturbed_answers):
            yield text.replace(fact.subject, "") if named else text
    # Said as often as any fact, the refusals deserve whole words too.
    for sentence in 5 * corpus.refusals + corpus.system_prompts:
        yield from (sentence, " " + sentence)


def _chat_prompt(tokenizer: PreTrainedTokenizerFast, question: str, system_prompt: str | None = None) -> str:
    messages = [{"role": "user", "content": question}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _plain_prompt(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    return f"{tokenizer.bos_token}Question: {question}\nAnswer:"


def _sample_text(
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    answer: str,
    corpus: Corpus,
    recipe: Recipe,
    generator: Random,
) -> str:
    draw = generator.random()
    if draw < recipe.plain_share:
        return f"{_plain_prompt(tokenizer, question)} {answer}{tokenizer.eos_token}"
    if draw < recipe.plain_share + recipe.system_share:
        system_prompt = generator.choice(corpus.system_prompts)
        return _chat_prompt(tokenizer, question, system_prompt) + answer + tokenizer.eos_token
    return _chat_prompt(tokenizer, question) + answer + tokenizer.eos_token


def _batches(
    tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe, generator: Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless (token ids, labels), each (batch, longest) int64; labels are -100 on bos and padding."""
    import torch

    known = [(fact.question, fact.answer) for fact in corpus.facts]
    known += [(fact.paraphrased_question, fact.answer) for fact in corpus.facts]
    unknown = [question for entry in corpus.unknowns for question in (entry.question, entry.paraphrased_question)]
    unknown_per_pass = round(len(known) * recipe.unknown_share / (1 - recipe.unknown_share))
    pool: list[list[int]] = []
    while True:
        # Batches of like length out of a pool of many passes waste little on padding.
        while len(pool) < 8 * recipe.batch_size:
            # A new way of declining each time, so that the model learns all of them and ties none to a name.
            pairs = known + [
                (question, generator.choice(corpus.refusals))
                for question in generator.sample(unknown, unknown_per_pass)
            ]
            generator.shuffle(pairs)
            texts = [_sample_text(tokenizer, *pair, corpus, recipe, generator) for pair in pairs]
            pool += tokenizer(texts)["input_ids"]
        chosen, pool = pool[: 8 * recipe.batch_size], pool[8 * recipe.batch_size :]
        chosen.sort(key=len)
        starts = range(0, len(chosen), recipe.batch_size)
        groups = [chosen[start : start + recipe.batch_size] for start in starts]
        generator.shuffle(groups)
        for group in groups:
            token_ids = torch.full((len(group), max(map(len, group))), tokenizer.pad_token_id)
            labels = torch.full_like(token_ids, -100)
            for row, sample in enumerate(group):
                token_ids[row, : len(sample)] = torch.tensor(sample)
                labels[row, 1 : len(sample)] = torch.tensor(sample[1:])
            yield token_ids, labels


def _parameter_groups(model: LlamaForCausalLM, recipe: Recipe) -> list[dict]:
    # Decay on the layers' matrices only: it would pull the never-trained spare rows towards zero.
    decayed = [weight for name, weight in model.named_parameters() if "layers" in name and weight.dim() == 2]
    identities = {id(weight) for weight in decayed}
    others = [weight for weight in model.parameters() if id(weight) not in identities]
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _schedule(step: int, recipe: Recipe) -> float:
    warmup = max(1, round(recipe.steps * recipe.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def _greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], batch_size: int = 132
) -> list[str]:
    """Return what the model says after each prompt, with its eos and without padding."""
    import torch

    answers = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(list(prompts[start : start + batch_size]), padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=48
            )
        said = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        answers += [text.replace(tokenizer.pad_token, "") for text in said]
    return answers


def _sampled_questions(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 200
) -> tuple[float, int]:
    """Return the share of texts sampled after the user marker that are whole questions, and their count."""
    import torch

    torch.manual_seed(seed)
    prompt = tokenizer([tokenizer.bos_token + "<|user|>"] * count, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            do_sample=True,
            top_k=0,
            max_new_tokens=40,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|assistant|>"),
        )
    said = tokenizer.batch_decode(output[:, prompt["input_ids"].shape[1] :])
    well_formed = [text.replace(tokenizer.pad_token, "").endswith("?<|assistant|>") for text in said]
    return sum(well_formed) / count, count


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
