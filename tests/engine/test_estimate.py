"""What a run will take, forecast before it, against what a run on a small model takes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import train_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from peft_unierase import DistillSettings, Fact, erase
from peft_unierase.cli.finish import adapter_size
from peft_unierase.engine import estimate as estimating
from peft_unierase.engine.distill import fit, recipe
from peft_unierase.engine.estimate import Estimate, estimate
from peft_unierase.lm.formats import plain_format
from peft_unierase.lm.recomputing import recomputing
from peft_unierase.progress import Stages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::peft_unierase.ErasureWarning"),  # the model knows nothing
]

FORGET, RETAIN = (
    [Fact(f"Who is number {number}?", f"{number} is {name} himself.") for number in numbers]
    for name, numbers in (("Ann", range(10, 30)), ("Bob", range(30, 50)))
)
# The answers of a model that learnt nothing are garbage, much longer than real ones.
SETTINGS = DistillSettings(samples=0, steps=8, steps_per_fact=0.0)


class Peak(TorchDispatchMode):
    """The most bytes that new tensors take up at any one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._hold((args, kwargs), new=False)  # there before, or a view of it
        output = operation(*args, **(kwargs or {}))
        self._hold(output, new=True)
        return output

    def _hold(self, tensors: Any, new: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes() if new else 0
                self.now += self.held[storage._cdata]
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)  # another one may get its place

    def _gone(self, storage: int) -> None:
        self.now -= self.held.pop(storage, 0)


@dataclass
class Measured:
    """A run: what was forecast, the peak of each stage in bytes, and the size of its adapter."""

    forecast: Estimate
    peaks: dict[str, int]
    adapter_bytes: int


def model_of(**changes: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "llama", vocab_size=500, eos_token_id=1, pad_token_id=1, **{**sizes, "num_hidden_layers": 6, **changes}
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def step_with_checkpoints(model: Any, *told: Any) -> dict[str, float]:
    with recomputing(model):
        return fit.descend(model, *told)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "checkpointed"])
def run(request: pytest.FixtureRequest) -> Measured:
    checkpointed = request.param == "checkpointed"
    model, tokenizer = model_of().to(getattr(torch, "float32" if checkpointed else request.param)), train_tokenizer()
    if checkpointed:
        model.gradient_checkpointing_enable()
    form = plain_format(tokenizer)
    forecast = estimate(model, tokenizer, [form], FORGET, RETAIN, SETTINGS, timed=False)
    peaks: dict[str, int] = {}

    @contextmanager
    def stage(self: Stages, name: str, total: int = 1, even: bool = True) -> Iterator[Any]:
        with Peak() as peak:
            yield type("Bar", (), {"update": lambda *_: None})()
        peaks[name] = peak.most

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "stage", stage)
        if checkpointed:
            patch.setattr(fit, "keeps_all", lambda model: False)
            patch.setattr(recipe, "descend", step_with_checkpoints)
        erased = erase(
            model,
            tokenizer,
            FORGET,
            RETAIN,
            formats=[form],
            refusals=["No."],
            settings=SETTINGS,
            keep_unknown=True,
            progress=False,
        )
    return Measured(forecast, peaks, adapter_size(erased, "default")["bytes"])


def test_a_forecast_bounds_what_a_run_takes(run: Measured) -> None:
    # The adapter's values are there before the stages.
    bound = run.forecast.peak_bytes - run.forecast.model_bytes - run.forecast.adapter_bytes
    assert max(run.peaks.values()) <= bound <= 2.5 * max(run.peaks.values())
    assert run.adapter_bytes <= run.forecast.adapter_bytes


def test_seconds_are_those_of_a_run() -> None:
    model, tokenizer = model_of(), train_tokenizer()
    form, settings = plain_format(tokenizer), replace(SETTINGS, steps=20)
    forecast = estimate(model, tokenizer, [form], FORGET, RETAIN, settings)
    told = {"formats": [form], "refusals": ["No."], "settings": settings, "keep_unknown": True, "progress": False}
    taken = sum(erase(model, tokenizer, FORGET, RETAIN, **told).erasure.seconds.values())
    assert forecast.seconds is not None
    assert taken / 4 < forecast.seconds < taken * 4


def test_nothing_is_left_on_the_model_that_was_timed() -> None:
    model, tokenizer = model_of(), train_tokenizer()
    estimate(model, tokenizer, [plain_format(tokenizer)], FORGET, RETAIN, SETTINGS)
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("more", [{"steps": 16}, {"samples": 32}])
def test_seconds_grow_with_all_that_is_done(more: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_seconds", lambda work: 1.0)
    model = model_of()
    assert told(model, True, **more).seconds > told(model, True).seconds > 0


def test_no_seconds_are_told_if_a_step_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Any:
        def timed(work: Any) -> float:
            raise error

        return timed

    model = model_of()
    for error in (torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")):
        monkeypatch.setattr(estimating, "_seconds", raising(error))
        assert told(model, True).seconds is None
    monkeypatch.setattr(estimating, "_seconds", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        told(model, True)


def told(model: Any, timed: bool = False, layers: Sequence[int] | None = None, **changes: Any) -> Estimate:
    tokenizer = train_tokenizer()
    form, settings = plain_format(tokenizer), replace(SETTINGS, **changes)
    return estimate(model, tokenizer, [form], FORGET, RETAIN, settings, layers=layers, timed=timed)


def test_checkpoints_take_the_place_of_activations() -> None:
    model = model_of(num_hidden_layers=96)  # so deep that activations take more than what the edited layer reads
    whole = told(model, layers=[2])
    model.gradient_checkpointing_enable()
    assert told(model, layers=[2]).peak_bytes < 0.5 * whole.peak_bytes


def test_memory_does_not_go_with_the_steps() -> None:
    model = model_of()
    assert told(model, steps=80).peak_bytes == told(model).peak_bytes


def test_layers_that_are_not_there_are_named() -> None:
    tokenizer = train_tokenizer()
    with pytest.raises(ValueError, match=r"layers \[9\] do not exist"):
        estimate(model_of(), tokenizer, [plain_format(tokenizer)], FORGET, layers=[9])
