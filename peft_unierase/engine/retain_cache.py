"""Questions and answers from the model itself, kept in a file that erasures of the same base can share.

They are sampled in blocks of `BLOCK` questions, each with a seed of its own, so that whoever asks for more gets the
same facts as before and further ones behind them, with a file or without. Those that touch a forget set are still among
them.

The file is JSON lines: a header, then one fact a line. The header's digest tells whether the file was edited or cut,
its fingerprint whether it is of another base.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..facts import Fact
from ..prompts import PromptFormat
from .samples import sample_facts

KIND = "unierase retain samples"
VERSION = 1  # of the file and of the way in which its facts are sampled
BLOCK = 128
WORD = 8  # bytes


def samples_for(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    count: int,
    seed: int,
    cache: Path | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Fact]:
    """The first `count` facts that the base asks itself; those for a smaller count are their beginning.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to ask and to answer in.
        count: Facts wanted. Fewer come back from a base that asks itself more useless questions than useful ones.
        seed: Seed of the sampling; the global generator is left alone.
        cache: A file to take facts from as far as it goes. Every further block is added to it as soon as it is there; a
            file that does not exist is made, one that is not needed any more is not touched.
        advance: Called with the number of questions finished, `2 * BLOCK` times a block in all (asked, answered).

    Raises:
        ValueError: `cache` does not fit (see `load_samples`), or the base cannot be told from others because part of
            its weights is offloaded. Nothing was sampled.
    """
    header = samples_header(model, tokenizer, form, seed) if cache else {}
    blocks = load_samples(cache, header) if cache and cache.exists() else []
    facts: list[Fact] = []
    for number in range(2 * -(-count // BLOCK)):
        if len(facts) >= count:
            break
        if number < len(blocks):
            advance(2 * BLOCK)
        else:
            known = {fact.question for fact in facts}
            block_seed = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
            blocks.append(sample_facts(model, tokenizer, form, BLOCK, block_seed, known=known, advance=advance))
            if cache:
                save_samples(cache, header, blocks)
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
            raise ValueError(
                f"the base cannot be told from others because {name} is offloaded; load it whole, or do without a "
                "cache of retain samples and without keeping finished stages"
            )
        data = parameter.detach().contiguous().flatten().view(torch.uint8)
        if data.storage_offset() % WORD:
            data = data.clone()
        whole = len(data) // WORD * WORD
        total = int(data[:whole].view(torch.int64).sum()), data[whole:].tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {total}\n".encode())
    return digest.hexdigest()


def load_samples(path: Path, header: Mapping[str, Any]) -> list[list[Fact]]:
    """The blocks of a file, if it was made as `header` says.

    Raises:
        ValueError: It is no such file, of another version, base, prompt format or seed, or it was edited or cut.
    """
    instead = "give another file, or remove this one to have it made anew"
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(first)
        kind, version = found["kind"], found["version"]
    except (ValueError, TypeError, KeyError):
        kind = version = None
    if kind != KIND:
        raise ValueError(f"{path} holds no retain samples; {instead}")
    if version != VERSION:
        raise ValueError(f"{path} is of version {version!r} and this one reads version {VERSION}; {instead}")
    if found.get("digest") != _digest(found, lines):
        raise ValueError(f"{path} was edited or cut: its digest is not that of its {len(lines)} lines; {instead}")
    if found["base"] != header["base"]:
        raise ValueError(f"{path} was sampled from another base, or from this one in another dtype; {instead}")
    for key in ("prompt", "seed"):
        if found[key] != header[key]:
            raise ValueError(f"{path} was sampled with {key} {found[key]!r} and not {header[key]!r}; {instead}")
    facts = [Fact(row["question"], row["answer"]) for row in map(json.loads, lines)]
    ends = [sum(found["blocks"][: number + 1]) for number in range(len(found["blocks"]))]
    return [facts[end - size : end] for end, size in zip(ends, found["blocks"], strict=True)]


def save_samples(path: Path, header: Mapping[str, Any], blocks: Sequence[Sequence[Fact]]) -> None:
    """Write a file that `load_samples` reads, whole or not at all."""
    facts = [fact for block in blocks for fact in block]
    lines = [json.dumps({"question": fact.question, "answer": fact.answer}) for fact in facts]
    whole = {**header, "blocks": [len(block) for block in blocks]}
    whole["digest"] = _digest(whole, lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(f"{line}\n" for line in [json.dumps(whole), *lines]), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _digest(header: Mapping[str, Any], lines: Sequence[str]) -> str:
    """SHA-256 over all of a file but the digest itself."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    return "sha256:" + hashlib.sha256("\n".join([json.dumps(rest, sort_keys=True), *lines]).encode()).hexdigest()
