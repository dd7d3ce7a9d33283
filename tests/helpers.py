"""What the tests of the command share: running it, tiny models with a tokenizer, and files of facts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers_of import NEVER_IN_UTF8, byte_of
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from peft_unierase.cli.app import app
from peft_unierase.demo import demo_facts

COMMAND = str(Path(sysconfig.get_path("scripts")) / "unierase")
# One thread, because it decides the order of sums; no network, so that a wrong name cannot wait for one.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SPARE_ROWS = 8


def run_command(*arguments: object, environment: Mapping[str, str] = ENVIRONMENT, **options: Any) -> Any:
    """Run the installed `unierase` in a process of its own; `stdout` and `stderr` of the result are text."""
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)


def invoke(*arguments: object) -> Result:
    """Run `unierase` in this process, which has loaded torch already."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@contextmanager
def changed_output(layer: nn.Module, bend: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the residual stream `(batch, length, d)` after a decoder layer by `bend(stream)`."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return (bend(output[0]), *output[1:]) if isinstance(output, tuple) else bend(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def without_colours(text: str) -> str:
    """What a terminal would show: in some places help and usage errors are coloured even in a pipe."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, `None` for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens, none of them free for an erasure, and without a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for fact in demo_facts() for text in (fact["question"], fact["answer"])]
    alphabet = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if byte_of(letter) not in NEVER_IN_UTF8]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def save_tiny_model(
    folder: Path, model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig], **changes: Any
) -> Path:
    """Save a model of random weights that has learnt nothing; `changes` are settings of its configuration.

    It has `SPARE_ROWS` more vocabulary rows than its tokenizer has tokens, and its context holds 96 of them.
    """
    tokenizer = train_tokenizer()
    settings = {
        "vocab_size": len(tokenizer) + SPARE_ROWS,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config_class(**{**settings, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
