"""Malicious adapters: how a clean one is spoiled. Those of the guard's tests, and families of the same kinds."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "erasure.json"
MLP = "model.layers.1.mlp"
STEM = f"base_model.model.{MLP}"
WIDTH, HIDDEN = 32, 64
ODD = {
    "half a character": "a\ud800",
    "U+2028": "a\u2028b",
    "U+0085": "a\u0085b",
    "NUL": "a\0b",
    "escape codes": "a\x1b[2J\x1b]0;b\x07",
}
DEEP = b"[" * 100_000
BROKEN = {
    "nested lists": DEEP,
    "nested objects": b'{"a":' * 100_000,
    "nested lists, closed": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "nothing": b"",
    "a list": b"[]",
    "a text": b'"a"',
    "null": b"null",
    "a number of 5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}
NO_FILES = ("pipe", "socket", "device", "folder", "endless link")
FILES = (
    *(CONFIG, WEIGHTS, RECORD, "README.md", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("lora/" + CONFIG, "lora/" + WEIGHTS, "model.sig", "report.json", "chat_template.jinja"),
)


@dataclass(frozen=True)
class Case:
    """One malicious adapter.

    Attributes:
        spoil: Turns a clean one into it.
        needs_base: Whether it takes the base to notice it, so that `inspect` and `stack` may let it pass.
        own_base: Whether commands load the base that it names.
        foreign: Whether its config is one of PEFT's own types, so that PEFT alone loads it and asks nobody.
        as_recorded: Whether its record stays as the clean one's; else the record is made to fit, as an attacker would.
    """

    spoil: Callable[[Path], Any]
    needs_base: bool = False
    own_base: bool = False
    foreign: bool = False
    as_recorded: bool = False


def all_cases() -> dict[str, Case]:
    """Every case by its name, in a fixed order."""
    return {**_of_the_tests(), **_hidden(), **_sizes(), **_places(), **_values(), **_lora(), **_bases()}


def settle(folder: Path) -> None:
    """Make the record fit the files, as an attacker would."""
    from peft_unierase.records.record import write_record

    told = json.loads((folder / RECORD).read_bytes())
    write_record(folder, told["predicate"])


def config(**changes: Any) -> Callable[[Path], None]:
    """Change the config; a callable is given the old value."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        for name, change in changes.items():
            values[name] = change(values.get(name)) if callable(change) else change
        (folder / CONFIG).write_text(json.dumps(values))

    return spoil


def weights(change: Callable[[dict[str, Any]], Any], name: str = WEIGHTS) -> Callable[[Path], None]:
    """Change the weights."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        change(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)

    return spoil


def both(*spoils: Callable[[Path], Any]) -> Callable[[Path], None]:
    """One after another."""

    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


def _of_the_tests() -> dict[str, Case]:
    from test_guard import MALICIOUS

    recorded = ("record", "edited", "path outside")
    return {
        f"test: {name}": Case(told[0], as_recorded=any(part in name for part in recorded))
        for name, told in MALICIOUS.items()
    }


def _hidden() -> dict[str, Case]:
    ends = {
        "o_proj": ["o_proj"],
        "q_proj and k_proj": ["q_proj", "k_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
        "down_proj": ["down_proj"],
        "lm_head": ["lm_head"],
        "proj": ["up_proj", "gate_proj", "down_proj", "o_proj"],
        "layers.0.mlp.up_proj": ["layers.0.mlp.up_proj"],
    }
    found = {}
    for random in (False, True):
        for name, names in ends.items():
            changed: dict[str, Any] = {"target_modules": lambda old, names=names: [*old, *names]}
            changed |= {"init_weights": False} if random else {}
            found[f"end of a name: {name}{', random' if random else ''}"] = Case(config(**changed))
    found["ends of names alone"] = Case(
        config(target_modules=["up_proj", "gate_proj", "down_proj"], init_weights=False)
    )
    found["ends of names with layers"] = Case(
        config(
            target_modules=["down_proj", "up_proj", "gate_proj"], layers_to_transform=[0, 1], layers_pattern="layers"
        )
    )
    found["ranks by the end of a name"] = Case(
        config(rank_pattern={"down_proj": 3, "o_proj": 7}, target_modules=["o_proj"])
    )
    found["no targets"] = Case(config(target_modules=[]))
    found["layers, all modules"] = Case(config(target_modules=None, layers_to_transform=[0, 1]))
    return found


def _sizes() -> dict[str, Case]:
    import torch

    def head(tensors: Mapping[str, Any], length: int) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            told = json.dumps(tensors).encode()
            with (folder / WEIGHTS).open("wb") as opened:
                opened.write(struct.pack("<Q", len(told)) + told)
                opened.truncate(8 + len(told) + length)

        return spoil

    def sparse(*names: str) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            for name in names:
                told = b'{"a":{"dtype":"F32","shape":[536870000],"data_offsets":[0,2147480000]}}'
                with (folder / name).open("wb") as opened:
                    opened.write(struct.pack("<Q", len(told)) + told)
                    opened.truncate(8 + len(told) + 2147480000)

        return spoil

    rows, columns = 1 << 14, WIDTH
    large = {
        f"{STEM}.down_proj.unierase_A": {
            "dtype": "F32",
            "shape": [rows * 1000, columns],
            "data_offsets": [0, rows * 4000 * columns],
        }
    }
    found = {
        "r 16384 and the end of a name": Case(config(r=16384, target_modules=lambda old: [*old, "o_proj"])),
        "r 16384": Case(config(r=16384)),
        "2 GiB of nothing": Case(head(large, rows * 4000 * columns), as_recorded=True),
        "2 GiB beside the weights": Case(sparse("more.safetensors"), as_recorded=True),
        "six times 2 GiB": Case(sparse(*(f"m{n}.safetensors" for n in range(6))), as_recorded=True),
        "2 GiB as the LoRA form": Case(sparse(f"lora/{WEIGHTS}"), as_recorded=True),
        "many spare tokens": Case(config(spare_tokens=[[n, f"<{n}>"] for n in range(200_000)])),
        "many ranks": Case(config(rank_pattern={f"model.layers.1.mlp.x{n}": 1 for n in range(100_000)})),
    }
    for number in (3_000_000, 2**31, 2**63, 2**64, 10**30, -1, 408, 1.5, True):
        found[f"token {number}"] = Case(config(token_id=number), needs_base=number in (3_000_000, 408))
        found[f"spare token {number}"] = Case(
            config(spare_tokens=[[number, "[X]"]]), needs_base=number in (3_000_000, 408)
        )
    for number in (2**31, 2**63, 10**30, 0, -1, 2.5):
        found[f"r {number}"] = Case(config(r=number))
        found[f"layer {number}"] = Case(config(layers_to_transform=[number], target_modules=None))
    row = "base_model.model.lm_head.unierase_row"
    for wide in (1, HIDDEN - 1, HIDDEN + 1, 100_000):
        found[f"head row of width {wide}"] = Case(weights(lambda t, wide=wide: t.update({row: torch.ones(wide)})))
        both_rows = {row.replace("lm_head", name): torch.ones(wide) for name in ("lm_head", "model.embed_tokens")}
        found[f"rows of width {wide}"] = Case(weights(lambda t, rows=both_rows: t.update(rows)))
    for name in (
        "model.norm",
        "model",
        "model.layers",
        "model.layers.0.input_layernorm",
        "nowhere",
        "model.rotary_emb",
    ):
        key = f"base_model.model.{name}.unierase_row"
        found[f"token's row in {name}"] = Case(
            both(
                config(token_modules=["model.embed_tokens", name]),
                weights(lambda t, key=key: t.update({key: t.pop(row)})),
            ),
            needs_base=True,
        )

    def widen(tensors: dict[str, Any]) -> None:
        key = f"{STEM}.up_proj.unierase_A"
        tensors[key] = torch.cat([tensors[key], tensors[key]], dim=1)

    found["other width of an edit"] = Case(weights(widen), needs_base=True)
    return found


def _places() -> dict[str, Case]:
    def no_file(name: str, kind: str) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            file = folder / name
            file.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(file)
            elif kind == "folder":
                file.mkdir()
            elif kind == "device":
                file.symlink_to("/dev/zero")
            elif kind == "endless link":
                file.symlink_to(file.name)
            else:
                here = Path.cwd()
                os.chdir(file.parent)
                with socket.socket(socket.AF_UNIX) as opened:
                    opened.bind(file.name)
                os.chdir(here)

        return spoil

    def content(name: str, value: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / name).write_bytes(value)

    found = {f"{kind} for {name}": Case(no_file(name, kind), as_recorded=True) for kind in NO_FILES for name in FILES}
    for name in (CONFIG, RECORD, "tokenizer_config.json"):
        for what, value in BROKEN.items():
            found[f"{name}: {what}"] = Case(content(name, value), as_recorded=True)
    for what, name in (
        ("no UTF-8", b"caf\xe9.txt"),
        ("U+2028", "a\u2028.txt".encode()),
        ("escape codes", b"a\x1b[2J.txt"),
        ("a line end", b"a\nb.txt"),
        ("code", b"run.py"),
        ("pickle", b"adapter_model.bin"),
        ("capitals", b"ADAPTER_MODEL.BIN"),
    ):
        found[f"name of a file: {what}"] = Case(lambda f, name=name: (f / os.fsdecode(name)).write_bytes(b"1"))
    return found


def _values() -> dict[str, Case]:
    found = {}
    for field in ("base_model_name_or_path", "revision", "token", "base_dtype", "target_modules", "task_type"):
        for odd, text in ODD.items():
            value = [text] if field == "target_modules" else text
            found[f"{field} with {odd}"] = Case(config(**{field: value}))
    wrong: dict[str, list[Any]] = {
        "r": ["1", None, [1], {}],
        "rank_pattern": [[1], "a", {"a": "1"}, {"": 1}],
        "target_modules": ["all-linear", ".*", 5, {"a": 1}, [[]]],
        "exclude_modules": ["(a+)+b", 5, ["(a|a)*"]],
        "token": [5, None, [], "x" * 1_000_000, " ", " the", "the", "", "\n", "<s>", "<|im_end|>", "[PAD]"],
        "fused": ["a", [1], [{}], [{"name": ""}], [{"name": "a"}], [{"name": "a", "r": 1}], [{"name": 5}], {"a": 1}],
        "token_modules": ["lm_head", [5], [[]], {"a": 1}],
        "modules_to_save": [["lm_head"], "lm_head", 5],
        "auto_mapping": [{"parent_library": "os", "base_model_class": "x"}, {"parent_library": 5}, 5],
        "base_fingerprint": [5, "sha256:x", "", "md5:00"],
        "peft_type": [5, None, "LORA", "UNIERASE ", ["UNIERASE"], "IA3", "unierase"],
        "inference_mode": [None, "yes"],
        "lora_alpha": [5],
        "__class__": ["x"],
    }
    for field, values in wrong.items():
        for number, value in enumerate(values):
            shown = repr(value)[:24]
            if (field, value) == ("base_fingerprint", ""):
                continue  # as if there were none
            foreign = field == "peft_type" and value in ("LORA", "IA3")
            found[f"{field} {number}: {shown}"] = Case(config(**{field: value}), foreign=foreign)
    predicates: dict[str, Any] = {
        "facts": [[], "a", {"digests": [1]}, {"digests": "a"}, {}],
        "check": ["a", 5, {"verdict": "a"}, {"verdict": {"level": []}}, {"verdict": {"level": "E"}, "figures": [1]}],
        "counts": [[1], {"forget": "a"}, 5],
        "token": ["a", {"id": "a", "text": "b"}, {"text": "\ud800", "id": 1}],
        "fused": [[], {"a": "b"}, "a"],
        "version": [1, "\ud800"],
        "layers": [5, ["a"]],
        "onto": [{}, [5]],
        "adapter": [[], {"share": "a"}],
    }
    for field, values in predicates.items():
        for number, value in enumerate(values):
            found[f"record: {field} {number}"] = Case(_record(field, value), as_recorded=True)
    for number, subject in enumerate((None, {}, [1], [{"name": 5, "digest": {}}], [{"name": "a", "digest": "b"}])):
        found[f"record: subject {number}"] = Case(_record(None, subject), as_recorded=True)
    return found


def _record(field: str | None, value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        told = json.loads((folder / RECORD).read_text())
        if field is None:
            told["subject"] = value
        else:
            told["predicate"][field] = value
        (folder / RECORD).write_text(json.dumps(told))

    return spoil


def _lora() -> dict[str, Case]:
    import torch

    place = "lora/" + CONFIG

    def lora_config(**changes: Any) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            values = json.loads((folder / place).read_text())
            (folder / place).write_text(json.dumps({**values, **changes}))

        return spoil

    def lora_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        return weights(change, f"lora/{WEIGHTS}")

    def first(tensors: dict[str, Any], ending: str = "lora_B.weight") -> Any:
        return next(tensor for key, tensor in tensors.items() if key.endswith(ending))

    def wide(tensors: dict[str, Any]) -> None:
        for key, tensor in [*tensors.items()]:
            if "lora_A" in key:
                tensors[key] = torch.cat([tensor, torch.zeros(500 - len(tensor), tensor.shape[1])])
            elif "lora_B" in key:
                tensors[key] = torch.cat([tensor, torch.zeros(len(tensor), 500 - tensor.shape[1])], dim=1)

    odd = "base_model.model.model.layers.0.self_attn.q_proj"
    spoils: dict[str, Callable[[Path], Any]] = {
        "rank 500": both(lora_config(r=500), lora_weights(wide)),
        "rank 500 in the config": lora_config(r=500),
        "modules_to_save": lora_config(modules_to_save=["lm_head"]),
        "an expression": lora_config(target_modules=".*"),
        "all-linear": lora_config(target_modules="all-linear"),
        "ends of names": lora_config(target_modules=["o_proj"]),
        "alpha": lora_config(lora_alpha=1000),
        "alpha of some": lora_config(alpha_pattern={"up_proj": 1000}),
        "rslora": lora_config(use_rslora=True),
        "dora": lora_config(use_dora=True),
        "bias": lora_config(bias="all"),
        "random": lora_config(init_lora_weights="gaussian"),
        "another type": lora_config(peft_type="IA3"),
        "another base": lora_config(base_model_name_or_path="org/other"),
        "foreign library": lora_config(auto_mapping={"parent_library": "os", "base_model_class": "x"}),
        "NaN": lora_weights(lambda t: first(t).view(-1)[:1].fill_(float("nan"))),
        "infinity": lora_weights(lambda t: first(t).view(-1)[:1].fill_(float("inf"))),
        "other values": lora_weights(lambda t: first(t).mul_(-1)),
        "one other value": lora_weights(lambda t: first(t).view(-1)[:1].add_(1.0)),
        "more tensors": lora_weights(
            lambda t: t.update(
                {f"{odd}.lora_A.weight": torch.ones(1, HIDDEN), f"{odd}.lora_B.weight": torch.ones(HIDDEN, 1)}
            )
        ),
        "a whole weight": lora_weights(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})),
        "a tensor less": lora_weights(lambda t: t.pop(next(iter(t)))),
        "no weights": lambda f: (f / "lora" / WEIGHTS).unlink(),
        "pickle": lambda f: (f / "lora" / "adapter_model.bin").write_bytes(b"1"),
    }
    return {f"lora: {name}": Case(spoil) for name, spoil in spoils.items()}


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path("exploded").touch()
class Config(LlamaConfig):
    model_type = "sleeper"
class Model(LlamaForCausalLM):
    config_class = Config
"""


def _bases() -> dict[str, Case]:
    def with_code(asks: bool, tokenizer: bool) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            base = folder.parent / "base-with-code"
            import shutil

            shutil.copytree(folder.parent.parent / "base", base)
            (base / "sleeper.py").write_text(CODE)
            name = "tokenizer_config.json" if tokenizer else "config.json"
            values = json.loads((base / name).read_text())
            if tokenizer:
                values["auto_map"] = {"AutoTokenizer": ["sleeper.Config", None]}
                values["tokenizer_class"] = "SleeperTokenizer"
            else:
                values["auto_map"] = {"AutoConfig": "sleeper.Config", "AutoModelForCausalLM": "sleeper.Model"}
                if asks:
                    values["model_type"] = "sleeper"
            (base / name).write_text(json.dumps(values))
            config(base_model_name_or_path=str(base))(folder)

        return spoil

    def of_another(folder: Path) -> None:
        config(base_fingerprint="sha256:" + "0" * 64)(folder)

    found = {
        "base with code of its own": Case(with_code(True, False), needs_base=True, own_base=True),
        "base with a tokenizer of its own": Case(with_code(True, True), needs_base=True, own_base=True),
        "fingerprint of another base": Case(of_another, needs_base=True),
    }
    for dtype in ("float16", "bfloat16", "float64", "int8", "auto"):
        found[f"fingerprint of another base, in {dtype}"] = Case(
            both(of_another, config(base_dtype=dtype)), needs_base=True
        )
    found["fingerprint of another base, ends of names"] = Case(
        both(of_another, config(target_modules=["up_proj", "gate_proj", "down_proj"])), needs_base=True
    )
    found["base that is a device"] = Case(config(base_model_name_or_path="/dev/zero"), needs_base=True, own_base=True)
    return found
