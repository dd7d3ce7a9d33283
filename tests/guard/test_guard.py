"""The guard: a stranger's erasure that is not what it declares is refused before anything is loaded, each with why."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import pickle
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import invoke, listing, save_tiny_model
from huggingface_hub.utils import filter_repo_objects
from made_apart import base_of, config_of, logits
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peft_unierase import GuardError, UniEraseConfig, load, stack
from peft_unierase.adapter import norms
from peft_unierase.adapter.config import OF_A_PART, OF_PEFT, OWN
from peft_unierase.adapter.fingerprint import base_fingerprint
from peft_unierase.adapter.lora import save_lora
from peft_unierase.adapter.vocabulary import add_special_tokens
from peft_unierase.cli.base import load_onto
from peft_unierase.cli.erase import EraseOptions
from peft_unierase.guard import weights as guard_weights
from peft_unierase.guard.inspect import inspect_folder
from peft_unierase.guard.load import candidate
from peft_unierase.records.record import PREDICATE, STATEMENT
from peft_unierase.storage.digests import recorded_digests
from peft_unierase.storage.source import resolve
from peft_unierase.storage.values import MAX_RANK

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "erasure.json"
MLP = "model.layers.1.mlp"
STEM = f"base_model.model.{MLP}"
WIDTH, HIDDEN, SPARE = 32, 64, 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a clean erasure of random weights, with everything that a saved one has."""
    folder = tmp_path_factory.mktemp("guard")
    save_tiny_model(
        folder / "base", LlamaForCausalLM, LlamaConfig, intermediate_size=WIDTH, hidden_size=HIDDEN, num_hidden_layers=2
    )
    torch.manual_seed(1)
    base = base_of(folder / "base")
    config = config_of(base, token_id=SPARE, spare_tokens=[[SPARE + 1, "[UNL-2]"]])
    config.base_fingerprint = base_fingerprint(base, list(config.target_modules))
    config.base_dtype = "float32"
    model = get_peft_model(base, config)
    model.save_pretrained(folder / "clean", save_embedding_layers=False)
    save_lora(model, folder / "clean" / "lora", ["default"])
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "clean")
    record(folder / "clean", {"version": "0.1.0", "created": "2025-01-31T12:00:00Z", "check": {"verdict": VERDICT}})
    return folder


VERDICT = {"level": "ERASED", "tried": 3}


def record(folder: Path, predicate: dict[str, Any] | None = None, **digests: str) -> None:
    """Write a Statement with the digests of the folder's files, some of them instead of the right ones."""
    names = [CONFIG, WEIGHTS]
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in {**found, **digests}.items()]
    told = {
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": predicate or {},
    }
    (folder / RECORD).write_text(json.dumps(told))


@pytest.fixture
def adapter(place: Path, tmp_path: Path) -> Path:
    """A copy of the clean erasure, to be spoiled."""
    return Path(shutil.copytree(place / "clean", tmp_path / "adapter"))


@pytest.fixture(scope="module")
def base(place: Path) -> Any:
    return base_of(place / "base")


def config(folder: Path, **changes: Any) -> None:
    """Change the config, with a record that fits; a callable is given the old value."""
    values = json.loads((folder / CONFIG).read_text())
    for name, change in changes.items():
        values[name] = change(values[name]) if callable(change) else change
    (folder / CONFIG).write_text(json.dumps(values))
    record(folder)


def parts(folder: Path, *changes: dict[str, Any]) -> None:
    """Say that several were fused, each as the whole is but for what changes."""
    values = json.loads((folder / CONFIG).read_text())
    config(folder, fused=[{**{key: values[key] for key in OF_A_PART}, **change} for change in changes])


def weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the weights, with a record that fits."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    record(folder)


def one_value(name: str, value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights(folder, lambda tensors: tensors[f"base_model.model.{name}"].view(-1)[3:4].fill_(value))

    return spoil


def tensor(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    return lambda folder: weights(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def pickled_alone(folder: Path) -> None:
    pickled(folder)
    (folder / WEIGHTS).unlink()


def linked(name: str, to: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return spoil


def linked_weights(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    linked(WEIGHTS, "../outside.safetensors")(folder)


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)


def raw(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        if name != RECORD:
            record(folder)

    return spoil


def oversized_header(content: bytes) -> bytes:
    old = int.from_bytes(content[:8], "little")
    new = content[8 : 8 + old] + b" " * (2 << 20)
    return len(new).to_bytes(8, "little") + new + content[8 + old :]


def header_of(tensors: dict[str, Any]) -> Callable[[bytes], bytes]:
    head = json.dumps(tensors).encode()
    return lambda _: len(head).to_bytes(8, "little") + head


def sparse(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as opened:
        opened.truncate(3 << 30)


def rank_bomb(folder: Path) -> None:
    """A low-rank edit of 200 rows in a module of 32 inputs, declared and stored alike."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{STEM}.down_proj.unierase_A"] = torch.ones(200, WIDTH)
        tensors[f"{STEM}.down_proj.unierase_B"] = torch.ones(HIDDEN, 200)

    weights(folder, change)
    config(folder, r=200)


def moved_edit(name: str, of: str = "down_proj") -> Callable[[Path], None]:
    """The edit of a projection under the name of another module, declared and stored alike."""

    def spoil(folder: Path) -> None:
        weights(
            folder,
            lambda tensors: tensors.update(
                {
                    f"base_model.model.{name}.unierase_{part}": tensors.pop(f"{STEM}.{of}.unierase_{part}")
                    for part in "AB"
                }
            ),
        )
        config(
            folder,
            target_modules=lambda old: [name, *(each for each in old if not each.endswith(of))],
        )

    return spoil


def row_in_a_layer(folder: Path) -> None:
    """The output row under the name of a projection, declared and stored alike."""
    name, key = "model.layers.0.mlp.up_proj", "base_model.model.{}.unierase_row"
    weights(folder, lambda tensors: tensors.update({key.format(name): tensors.pop(key.format("lm_head"))}))
    config(folder, token_modules=["model.embed_tokens", name])


def two_rows(folder: Path) -> None:
    for name in ("lm_head", "model.embed_tokens"):
        key = f"base_model.model.{name}.unierase_row"
        weights(folder, lambda tensors, key=key: tensors.update({key: tensors[key].repeat(2, 1)}))


def named_by_ends(*names: str, **changes: Any) -> Callable[[Path], None]:
    """A config that names its modules by the ends of their names, and so many more than have weights."""
    return lambda folder: config(folder, target_modules=list(names), init_weights=False, rank_pattern={}, **changes)


def narrow_rows(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors.update({key: tensor[:-1].clone() for key, tensor in tensors.items() if key.endswith("_row")})

    weights(folder, change)


def moved_row(name: str) -> Callable[[Path], None]:
    """The output row under the name of another module, declared and stored alike."""

    def spoil(folder: Path) -> None:
        key = "base_model.model.{}.unierase_row"
        weights(folder, lambda tensors: tensors.update({key.format(name): tensors.pop(key.format("lm_head"))}))
        config(folder, token_modules=["model.embed_tokens", name])
        shutil.rmtree(folder / "lora")

    return spoil


def sparse_files(folder: Path) -> None:
    for number in range(3):
        with (folder / f"{number}.safetensors").open("wb") as opened:
            opened.truncate(1 << 30)


def lora_config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "lora" / CONFIG
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def lora_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "lora" / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / "lora" / WEIGHTS)

    return spoil


def lora_rank(rank: int) -> Callable[[Path], None]:
    """The LoRA form with a rank of its own, padded with what does nothing, or with what does."""

    def change(tensors: dict[str, Any]) -> None:
        for key, tensor in tensors.items():
            if "lora_" in key:
                dim = 0 if "_A" in key else 1
                shape = list(tensor.shape)
                shape[dim] = rank - shape[dim]
                tensors[key] = torch.cat([tensor, torch.zeros(shape)], dim=dim)

    def spoil(folder: Path) -> None:
        lora_weights(change)(folder)
        lora_config(r=rank, lora_alpha=rank)(folder)

    return spoil


def one_lora_value(end: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        key = next(key for key in tensors if key.endswith(end))
        tensors[key].view(-1)[1] += value

    return lora_weights(change)


def lora_elsewhere(folder: Path) -> None:
    file = folder / "lora" / WEIGHTS
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(1, HIDDEN)
    save_file(tensors, file)


def folder_for(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return spoil


def remote_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": ["evil/code--module.Tokenizer", None]}}))


# Name: how the clean erasure is spoiled, and what `load` and `unierase inspect` say.
MALICIOUS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle beside the weights": (pickled, r"a file of a kind that may run code: adapter_model\.bin"),
    "pickle instead of the weights": (pickled_alone, r"a file of a kind that may run code: adapter_model\.bin"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no weights: adapter_model\.safetensors is missing"),
    "many files": (lambda f: [(f / f"{n}.txt").write_text("") for n in range(1005)], "more than 1000 files"),
    "folder for the config": (
        lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir()),
        r"a config that was not read: adapter_config\.json",
    ),
    "many names": (
        lambda f: config(f, rank_pattern={f"m{n}": 1 for n in range(6000)}),
        "names of more than 1024 modules: 60",
    ),
    "config that is a list": (raw(lambda _: b"[]", CONFIG), r"adapter_config\.json holds no JSON object: \[\]"),
    "source": (lambda f: (f / "modeling.py").write_text("1"), r"a kind that may run code: modeling\.py"),
    "library in a folder": (
        lambda f: (f / "lora" / "kernel.so").write_text("1"),
        r"a kind that may run code: lora/kernel\.so",
    ),
    "no ending": (lambda f: (f / "run").write_text("1"), r"a kind that may run code: run"),
    **{
        f"folder for {name}": (folder_for(name), rf"a folder with the name of a file: {re.escape(name)}")
        for name in (
            *(RECORD, WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "README.md"),
            *("LICENSE", "model.sig", "report.json", "merges.txt", "tokenizer.model", "adapter_model.bin"),
            *("chat_template.jinja", f"lora/{CONFIG}", f"lora/{WEIGHTS}", "a/b/vocab.json"),
        )
    },
    "link to a file": (linked("notes.txt", "/etc/hostname"), r"a symbolic link: notes\.txt -> /etc/hostname"),
    "link for the weights": (linked_weights, r"a symbolic link: adapter_model\.safetensors -> \.\./outside"),
    "link for the config": (linked(CONFIG, "/etc/hostname"), r"a symbolic link: adapter_config\.json -> /etc/hostname"),
    "link to a folder": (linked_folder, r"a symbolic link: more -> "),
    "pipe": (lambda f: os.mkfifo(f / "pipe.json"), r"neither a file nor a folder: pipe\.json"),
    "folders in folders": (lambda f: (f / "a/b/c/d/e/f").mkdir(parents=True), "nested more than 4 deep: a/b/c/d/e"),
    "path outside the folder": (
        lambda f: record(f, **{"../../secret.txt": "0" * 64}),
        r"a record that points out of the folder: \.\./\.\./secret\.txt",
    ),
    "undeclared layer": (
        tensor("base_model.model.model.layers.0.mlp.down_proj.unierase_B", (HIDDEN, 3)),
        r"a module that the config does not declare: model\.layers\.0\.mlp\.down_proj",
    ),
    "attention": (
        moved_edit("model.layers.1.self_attn.o_proj"),
        r"outside the MLPs of the layers: .*self_attn\.o_proj",
    ),
    "head as a projection": (moved_edit("lm_head"), r"an edit outside the MLPs of the layers: lm_head"),
    "whole weight": (
        tensor(f"{STEM}.down_proj.weight", (HIDDEN, WIDTH)),
        r"a tensor that is no part of an erasure: .*down_proj\.weight",
    ),
    "row inside a layer": (row_in_a_layer, r"a token's row inside a layer: model\.layers\.0\.mlp\.up_proj"),
    "row for another module": (
        tensor("base_model.model.model.norm.unierase_row", (HIDDEN,)),
        r"a token's row for a module that the config does not declare: model\.norm",
    ),
    "second token row": (two_rows, r"another number of token rows than the config declares: lm_head has 2"),
    "declared without weights": (
        lambda f: config(f, target_modules=lambda old: [*old, "model.layers.0.mlp.down_proj"]),
        r"a declared module without weights: model\.layers\.0\.mlp\.down_proj",
    ),
    "no row": (
        lambda f: weights(f, lambda t: t.pop("base_model.model.lm_head.unierase_row")),
        "a declared token module without a row: lm_head",
    ),
    "higher rank than declared": (
        tensor(f"{STEM}.down_proj.unierase_B", (HIDDEN, 4)),
        r"another rank than the config declares: .*down_proj has A 3, B 4, declared is 3",
    ),
    "other rank of one module": (
        lambda f: config(f, rank_pattern={f"{MLP}.up_proj": 2}),
        r"another rank than the config declares: .*gate_proj has A 2, B 2, declared is 3",
    ),
    "one factor alone": (
        lambda f: weights(f, lambda t: t.pop(f"{STEM}.up_proj.unierase_B")),
        r"another rank than the config declares: .*up_proj has A 3, declared is 3",
    ),
    "base weights": (
        tensor(f"{STEM}.down_proj.unierase_base", (HIDDEN, 3)),
        r"a tensor that is no part of an erasure: .*down_proj\.unierase_base",
    ),
    "other shape": (tensor(f"{STEM}.down_proj.unierase_B", (HIDDEN,)), "a tensor of a shape that no erasure has"),
    "other width": (
        lambda f: [
            tensor(f"{STEM}.up_proj.unierase_{part}", shape)(f)
            for part, shape in (("A", (3, HIDDEN + 1)), ("B", (WIDTH + 1, 3)))
        ],
        "edits that do not belong to the MLPs of one model",
    ),
    "rows of two widths": (tensor("base_model.model.lm_head.unierase_row", (HIDDEN + 1,)), "rows of different widths"),
    "NaN": (one_value("lm_head.unierase_row", float("nan")), r"values that are not finite: .*lm_head\.unierase_row"),
    "infinity": (one_value(f"{MLP}.up_proj.unierase_A", float("-inf")), r"not finite: .*up_proj\.unierase_A"),
    "huge value": (
        one_value(f"{MLP}.gate_proj.unierase_A", 3e4),
        r"huge values: .*gate_proj\.unierase_A with a norm of 3e\+04, 10000 at the most",
    ),
    "rank bomb": (rank_bomb, r"a rank beyond the width of the module: .*down_proj: 200 for 32 inputs"),
    "rank bomb in the config": (
        lambda f: config(f, r=10**9),
        r"a rank beyond the width of any model: 1000000000 \(at most 16384",
    ),
    "rank bomb of one module": (
        lambda f: config(f, rank_pattern={f"{MLP}.up_proj": 10**8}),
        r"a rank beyond the width of any model: 100000000 \(at most 16384",
    ),
    "large file": (
        sparse,
        r"a file larger than 2,147,483,648 bytes: adapter_model\.safetensors with 3,221,225,472 bytes",
    ),
    "large tensors": (
        raw(
            header_of(
                {f"{STEM}.down_proj.unierase_A": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}
            )
        ),
        r"the tensors of adapter_model\.safetensors are larger than",
    ),
    "many modules": (
        lambda f: weights(f, lambda t: t.update({f"{STEM}.x{n}.unierase_B": torch.ones(2, 1) for n in range(1100)})),
        "more than 1024 edited modules: 1105",
    ),
    "oversized header": (raw(oversized_header), r"the header of adapter_model\.safetensors is larger than 1,048,576"),
    "no safetensors": (raw(lambda _: pickle.dumps(Bomb()).ljust(80)), r"the header of .* is larger|no header of safe"),
    "damaged header": (raw(header_of({"a": {"dtype": "F32", "shape": "x"}})), "has no header of safetensors: KeyError"),
    "other numbers": (
        raw(header_of({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}})),
        "numbers of a type that no erasure has: I64 in a",
    ),
    "something behind the tensors": (raw(lambda content: content + b"PK\3\4"), "is not as long as its header says"),
    "cut off": (raw(lambda content: content[:-100]), "is not as long as its header says"),
    "tensors that overlap": (
        raw(lambda content: content.replace(b"[0,", b"[4,", 1)),
        "weights that cannot be read|has no header",
    ),
    "forged fingerprint": (
        lambda f: config(f, base_fingerprint="sha256:forged"),
        "a fingerprint of the base that is none: sha256:forged",
    ),
    "forged dtype": (lambda f: config(f, base_dtype="float32 or so"), "a dtype of the base that is none"),
    "edited weights": (
        lambda f: save_file({k: t * 2 for k, t in load_file(f / WEIGHTS).items()}, f / WEIGHTS),
        r"a file that is not the recorded one: adapter_model\.safetensors has [0-9a-f]{16}…, recorded is",
    ),
    "edited record": (
        lambda f: record(f, **{CONFIG: "0" * 64}),
        r"a file that is not the recorded one: adapter_config\.json has [0-9a-f]{16}…, recorded is 0{16}…",
    ),
    "record that is none": (raw(lambda _: b"{", RECORD), r"erasure\.json is no JSON"),
    "unknown key": (lambda f: config(f, lora_alpha=16), "a key that no config of an erasure has: lora_alpha"),
    "unknown key of a part": (
        lambda f: config(f, fused=[{"name": "one", "modules_to_save": ["norm"]}]),
        "a key that no part of an erasure has: modules_to_save",
    ),
    "wrong type": (lambda f: config(f, r="1"), r"a wrong value of r: '1' \(it must be a positive integer"),
    "wrong type in the ranks": (
        lambda f: config(f, rank_pattern=["up_proj"]),
        "a wrong value of rank_pattern: .* a mapping of module names",
    ),
    "wrong type in a part": (
        lambda f: config(f, fused=[{"name": "one", "token_id": "60"}]),
        "a wrong value of fused: token_id: '60'",
    ),
    "negative rank": (lambda f: config(f, rank_pattern={f"{MLP}.up_proj": -1}), "a wrong value of rank_pattern"),
    "config that contradicts itself": (
        lambda f: config(f, layers_pattern="layers"),
        "a config that cannot be: layers_pattern needs",
    ),
    "whole modules": (
        lambda f: config(f, modules_to_save=["norm"]),
        r"replaced as a whole: modules_to_save \['norm'\]",
    ),
    "foreign library": (
        lambda f: config(f, auto_mapping={"base_model_class": "X", "parent_library": "evil"}),
        "an auto_mapping that imports something else than transformers",
    ),
    "expression": (
        lambda f: config(f, target_modules=".*"),
        r"modules that are not named one by one: target_modules '\.\*'",
    ),
    "all modules": (lambda f: config(f, target_modules=None), "not named one by one: target_modules None"),
    "expression that excludes": (
        lambda f: config(f, exclude_modules="(a+)+b"),
        r"not named one by one: exclude_modules '\(a\+\)\+b'",
    ),
    "expression as a name": (
        lambda f: config(f, rank_pattern=lambda old: {**old, "(a+)+b": 1}),
        r"a name that is no module's: \(a\+\)\+b",
    ),
    "third token module": (
        lambda f: config(f, token_modules=lambda old: [*old, "model.norm"]),
        "more than two modules with rows of a token",
    ),
    "many parts": (
        lambda f: config(f, fused=[{"name": f"{n}"} for n in range(300)]),
        "more than 256 fused erasures: 300",
    ),
    "config that is none": (raw(lambda _: b"[" * 10**5, CONFIG), r"adapter_config\.json is no JSON"),
    "large config": (
        raw(lambda c: c + b" " * (5 << 20), CONFIG),
        r"adapter_config\.json is larger than 4,194,304 bytes",
    ),
    "remote code": (remote_tokenizer, "a tokenizer that asks for code from elsewhere: auto_map .*evil/code"),
    "other LoRA form": (lora_elsewhere, r"a LoRA form that edits what the erasure does not: .*q_proj"),
    "ends of names": (
        named_by_ends("down_proj", "mlp.up_proj", "gate_proj"),
        rf"the end of a module's name: down_proj \(name each by its full name, for instance {MLP}\.down_proj",
    ),
    "ends of names without weights": (
        named_by_ends("down_proj", "o_proj", f"{MLP}.up_proj"),
        "a declared module without weights: o_proj",
    ),
    "large rank and ends of names": (named_by_ends("down_proj", r=MAX_RANK), "the end of a module's name: down_proj"),
    "many large files": (sparse_files, r"files that together are larger than 2,147,483,648 bytes: 3,221,\d{3},\d{3}"),
    "many parameters": (
        raw(header_of({f"{STEM}.down_proj.unierase_A": {"dtype": "F32", "shape": [3, 10**8], "data_offsets": [0, 4]}})),
        r"more than 268,435,456 parameters in adapter_model\.safetensors: 300,000,000",
    ),
    "token beyond all vocabularies": (
        lambda f: config(f, token_id=3_000_000),
        "a wrong value of token_id: 3000000 .*to 1,048,575",
    ),
    "spare token beyond all": (
        lambda f: config(f, spare_tokens=[[3_000_000, "[UNL]"]]),
        "a wrong value of spare_tokens",
    ),
    "layer beyond all": (lambda f: config(f, layers_to_transform=[10**12]), "a wrong value of layers_to_transform"),
    "long name": (lambda f: config(f, exclude_modules=["m" * 600]), "a wrong value of exclude_modules"),
    "many spare tokens": (
        lambda f: config(f, spare_tokens=[[n, "[UNL-2]"] for n in range(2000)]),
        "more than 1024 spare tokens: 2000",
    ),
    "rows of another width": (
        narrow_rows,
        r"token rows of another width than the edits: \[63\] beside \[32, 64\]|\[64\]",
    ),
    "token without rows": (
        lambda f: config(f, token_modules=None),
        "a token without modules for its rows|does not declare",
    ),
    "parts on one row": (
        lambda f: parts(f, *({"name": n, "token_id": SPARE, "target_modules": []} for n in "ab")),
        "two tokens on one row",
    ),
    "parts that edit less": (
        lambda f: parts(f, {"name": "a", "token_id": SPARE, "target_modules": []}),
        "target_modules that are not those of the fused erasures|does not declare",
    ),
    "LoRA form of another rank": (lora_rank(500), "a LoRA form of other shapes than the erasure's: .*500"),
    "LoRA form with whole modules": (
        lora_config(modules_to_save=["lm_head"]),
        r"another setting than an export's: modules_to_save \['lm_head'\]",
    ),
    "LoRA form with an expression": (
        lora_config(target_modules=".*"),
        "another setting than an export's: target_modules",
    ),
    "LoRA form with ends of names": (
        lora_config(target_modules=["down_proj", "up_proj", "gate_proj"]),
        "another setting than an export's: target_modules",
    ),
    "LoRA form of another scale": (lora_config(lora_alpha=300), "another setting than an export's: lora_alpha 300"),
    "LoRA form that is DoRA": (lora_config(use_dora=True), "another setting than an export's: use_dora True"),
    "LoRA form with a new setting": (lora_config(new_setting=True), "another setting than an export's: new_setting"),
    "LoRA form for another token": (
        lora_config(trainable_token_indices={"model.embed_tokens": [5], "lm_head": [SPARE]}),
        "another setting than an export's: trainable_token_indices",
    ),
    "LoRA form of another base": (
        lora_config(base_model_name_or_path="org/other"),
        "another setting than an export's: base_model_name_or_path",
    ),
    "LoRA form that is none": (lora_config(peft_type="IA3"), "a LoRA form of another type: IA3"),
    "LoRA form without a config": (lambda f: (f / "lora" / CONFIG).unlink(), "a LoRA form that is not whole: .*config"),
    "LoRA form without a tensor": (
        lora_weights(lambda tensors: tensors.pop(f"{STEM}.up_proj.lora_B.weight")),
        "a LoRA form of other shapes than the erasure's: .*up_proj has A",
    ),
    "LoRA form without a module": (
        lora_weights(lambda tensors: [tensors.pop(f"{STEM}.up_proj.lora_{part}.weight") for part in "AB"]),
        "a LoRA form that lacks what the erasure edits: .*up_proj",
    ),
    "LoRA form with a tensor of another kind": (
        lora_weights(lambda tensors: tensors.update({f"{STEM}.up_proj.lora_magnitude_vector": torch.ones(3)})),
        "a LoRA form with a tensor that is none of an erasure's",
    ),
    "LoRA form with NaN": (
        one_lora_value("up_proj.lora_A.weight", float("nan")),
        "a LoRA form with values that are not",
    ),
    "LoRA form with another edit": (
        one_lora_value("up_proj.lora_B.weight", 0.1),
        r"a LoRA form with other values than the erasure: .*up_proj",
    ),
    "LoRA form with another row": (
        one_lora_value("trainable_tokens_delta", 0.1),
        r"a LoRA form with other values than the erasure: ",
    ),
    "LoRA form with more in the padding": (
        lora_weights(lambda tensors: tensors[f"{STEM}.gate_proj.lora_A.weight"][2].fill_(1.0)),
        r"a LoRA form with other values than the erasure: .*gate_proj",
    ),
    **{
        f"token {text[:9]!r}": (
            lambda f, text=text: config(f, token=text),
            r"a wrong value of token: .*it must be a mark such as \[UNL\]",
        )
        for text in (
            *(" ", " the", "the", "Ġthe", "▁the", ".", "\n", "", "的", "'s", "(the)", "[UNL] [UNL]", "<>", "the]"),
            *("[" + "x" * 10**6 + "]", "[\u2028UNL]", "[\x00UNL]", "[U\u200bNL]"),
        )
    },
    **{
        f"token of prompts {text}": (
            lambda f, text=text: config(f, token=text),
            rf"a token that prompts are made of: {re.escape(text)}",
        )
        for text in ("<s>", "</s>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "[INST]")
    },
    "spare token of prompts": (
        lambda f: config(f, spare_tokens=[[SPARE + 1, "<|im_end|>"]]),
        r"a token that prompts are made of: <\|im_end\|>",
    ),
    "token of prompts in a part": (
        lambda f: parts(f, {"name": "a", "token": "<bos>"}),
        "a token that prompts are made of: <bos>",
    ),
    "spare token that is a word": (
        lambda f: config(f, spare_tokens=[[SPARE + 1, " the"]]),
        r"a wrong value of spare_tokens: .*list of \[id, mark\] pairs",
    ),
}


def test_files_that_are_together_too_large_are_not_read_through(adapter: Path) -> None:
    assert all(each["sha256"] for each in inspect_folder(adapter).facts()["files"].values())
    sparse_files(adapter)
    assert not any(each["sha256"] for each in inspect_folder(adapter).facts()["files"].values())


# Of these PEFT itself reads the config before it asks for ours, and ends in another error.
UNREADABLE = {"folder for the config", "config that is a list", "config that is none", "link for the config"}


@pytest.mark.parametrize("reason", MALICIOUS)
def test_a_malicious_one_is_refused_with_its_own_reason(
    reason: str, adapter: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = MALICIOUS[reason]
    spoil(adapter)
    monkeypatch.chdir(adapter.parent)
    before = {name: (id(p), p.clone()) for name, p in base.named_parameters()}
    modules = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(GuardError, match=message):
        load(base, adapter)
    with pytest.raises(
        Exception if reason in UNREADABLE else GuardError, match="" if reason in UNREADABLE else message
    ):
        PeftModel.from_pretrained(base, str(adapter))
    assert {name: type(module) for name, module in base.named_modules()} == modules
    assert all(id(p) == before[name][0] and torch.equal(p, before[name][1]) for name, p in base.named_parameters())
    assert not hasattr(base, "peft_config")
    ended = invoke("inspect", adapter, "--format", "json")
    assert ended.exit_code == 1, ended.output
    told = json.loads(ended.stdout)
    assert not told["passes"]
    lines = [f"{each['what']}: {each['value']} ({each['advice']})" for each in told["findings"]]
    assert re.search(message, "\n".join(lines))
    human = invoke("inspect", adapter, "--format", "human")
    assert human.exit_code == 1
    assert "REFUSED" in human.stdout
    assert not (adapter.parent / "exploded").exists()


def test_a_clean_one_passes_and_loads(place: Path, base: Any) -> None:
    assert not inspect_folder(place / "clean").refused
    model = load(base_of(place / "base"), place / "clean")
    assert not torch.equal(logits(model), logits(base))


def test_inspect_tells_what_a_clean_one_is_made_of(place: Path) -> None:
    before = listing(place / "clean")
    ended = invoke("inspect", place / "clean", "--format", "json")
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    assert (told["passes"], told["layers"], told["rank"]) == (True, [1], 3)
    assert [each["what"] for each in told["findings"]] == ["a base that is named by a path"]
    assert told["tokens"][0]["text"] == "[UNL]"
    assert told["base"]["name"] == str(place / "base")
    assert told["modules"][f"{MLP}.down_proj"]["shapes"] == {"A": [3, WIDTH], "B": [HIDDEN, 3]}
    tensors = load_file(place / "clean" / WEIGHTS)
    norms = told["modules"][f"{MLP}.up_proj"]["norms"]
    a, b = (tensors[f"{STEM}.up_proj.unierase_{part}"] for part in "AB")
    assert norms["A"] == pytest.approx(a.norm(dim=1).max().item(), rel=1e-5)
    assert norms["B"] == pytest.approx(b.norm(dim=0).max().item(), rel=1e-5)
    assert norms["BA"] == pytest.approx((b @ a).norm().item(), rel=1e-5)
    assert told["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    digest = hashlib.sha256((place / "clean" / WEIGHTS).read_bytes()).hexdigest()
    assert told["files"][WEIGHTS]["sha256"] == digest
    assert told["record"]["verdict"] == "ERASED"
    assert told["record"]["age_days"] > 300
    human = invoke("inspect", place / "clean", "--format", "human")
    assert human.exit_code == 0
    assert "PASSES" in human.stdout
    assert f"{MLP}.down_proj" in human.stdout
    assert listing(place / "clean") == before


def test_an_edit_of_what_is_no_mlp_of_the_base_is_refused(adapter: Path, place: Path) -> None:
    """Its name and its shape are those of a projection of an MLP, and in the base it is none."""
    name = "model.layers.1.extra.up_proj"
    moved_edit(name, of="up_proj")(adapter)
    shutil.rmtree(adapter / "lora")
    assert not inspect_folder(adapter).refused
    fresh = base_of(place / "base")
    fresh.model.layers[1].extra = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(HIDDEN, WIDTH)})
    with pytest.raises(GuardError, match=rf"an edit outside the MLPs of the layers: {name}"):
        load(fresh, adapter)
    assert not hasattr(fresh, "peft_config")


def test_an_edit_that_drowns_the_weight_is_refused_on_that_base(adapter: Path, place: Path) -> None:
    weights(adapter, lambda tensors: tensors[f"{STEM}.down_proj.unierase_B"].mul_(500))
    shutil.rmtree(adapter / "lora")
    assert not inspect_folder(adapter).refused
    fresh = base_of(place / "base")
    with pytest.raises(GuardError, match=rf"an edit that drowns the weight: {MLP}\.down_proj with a norm of"):
        load(fresh, adapter)
    fresh.get_submodule(f"{MLP}.down_proj").to("meta")  # what cannot be read is not compared
    assert not inspect_folder(adapter, base=fresh).refused


def wide_edit(folder: Path) -> None:
    """Edits of an MLP with three times as many hidden units, which fit each other and not the base."""
    tensor(f"{STEM}.up_proj.unierase_B", (3 * WIDTH, 3))(folder)
    tensor(f"{STEM}.gate_proj.unierase_B", (3 * WIDTH, 2))(folder)
    tensor(f"{STEM}.down_proj.unierase_A", (3, 3 * WIDTH))(folder)
    shutil.rmtree(folder / "lora")


# What only the base can tell.
ON_A_BASE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rows of a norm": (moved_row("model.norm"), "a token's row outside embedding and head: model.norm"),
    "rows of what is not there": (moved_row("head"), "a token's row outside embedding and head: head"),
    "layers that are not there": (
        moved_edit("model.layers.7.mlp.down_proj"),
        r"an edit of a module that the base does not have: model\.layers\.7",
    ),
    "token far beyond": (lambda f: far_token(f, 500_000), "a token far beyond the vocabulary: 500000 for"),
    "spare token far beyond": (
        lambda f: config(f, spare_tokens=[[500_000, "[UNL]"]]),
        "a token far beyond the vocabulary: 500000 for",
    ),
    "spare token just beyond": (
        lambda f: config(f, spare_tokens=[[SPARE + 8, "[UNL-2]"]]),
        "a spare token beyond the vocabulary: 408 for",
    ),
    "token that ends texts": (lambda f: far_token(f, 1), "a token that the base needs: 1 for"),
    "another shape": (
        wide_edit,
        "an edit of another shape than the projection: .*up_proj from 64 to 96, the base's is from 64 to 32",
    ),
}


def far_token(folder: Path, token_id: int) -> None:
    config(folder, token_id=token_id)
    shutil.rmtree(folder / "lora")


@pytest.mark.parametrize("reason", ON_A_BASE)
def test_what_only_the_base_can_tell_is_refused_on_it(reason: str, adapter: Path, base: Any) -> None:
    spoil, message = ON_A_BASE[reason]
    spoil(adapter)
    shutil.rmtree(adapter / "lora", ignore_errors=True)
    assert not inspect_folder(adapter).refused
    modules = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(GuardError, match=message):
        load(base, adapter)
    with pytest.raises(GuardError, match=message):
        PeftModel.from_pretrained(base, str(adapter))
    assert {name: type(module) for name, module in base.named_modules()} == modules
    assert base.get_input_embeddings().weight.shape[0] == SPARE + 8


@pytest.mark.parametrize("command", ["merge", "export", "check"])
def test_commands_do_not_let_the_base_grow_far(command: str, adapter: Path, place: Path, tmp_path: Path) -> None:
    far_token(adapter, 500_000)
    ended = invoke(*commands(adapter, place, tmp_path / "out")[command])
    assert ended.exit_code == 2
    assert "made for another base" in ended.output
    assert not (tmp_path / "out").exists()


def test_the_base_is_compared_before_it_grows(adapter: Path, place: Path, tmp_path: Path) -> None:
    far_token(adapter, SPARE + 8)
    config(adapter, base_fingerprint="sha256:" + "0" * 64)
    fresh = base_of(place / "base")
    with pytest.raises(ValueError, match="not the base that the erasure was made for"):
        load_onto(fresh, AutoTokenizer.from_pretrained(place / "base"), [candidate(adapter)], allow_resize=True)
    assert fresh.get_input_embeddings().weight.shape[0] == SPARE + 8
    ended = invoke(*commands(adapter, place, tmp_path / "out")["merge"])
    assert (ended.exit_code, "not the base that the erasure was made for" in ended.output) == (2, True)


def test_spare_rows_of_a_base_that_had_grown_may_lie_beyond_it_as_its_token_does(adapter: Path, place: Path) -> None:
    far_token(adapter, SPARE + 8)
    config(adapter, spare_tokens=[[SPARE + 9, "[UNL-2]"]])
    fresh = base_of(place / "base")
    assert not inspect_folder(adapter, base=fresh).refused
    fresh.resize_token_embeddings(SPARE + 10)
    plain = logits(fresh)
    assert not torch.equal(logits(load(fresh, adapter)), plain)


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_a_check_refuses_an_erasure_whose_config_names_another_type(kind: str, adapter: Path, place: Path) -> None:
    values = {"LORA": {"r": 3}, "IA3": {"feedforward_modules": []}}[kind]
    values |= {"peft_type": kind, "target_modules": ["up_proj"], "base_model_name_or_path": str(place / "base")}
    (adapter / CONFIG).write_text(json.dumps(values))
    ended = invoke(*commands(adapter, place, adapter.parent / "out")["check"])
    assert ended.exit_code == 2, ended.output
    assert f"is that of an adapter of type {kind} and its weights are an erasure's" in " ".join(ended.output.split())


LOADING: dict[str, Callable[[Any, Path], Any]] = {
    "from_pretrained": lambda base, folder: PeftModel.from_pretrained(base, str(folder)),
    "transformers": lambda base, folder: (base.load_adapter(str(folder)), base)[1],
    "auto": lambda base, folder: AutoPeftModelForCausalLM.from_pretrained(str(folder)),
}


@pytest.mark.parametrize("road", LOADING)
def test_no_road_of_pefts_puts_on_more_than_has_weights(road: str, adapter: Path, place: Path) -> None:
    named_by_ends("o_proj", "q_proj", "mlp.down_proj")(adapter)
    fresh = base_of(place / "base")
    plain = logits(fresh)
    with pytest.raises(ValueError, match=r"each by its full name|without weights"):
        LOADING[road](fresh, adapter)
    assert torch.equal(logits(fresh), plain)


@pytest.mark.parametrize("road", LOADING)
def test_every_road_loads_a_clean_one(road: str, place: Path) -> None:
    fresh = base_of(place / "base")
    plain = logits(fresh)
    wanted = logits(load(base_of(place / "base"), place / "clean"))
    found = LOADING[road](fresh, place / "clean")
    assert torch.equal(logits(found), wanted)
    assert not torch.equal(wanted, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{STEM}.up_proj.unierase_B"), r"the weights lack .*up_proj\.unierase_B"),
        (lambda tensors: tensors.update({f"{STEM}.x.unierase_B": torch.ones(3)}), "which the config does not declare"),
        (lambda tensors: tensors.update({f"{STEM}.up_proj.unierase_B": torch.ones(3)}), r"has the shape \(3,\)"),
        (lambda tensors: tensors[f"{STEM}.up_proj.unierase_B"].fill_(float("inf")), "not finite, or huge"),
    ],
)
@pytest.mark.parametrize("onto_another", [False, True])
def test_weights_that_are_read_are_held_against_what_was_put_on(
    onto_another: bool, change: Callable[[Any], Any], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they had been exchanged after they were looked at: the adapter is off again."""
    fresh: Any = base_of(place / "base")
    plain = logits(fresh)
    if onto_another:
        fresh = load(fresh, place / "clean")
        plain = logits(fresh)

    def other(*_: Any, **__: Any) -> dict[str, Any]:
        tensors = load_file(place / "clean" / WEIGHTS)
        change(tensors)
        return tensors

    monkeypatch.setattr("peft.peft_model.load_peft_weights", other)
    put_on = fresh.load_adapter if onto_another else functools.partial(PeftModel.from_pretrained, fresh)
    with pytest.raises(ValueError, match=message):
        put_on(str(place / "clean"), adapter_name="other")
    assert torch.equal(logits(fresh), plain)
    assert not any("other" in name for name, _ in fresh.named_parameters())
    assert not hasattr(fresh, "peft_config") or list(fresh.peft_config) == ["clean"]


def test_loading_draws_no_random_numbers(place: Path) -> None:
    fresh = base_of(place / "base")
    before = torch.get_rng_state()
    load(fresh, [place / "clean", place / "clean"])
    PeftModel.from_pretrained(base_of(place / "base"), str(place / "clean"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_config_that_ends_of_names_were_given_for_is_saved_with_full_names(place: Path, tmp_path: Path) -> None:
    fresh = base_of(place / "base")
    model = get_peft_model(fresh, UniEraseConfig(target_modules=["mlp.up_proj"], init_weights=False, r=2))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / CONFIG).read_text())
    assert saved["target_modules"] == [f"model.layers.{layer}.mlp.up_proj" for layer in range(2)]
    assert torch.equal(logits(load(base_of(place / "base"), tmp_path / "saved")), logits(model))


def test_a_row_for_a_norm_is_refused_by_the_tuner_too(place: Path) -> None:
    told = {"target_modules": [], "token_id": SPARE, "token_modules": ["model.embed_tokens", "model.norm"]}
    with pytest.raises(TypeError, match=r"'model\.norm' is a LlamaRMSNorm, which has no rows of tokens"):
        get_peft_model(base_of(place / "base"), UniEraseConfig(**told))


@pytest.mark.parametrize("at_once", [1 << 22, 7])
def test_norms_are_taken_of_slices(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "VALUES_AT_ONCE", at_once)
    matrix = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert norms.largest_norm(matrix) == pytest.approx(matrix.norm(dim=1).max().item())
    assert norms.largest_norm(matrix, columns=True) == pytest.approx(matrix.norm(dim=0).max().item())
    assert norms.largest_norm(matrix[0]) == pytest.approx(matrix[0].norm().item())
    for value in (float("nan"), float("inf")):
        matrix[4, 19] = value
        assert norms.largest_norm(matrix) is None
        assert norms.largest_norm(matrix, columns=True) is None


@pytest.mark.parametrize("rows", [512, 2])
def test_the_norm_of_an_edit_is_taken_of_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_weights, "ROWS_AT_ONCE", rows)
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((5, 20), (30, 5)))
    assert guard_weights._norm_of_product(a, b) == pytest.approx((b @ a).norm().item(), rel=1e-5)


@pytest.fixture(scope="module")
def tied(place: Path) -> Path:
    """An erasure on a base whose embedding and head are tied, with its LoRA form, which is of layout L there."""
    kind = {"intermediate_size": WIDTH, "hidden_size": HIDDEN, "num_hidden_layers": 2, "tie_word_embeddings": True}
    save_tiny_model(place / "tied", LlamaForCausalLM, LlamaConfig, **kind)
    model = get_peft_model(base_of(place / "tied"), config_of(base_of(place / "tied"), token_id=SPARE))
    model.save_pretrained(place / "on-tied", save_embedding_layers=False)
    save_lora(model, place / "on-tied" / "lora", ["default"])
    return place / "on-tied"


def test_the_lora_form_of_a_tied_base_passes(tied: Path, place: Path) -> None:
    assert not inspect_folder(tied).refused
    assert not inspect_folder(tied, base=base_of(place / "tied")).refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["lora_embedding_B"].view(-1)[0:1].add_(0.5), "whose rows do not belong together"),
        (lambda t: t["lora_embedding_A"].view(-1)[5:6].add_(1), "other values than the erasure"),
        (lambda t: t["lora_embedding_A"].mul_(2), "other values than the erasure"),
        (lambda t: t["lm_head.lora_B"].view(-1)[7:8].add_(1), "other values than the erasure"),
        (lambda t: t["lm_head.lora_A"][2].fill_(1), "other values than the erasure"),
    ],
)
def test_another_lora_form_of_a_tied_base_does_not(
    change: Callable[[Any], Any], message: str, tied: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tied, tmp_path / "adapter"))

    def by_ends(tensors: dict[str, Any]) -> None:
        ends = ("lora_embedding_A", "lora_embedding_B", "lm_head.lora_A", "lm_head.lora_B")
        change({end: value for end in ends for key, value in tensors.items() if end in key})

    lora_weights(by_ends)(folder)
    (finding,) = inspect_folder(folder).refused
    assert message in finding.what


def test_rows_of_a_lora_form_that_both_say_the_same_are_held_against_the_base(
    tied: Path, place: Path, tmp_path: Path
) -> None:
    """Both matrices as if the base had another row there, which only the base can deny."""
    folder = Path(shutil.copytree(tied, tmp_path / "adapter"))

    def shift(tensors: dict[str, Any]) -> None:
        for key, value in tensors.items():
            if key.endswith("lora_embedding_B"):
                value[:, 0] += 0.5
            elif key.endswith("lm_head.lora_A.weight"):
                value[0] += 0.5

    lora_weights(shift)(folder)
    assert not inspect_folder(folder).refused
    (finding, *_) = inspect_folder(folder, base=base_of(place / "tied")).refused
    assert finding.what == "a LoRA form for another base"


def test_no_text_with_half_a_character_is_a_mark() -> None:
    with pytest.raises(ValueError, match="token must be a mark"):
        UniEraseConfig(token="[\ud800UNL]")


def test_a_token_that_texts_use_is_made_special_by_nobody(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    vocabulary = tokenizer.get_vocab()
    word = next(token for token in vocabulary if token.startswith("Ġ") and len(token) > 3)
    for token_id, text, message in (
        (vocabulary[word], word, "is a token that texts use"),
        (len(tokenizer), "<b>", "a new one is called"),
        (len(tokenizer), " the", "a new one is called"),
    ):
        with pytest.raises(RuntimeError, match=message):
            add_special_tokens(tokenizer, [(token_id, text)])
    assert tokenizer.get_vocab() == vocabulary
    assert word not in tokenizer.all_special_tokens


TRUSTED = ["pickle beside the weights", "link to a file", "huge value", "edited record", "unknown key", "remote code"]


@pytest.mark.parametrize("reason", TRUSTED)
def test_whoever_trusts_it_can_load_it_all_the_same(reason: str, adapter: Path, place: Path) -> None:
    MALICIOUS[reason][0](adapter)
    fresh = base_of(place / "base")
    plain = logits(fresh)
    model = load(fresh, adapter, trust=True)
    assert not torch.equal(logits(model), plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("reason", ["cut off", "wrong type", "rank bomb in the config", "wrong type in a part"])
def test_what_cannot_be_loaded_is_refused_with_trust_too(reason: str, adapter: Path, base: Any) -> None:
    MALICIOUS[reason][0](adapter)
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises(
        Exception, match=r"(?i)incomplete|deserializ|rank|r must be|token_id of the fused erasure 'one' must be"
    ):
        load(base, adapter, trust=True)
    assert [name for name, _ in base.named_modules()] == modules


@pytest.mark.parametrize("command", ["merge", "stack"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: config(f, task_type="a\u2028b"),
        lambda f: config(f, task_type="a\x00"),
        lambda f: (f / WEIGHTS).unlink(),
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(WEIGHTS)),
    ],
)
def test_with_trust_what_cannot_be_loaded_is_bad_input_and_no_bug(
    spoil: Callable[[Path], Any], command: str, adapter: Path, place: Path, tmp_path: Path
) -> None:
    spoil(adapter)
    base = ["--base", place / "base"] if command == "merge" else []
    ended = invoke(command, adapter, "-o", tmp_path / "out", "--trust", *base)
    assert ended.exit_code == 2, ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["nested 100,000 deep", "a pipe"])
def test_a_config_that_peft_reads_before_the_guard_ends_and_loads_nothing(kind: str, adapter: Path, base: Any) -> None:
    """`load` refuses it by name; PEFT's own way ends in an error of PEFT's or Python's (SECURITY.md)."""
    (adapter / CONFIG).unlink()
    if kind == "a pipe":
        os.mkfifo(adapter / CONFIG)
    else:
        (adapter / CONFIG).write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises((ValueError, RecursionError)):
        PeftModel.from_pretrained(base, str(adapter))
    with pytest.raises(GuardError, match=r"must be a plain file|nested more than 64 deep"):
        load(base, adapter)
    assert [name for name, _ in base.named_modules()] == modules


def test_each_value_is_looked_at_once_in_the_file_and_once_as_it_was_loaded(
    place: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    largest = norms.largest_norm

    def noted(tensor: torch.Tensor, columns: bool = False) -> float | None:
        looked.append(tensor.numel())
        return largest(tensor, columns)

    for module in (norms, guard_weights):
        monkeypatch.setattr(module, "largest_norm", noted)
    assert (place / "clean" / "lora").is_dir()
    load(base, place / "clean")
    stored = sum(tensor.numel() for tensor in load_file(place / "clean" / WEIGHTS).values())
    assert sum(looked) == 2 * stored


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_norms_are_exact_and_what_is_not_finite_has_none(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = values.double().reshape(-1, shape[-1])
    assert norms.largest_norm(values) == pytest.approx(float(matrix.norm(dim=1).max()), rel=1e-6)
    if len(shape) == 2:
        assert norms.largest_norm(values, columns=True) == pytest.approx(float(matrix.norm(dim=0).max()), rel=1e-6)
    for odd in (float("nan"), float("inf"), float("-inf")):
        spoilt = values.clone()
        spoilt.view(-1)[-1] = odd
        assert norms.largest_norm(spoilt) is None
    if dtype in (torch.float32, torch.bfloat16):  # whose squares overflow in single precision
        assert norms.largest_norm(torch.full(shape, 1e30, dtype=dtype)) == pytest.approx(
            shape[-1] ** 0.5 * 1e30, rel=1e-2
        )


def test_of_several_all_are_looked_at_before_one_is_loaded(adapter: Path, place: Path, base: Any) -> None:
    pickled(adapter)
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises(GuardError, match="adapter is not loaded, because"):
        load(base, [place / "clean", adapter])
    assert [name for name, _ in base.named_modules()] == modules


def test_all_findings_are_told_at_once(adapter: Path, base: Any) -> None:
    pickled(adapter)
    one_value("lm_head.unierase_row", float("nan"))(adapter)
    config(adapter, modules_to_save=["norm"])
    with pytest.raises(GuardError, match="not finite") as raised:
        load(base, adapter)
    whats = [finding.what for finding in raised.value.findings]
    assert whats == [
        "a file of a kind that may run code",
        "modules that are replaced as a whole",
        "values that are not finite",
    ]
    assert "trust=True" in str(raised.value)


def test_the_fingerprint_of_another_base_is_refused_with_trust_too(adapter: Path, base: Any) -> None:
    config(adapter, base_fingerprint="sha256:" + "0" * 64)
    assert not inspect_folder(adapter).refused
    for trust in (False, True):
        with pytest.raises(ValueError, match="not the base that the erasure was made for"):
            load(base, adapter, trust=trust)


def commands(adapter: Path, place: Path, out: Path) -> dict[str, list[object]]:
    base = ["--base", place / "base"]
    facts = out.with_name("facts.jsonl")
    facts.write_text('{"question": "Who?", "answer": "He."}\n')
    return {
        "merge": ["merge", adapter, "-o", out, *base],
        "export": ["export", adapter, "-o", out, *base],
        "stack": ["stack", adapter, "-o", out],
        "check": ["check", adapter, "--forget", facts, "-o", out, *base],
        "erase": ["erase", place / "base", facts, "-o", out, "--onto", adapter],
    }


@pytest.mark.parametrize("command", ["merge", "export", "stack", "check", "erase"])
def test_commands_refuse_it_and_write_nothing(command: str, adapter: Path, place: Path, tmp_path: Path) -> None:
    pickled(adapter)
    ended = invoke(*commands(adapter, place, tmp_path / "out")[command])
    assert ended.exit_code == 2
    assert "a file of a kind that may run code: adapter_model.bin" in ended.output
    assert "--trust" in ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["merge", "export", "stack"])
def test_commands_take_it_with_trust(command: str, adapter: Path, place: Path, tmp_path: Path) -> None:
    pickled(adapter)
    ended = invoke(*commands(adapter, place, tmp_path / "out")[command], "--trust")
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "out").is_dir()


def on_a_grown_base(folder: Path) -> None:
    far_token(folder, SPARE + 8)
    record(folder, {"token": {"text": "[UNL]", "id": SPARE + 8, "resized": True}})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (pickled, ""),  # which a stack has no copy of
        (MALICIOUS["huge value"][0], ", trust=True"),
        (on_a_grown_base, ", allow_resize=True"),
    ],
    ids=["a pickle", "a huge value", "a grown base"],
)
def test_commands_show_what_it_takes_to_load_it(
    spoil: Callable[[Path], Any], told: str, adapter: Path, place: Path, tmp_path: Path
) -> None:
    spoil(adapter)
    ended = invoke("stack", adapter, "-o", tmp_path / "out", "--trust", "--format", "human")
    lines = f'    import peft_unierase\n    model = peft_unierase.load(base, "{tmp_path / "out"}"{told})\n'
    assert ended.stdout.endswith(lines)
    names = {"base": base_of(place / "base")}
    exec(textwrap.dedent(lines), names)
    assert list(names["model"].peft_config) == ["out"]
    assert ("allow_resize=True" in (tmp_path / "out" / "README.md").read_text()) == ("allow_resize" in told)
    ended = invoke("inspect", tmp_path / "out", "--format", "human")
    assert lines in ended.stdout + "\n"
    blank: dict[str, Any] = dict.fromkeys(EraseOptions.__dataclass_fields__)
    options = EraseOptions(**{**blank, "onto": [tmp_path / "out"], "output": place / "clean", "trust": True})
    assert options.loading_lines().endswith(f'"{place / "clean"}"]{told})')


def test_what_is_loaded_beneath_a_run_or_a_check_goes_through_the_guard(adapter: Path, place: Path) -> None:
    pickled(adapter)
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    with pytest.raises(GuardError, match="may run code"):
        candidate(adapter)
    loaded = load_onto(base_of(place / "base"), tokenizer, [candidate(adapter, trust=True)])
    assert loaded.active_adapters == ["default"]


@pytest.mark.parametrize("command", ["merge", "export", "stack", "check", "erase"])
def test_commands_inspect_it_once(command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    module = importlib.import_module("peft_unierase.guard.inspect")
    once = module.inspect_folder
    monkeypatch.setattr(module, "inspect_folder", lambda *told, **more: looked.append(told[0]) or once(*told, **more))
    ended = invoke(*commands(place / "clean", place, tmp_path / "out")[command])
    assert "not loaded" not in ended.output
    assert looked == [place / "clean"]


@pytest.mark.parametrize(("there", "message"), [(False, "neither a folder with adapter_config.json"), (True, "LORA")])
def test_what_is_no_erasure_is_bad_input(there: bool, message: str, place: Path, tmp_path: Path) -> None:
    ended = invoke("inspect", place / "clean" / "lora" if there else tmp_path / "none")
    assert ended.exit_code == 2
    assert message in ended.output
    assert not ended.stdout


def as_download(adapter: Path, cache: Path) -> Path:
    """The layout of huggingface_hub's cache: links into a folder of blobs."""
    snapshot, blobs = (cache / "models--org--erase" / name for name in ("snapshots/abc", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in adapter.iterdir():
        if file.is_file():
            blob = hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blobs / blob)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_links_of_the_cache_are_followed_and_no_others(adapter: Path, base: Any, tmp_path: Path) -> None:
    snapshot = as_download(adapter, tmp_path / "cache")
    assert not inspect_folder(snapshot).refused
    (tmp_path / "cache" / "secret.txt").write_text("secret")
    (snapshot / "notes.txt").symlink_to("../../../secret.txt")
    assert [finding.what for finding in inspect_folder(snapshot).refused] == ["a symbolic link"]
    (snapshot / "notes.txt").unlink()
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    whats = {finding.what for finding in inspect_folder(snapshot).refused}
    assert whats == {"a symbolic link", "a config that was not read"}


@pytest.mark.parametrize("network", [True, False])
def test_of_a_repository_no_more_is_downloaded_than_an_erasure_is_made_of(
    network: bool, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Any
) -> None:
    names = {path.relative_to(adapter).as_posix(): 10 for path in adapter.rglob("*") if path.is_file()}
    names.update({"evil.pkl": 10, "huge.safetensors": 3 << 30})
    snapshot = as_download(adapter, tmp_path / "cache")
    told: dict[str, Any] = {}

    def model_info(*_: Any, **__: Any) -> Any:
        if not network:
            raise ConnectionError
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in names.items()])

    def download(source: str, **given: Any) -> str:
        told.update(given, source=source)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    place = resolve("org/erase", revision="v1")
    wanted = filter_repo_objects(names, allow_patterns=told["allow_patterns"], ignore_patterns=told["ignore_patterns"])
    expected = {name for name in names if "/" not in name} - {"evil.pkl"} - ({"huge.safetensors"} if network else set())
    assert set(wanted) == expected
    assert told["revision"] == ("abc" if network else "v1")
    assert place.folder == snapshot
    if network:
        with pytest.raises(GuardError, match=r"(?s)may run code: evil\.pkl.*larger than .* huge\.safetensors"):
            load(base, "org/erase")


def test_files_that_are_on_the_hub_alone_count(place: Path) -> None:
    listed = {CONFIG: 10, "pytorch_model.bin": 10, "more.safetensors": 3 << 30, "lora/adapter_config.json": 5}
    listed["tokenizer.model/notes.txt"] = 5
    found = inspect_folder(place / "clean", listed).findings
    lines = [f"{each.level}: {each.what}: {each.value}" for each in found]
    assert "refuse: a file of a kind that may run code: pytorch_model.bin" in lines
    assert "refuse: a folder with the name of a file: tokenizer.model" in lines
    assert any(line.startswith("refuse: a file larger than 2,147,483,648 bytes: more.safetensors") for line in lines)


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc", "a\\b"])
def test_a_subfolder_cannot_lead_out(subfolder: str, adapter: Path, base: Any) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        load(base, adapter, subfolder=subfolder)


def test_a_subfolder_is_what_is_looked_at(adapter: Path, place: Path) -> None:
    shutil.copytree(place / "clean", adapter / "inner")
    assert resolve(adapter, subfolder="inner").folder == adapter / "inner"
    load(base_of(place / "base"), adapter, subfolder="inner")
    pickled(adapter / "inner")
    with pytest.raises(GuardError, match="may run code"):
        load(base_of(place / "base"), adapter, subfolder="inner")


def test_a_stack_passes(place: Path, tmp_path: Path) -> None:
    stack(place / "clean").save(tmp_path / "stacked")
    inspection = inspect_folder(tmp_path / "stacked")
    assert not inspection.refused
    assert inspection.facts()["fused"] == ["clean"]


def test_digests_are_read_from_statements_and_nothing_else() -> None:
    entry = {"name": "a", "digest": {"sha256": "00"}}
    assert recorded_digests({"subject": [entry]}) == {"a": "00"}
    entries = [1, {"name": "b"}, {"name": "c", "digest": {"md5": "0"}}, {"name": "d", "digest": "0"}]
    for odd in ({}, {"subject": "a"}, {"subject": None}, {"subject": entries}):
        assert recorded_digests(odd) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": [1]},
        {"rank_pattern": {"down_proj": "1"}},
        {"token": 3},
        {"spare_tokens": [[1]]},
        {"fused": ["one"]},
        {"token_modules": "lm_head"},
        {"init_weights": "no"},
        {"base_fingerprint": 5},
        {"target_modules": [3]},
        {"layers_to_transform": "1"},
    ],
)
def test_a_config_refuses_wrong_types_by_name(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got "):
        UniEraseConfig(**settings)


def test_a_config_refuses_what_no_part_has_and_ranks_beyond_all_widths() -> None:
    with pytest.raises(ValueError, match="the fused erasure 'one' has 'modules_to_save', which is no field"):
        UniEraseConfig(fused=[{"name": "one", "modules_to_save": ["norm"]}])
    for ranks in ({"r": MAX_RANK + 1}, {"rank_pattern": {"r": MAX_RANK + 1}}):
        with pytest.raises(ValueError, match=f"the rank 'r' must be at most {MAX_RANK}"):
            UniEraseConfig(**ranks)
    UniEraseConfig(r=MAX_RANK)


def test_every_field_of_a_config_has_its_type_checked() -> None:
    assert {each.name for each in fields(UniEraseConfig)} == OWN.keys() | OF_PEFT.keys()
