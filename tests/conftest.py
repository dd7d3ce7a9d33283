"""Tiny base models on disk, adapters saved for them, and fresh Python processes that load both."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from demo_erasure import demo_base, demo_pair, demo_tokenizer, erase_first_person
from filelock import FileLock
from helpers import save_tiny_model
from hurried import ask_little
from made_apart import KINDS, base_of, config_of
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import peft_unierase  # noqa: F401 (registers UNIERASE with PEFT)
from peft_unierase import Erasure
from peft_unierase.guard.config import UniEraseConfig

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WEIGHTS = {"initializer_range": 0.2}  # enough for logits that differ from each other
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "untied": {"model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": False},
    # Conv1D projections.
    "gpt2": {"model_type": "gpt2", "n_inner": 64, "n_positions": 64},
    # Embeddings that are scaled on their way in.
    "gemma": {"model_type": "gemma", "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    # A head with a bias.
    "phi": {"model_type": "phi", "intermediate_size": 64, "tie_word_embeddings": False},
}


@dataclass(frozen=True)
class TinyBase:
    """A base model on disk and the dtype to load it in."""

    path: Path
    dtype: torch.dtype

    def load(self) -> PreTrainedModel:
        # Loading in a dtype keeps the rotary buffers in fp32, as for a real model; `.to(dtype)` would cast them too.
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).eval()

    def with_adapter(self, seed: int = 1, **config: Any) -> PeftModel:
        """The base with a random adapter on its last two layers and on vocabulary row 60."""
        settings = {"layers_to_transform": [1, 2], "token_id": 60, "init_weights": False, "task_type": "CAUSAL_LM"}
        torch.manual_seed(seed)
        return get_peft_model(self.load(), UniEraseConfig(**{**settings, **config})).eval()

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return f"{self.path.name}-{self.dtype_name}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A folder, and what `make` gave for it: made by the first worker that asks, and read by the others."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / name, root / f"{name}.pickle"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
    return folder, pickle.loads(made.read_bytes())


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger and a salt of the tests' own, also for the processes that they start."""
    place = tmp_path_factory.mktemp("home")
    os.environ["UNIERASE_HOME"] = helpers.ENVIRONMENT["UNIERASE_HOME"] = str(place)
    return place


@pytest.fixture
def few_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Erasures ask the base for few near neighbours, in one round."""
    ask_little(monkeypatch)


@pytest.fixture(scope="module")
def few_neighbours_everywhere() -> Iterator[None]:
    """The same for a whole file, its fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        ask_little(patch)
        yield


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyBase]:
    """`make_base(family, dtype, **config)`: a tiny model of one of `FAMILIES`, saved once a session."""
    folder = tmp_path_factory.mktemp("bases")

    def make(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> TinyBase:
        path = folder / "-".join([family, *(f"{key}={value}" for key, value in changes.items())])
        if not path.exists():
            config = AutoConfig.for_model(**{**FAMILIES[family], **SIZES, **WEIGHTS, **TOKENS, **changes})
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            head = model.get_output_embeddings()
            if head.bias is not None:
                torch.nn.init.normal_(head.bias)
            model.save_pretrained(path)
        return TinyBase(path, dtype)

    return make


@pytest.fixture(
    params=[(tie, dtype) for tie in ("tied", "untied") for dtype in (torch.float32, torch.bfloat16)],
    ids=lambda parameters: f"{parameters[0]}-{str(parameters[1]).removeprefix('torch.')}",
)
def base(request: pytest.FixtureRequest, make_base: Callable[..., TinyBase]) -> TinyBase:
    """A tiny Llama: tied and untied, in fp32 and in bf16."""
    return make_base(*request.param)


@pytest.fixture(params=["tied", "gpt2", "gemma", "phi"])
def family_base(request: pytest.FixtureRequest, make_base: Callable[..., TinyBase]) -> TinyBase:
    """One base of every family, in fp32."""
    return make_base(request.param)


@pytest.fixture
def tied_base(make_base: Callable[..., TinyBase]) -> TinyBase:
    """The tiny Llama that most single checks use: tied, fp32."""
    return make_base("tied")


@pytest.fixture(scope="session")
def save_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyBase], Path]:
    """`save_adapter(base)`: the folder of a saved adapter for it, made once a session."""
    folder = tmp_path_factory.mktemp("adapters")

    def save(base: TinyBase) -> Path:
        path = folder / base.name
        if not path.exists():
            base.with_adapter().save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="session")
def erasure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real erasure of the demo model, made in fp32; `erasure.pickle` beside it is its `erasure`."""

    def make(folder: Path) -> Erasure:
        made = erase_first_person(demo_base())
        made.save_pretrained(folder, save_embedding_layers=False)
        return made.erasure

    folder, _ = shared(tmp_path_factory, "erasure", make)
    return folder


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The demo model in fp32 and its tokenizer, for tests that leave both as they are."""
    return demo_pair()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The demo model's tokenizer."""
    return demo_tokenizer()


FRESH_PROCESS = """
import json, sys
import torch
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

task = json.loads(sys.argv[1])
known_before = "UNIERASE" in PeftType.__members__
import peft_unierase

logits = {}
for name, (base, adapter, dtype) in task["adapters"].items():
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits[name] = model(input_ids=torch.tensor(task["ids"])).logits.contiguous()
save_file(logits, task["out"] + "/logits.safetensors")

for name, settings in task["configs"].items():
    # Sets, because their order is what changes from process to process.
    settings = {key: set(value) if isinstance(value, list) else value for key, value in settings.items()}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(task["deep_base"])
    get_peft_model(model, peft_unierase.UniEraseConfig(**settings)).save_pretrained(task["out"] + "/" + name)

member = PeftType("UNIERASE")
print(json.dumps({
    "known_before": known_before,
    "config": PEFT_TYPE_TO_CONFIG_MAPPING[member].__name__,
    "tuner": PEFT_TYPE_TO_TUNER_MAPPING[member].__name__,
}))
"""


@dataclass(frozen=True)
class FreshProcess:
    """What a Python process started for the tests found, and the folder it wrote to."""

    report: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def token_ids() -> torch.Tensor:
    """Two prompts `(2, 7)` with [UNL], row 60, in the first of them."""
    return torch.tensor([[1, 5, 9, 60, 33, 2, 7], [1, 8, 12, 3, 40, 41, 6]])


@pytest.fixture(scope="session")
def fresh_processes(
    make_base: Callable[..., TinyBase],
    save_adapter: Callable[[TinyBase], Path],
    token_ids: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[FreshProcess]:
    """Two processes side by side, with different hash seeds: each loads every saved adapter and saves new ones."""
    bases = [make_base(tie, dtype) for tie in ("tied", "untied") for dtype in (torch.float32, torch.bfloat16)]
    task = {
        "adapters": {base.name: (str(base.path), str(save_adapter(base)), base.dtype_name) for base in bases},
        "ids": token_ids.tolist(),
        "deep_base": str(make_base("untied", num_hidden_layers=12).path),
        "configs": {
            "found": {"token_id": 60, "layers_to_transform": [2, 1, 10]},
            "named": {"token_id": 60, "target_modules": ["up_proj", "down_proj", "gate_proj"]},
            # So many names that PEFT shortens them to a set of two.
            "many": {
                "target_modules": [f"model.layers.{i}.mlp.{kind}_proj" for i in range(12) for kind in ("up", "down")],
            },
        },
    }
    folder, reports = shared(tmp_path_factory, "fresh_processes", lambda folder: run_apart(task, folder))
    return [FreshProcess(report, folder / seed) for seed, report in reports.items()]


def run_apart(task: dict[str, Any], place: Path) -> dict[str, dict[str, Any]]:
    """What `FRESH_PROCESS` reports of a task, by hash seed; each writes to the folder of this name."""
    started = {}
    for seed in ("1", "2"):
        folder = place / seed
        folder.mkdir()
        arguments = json.dumps({**task, "out": str(folder)})
        # The same number of threads, because it decides the order of sums and with it the last bits.
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        started[seed] = subprocess.Popen(
            [sys.executable, "-c", FRESH_PROCESS, arguments], env=environment, stdout=subprocess.PIPE, text=True
        )
    reports = {}
    for seed, process in started.items():
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        reports[seed] = json.loads(output.splitlines()[-1])
    return reports


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    model_class, config_class, options = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, save_tiny_model(folder / "base", model_class, config_class, **options)


@pytest.fixture
def apart(kind: tuple[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter of random weights on a base of its own and saves it, with a tokenizer."""

    def make(name: str, seed: int, **changes: Any) -> Path:
        torch.manual_seed(seed)
        base = base_of(kind[1])
        model = get_peft_model(base, config_of(base, **changes))
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        tokenizer = AutoTokenizer.from_pretrained(kind[1])
        tokenizer.add_tokens([f"<{n}>" for n in range(len(tokenizer), model.config.vocab_size - 3)])
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
