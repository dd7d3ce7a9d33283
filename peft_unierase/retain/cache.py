"""Questions and answers from the model itself, kept in a file that erasures of the same base can share.

They are sampled in blocks of `BLOCK` questions, each with a seed of its own, so that whoever asks for more gets the
same facts as before and further ones behind them, with a file or without. Those that touch a forget set are still among
them.

A file is JSON lines: a header, then one fact a line. Its name follows from what it was made with, the base's digest
among it; a digest in the header tells whether it was edited or cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.facts import Fact
from ..errors import InputError
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..storage.names import home
from ..storage.plain import parse_json, read_text
from .sample_files import write_lines
from .samples import SAMPLE_STEPS, sample_facts

KIND = "unierase retain samples"
VERSION = 2  # of the file and of the way in which its facts are sampled
BLOCK = 128
ENOUGH = 0.75  # share of what is wanted for which no further block is sampled
WORD = 8  # bytes


def samples_folder(model: nn.Module, cache: str | Path | bool) -> Path | None:
    """The folder that keeps samples: the given one, this user's for `True`, none for `False` or an offloaded base."""
    if not cache or any(parameter.is_meta for parameter in model.parameters()):
        return None
    return home() / "samples" if cache is True else Path(cache)


def samples_for(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    count: int,
    seed: int,
    folder: Path | None = None,
    advance: Callable[[int], object] = lambda count: None,
    warn: Callable[[str], object] = warnings.warn,
    processes: Processes = ALONE,
) -> list[Fact]:
    """The first `count` facts that the base asks itself; those for a smaller count are their beginning.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to ask and to answer in.
        count: Facts wanted. A few less may come back, and many less from a base that repeats itself.
        seed: Seed of the sampling; the global generator is left alone.
        folder: Keeps a file for each base, prompt format and seed. The file gives facts as far as it goes, and every
            further block is added to it as soon as it is there.
        advance: Called with the steps done, `SAMPLE_STEPS * BLOCK` a block in all.
        warn: Called with what is wrong with the file, if something is; the samples are then made anew.
        processes: Share the work. The main one alone reads and writes the file.

    Raises:
        ValueError: The base cannot be told from others because part of its weights is offloaded.
    """
    folder = folder if processes.main else None
    header: dict[str, Any] = {}
    cache: Path | None = None

    def kept() -> list[list[Fact]]:
        nonlocal header, cache
        if folder:
            header = samples_header(model, tokenizer, form, seed)
            cache = folder / f"{_digest(header, ())[7:23]}.jsonl"
        if cache and os.path.lexists(cache):
            try:
                return load_samples(cache, header)
            except (ValueError, OSError) as error:
                warn(f"{error}; the base is asked anew")
        return []

    blocks = processes.from_main(kept)
    facts: list[Fact] = []
    whole = -(-count // BLOCK)
    for number in range(2 * whole):
        if len(facts) >= count or (number >= whole and len(facts) >= ENOUGH * count):
            break
        if number < len(blocks):
            advance(SAMPLE_STEPS * BLOCK)
        else:
            known = {fact.question for fact in facts}
            block_seed = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
            told: dict[str, Any] = {"known": known, "advance": advance, "processes": processes}
            blocks.append(sample_facts(model, tokenizer, form, BLOCK, block_seed, **told))
            try:
                if cache:
                    save_samples(cache, header, blocks)
            except (OSError, InputError) as error:  # another process may be writing it
                warn(f"what the base asks itself is not kept for further erasures: {error}")
                cache = None
        facts += blocks[number]
    return facts[:count]


def samples_header(model: nn.Module, tokenizer: Any, form: PromptFormat, seed: int) -> dict[str, Any]:
    """What a file of samples must say about where they come from.

    Raises:
        ValueError: Part of the weights is offloaded.
    """
    base = base_digest(model, tokenizer)
    return {"kind": KIND, "version": VERSION, "base": base, "prompt": form.prompt("…"), "seed": seed}


def base_digest(model: nn.Module, tokenizer: Any) -> str:
    """SHA-256 over all weights of a base and its vocabulary, with `sha256:` before it.

    Raises:
        ValueError: Part of the weights is offloaded.
    """
    base = hashlib.sha256(weights_digest(model).encode())
    # Without the added tokens, one of which may be the [UNL] of an erasure made before.
    vocabulary = set(tokenizer.get_vocab().items()) - set(tokenizer.get_added_vocab().items())
    base.update(json.dumps(sorted(vocabulary)).encode())
    return f"sha256:{base.hexdigest()}"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over name, shape, dtype and sum of each parameter, its memory being summed as 64-bit numbers that wrap.

    Of the base alone: the erasures that it carries make no difference.

    As fast as memory is read, and every changed weight changes it; only words that change places go unseen.

    Raises:
        ValueError: Part of the weights is offloaded.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if ".unierase_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if parameter.is_meta:
            raise InputError(
                f"the base cannot be told from others because {name} is offloaded; load it whole, or do without a "
                "cache of retain samples and without keeping finished stages"
            )
        for part in _plain_tensors(parameter.detach()):
            data = part.contiguous().flatten().view(torch.uint8)
            if data.storage_offset() % WORD:
                data = data.clone()
            whole = len(data) // WORD * WORD
            total = int(data[:whole].view(torch.int64).sum()), data[whole:].tolist()
            digest.update(f"{name} {tuple(part.shape)} {part.dtype} {total}\n".encode())
    return digest.hexdigest()


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor, or those that one of a quantising library is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor


def load_samples(path: Path, header: Mapping[str, Any]) -> list[list[Fact]]:
    """The blocks of a file that was made as `header` says.

    Raises:
        ValueError: It was edited or cut, or is no such file.
    """
    from ..storage.schema import KeptSample, KeptSamples
    from ..storage.values import checked, parsed

    try:
        first, *lines = read_text(path).split("\n")[:-1]
        found = parse_json(first)
        checked(KeptSamples, found, "the first line is none")
        sizes, told = found.pop("blocks"), found.pop("digest")
        if found != header or told != _digest({**header, "blocks": sizes}, lines):
            raise InputError("its digest is not that of its lines")
        rows = [parsed(KeptSample, line, "a line is no sample") for line in lines]
        if sum(sizes) != len(rows):
            raise InputError("it has another number of lines than it says")
        facts = [Fact(row.question, row.answer) for row in rows]
    except ValueError as error:
        raise InputError(f"the retain samples in {path} were edited or cut ({error})") from error
    ends = list(accumulate(sizes))
    return [facts[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def save_samples(path: Path, header: Mapping[str, Any], blocks: Sequence[Sequence[Fact]]) -> None:
    """Write a file that `load_samples` reads, whole or not at all."""
    facts = [fact for block in blocks for fact in block]
    lines = [json.dumps({"question": fact.question, "answer": fact.answer}) for fact in facts]
    whole = {**header, "blocks": [len(block) for block in blocks]}
    whole["digest"] = _digest(whole, lines)
    write_lines(path, [json.dumps(whole), *lines])


def _digest(header: Mapping[str, Any], lines: Sequence[str]) -> str:
    """SHA-256 over all of a file but the digest itself."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    return "sha256:" + hashlib.sha256("\n".join([json.dumps(rest, sort_keys=True), *lines]).encode()).hexdigest()
