"""An erasure that is named is on or refused, and a forward pass sees one state, whatever other threads switch."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from made_apart import IDS, base_of, config_of, logits
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_unierase import UniEraseConfig, load, set_active, toggle
from peft_unierase.adapter.active import active
from peft_unierase.adapter.edit import EditLayer
from peft_unierase.adapter.swap import SwappingLayer
from peft_unierase.errors import InputError

PAIR = IDS.repeat(2, 1)


@pytest.fixture
def both(kind: tuple[str, Path], apart: Callable[..., Path]) -> PeftModel:
    """Two erasures, `one` on and `other` off."""
    return load(base_of(kind[1]), {apart("one", 1): True, apart("other", 2): False})


@pytest.fixture
def alone(both: PeftModel) -> dict[str, torch.Tensor]:
    """Logits with each of them on by itself, with both, and of the base."""
    found = {}
    for name in ("one", "other", "one+other", "__base__"):
        set_active(both, [] if name == "__base__" else name.split("+"))
        found[name] = logits(both)[0]
    set_active(both, ["one"])
    return found


@torch.no_grad()
def by_rows(model: Any, *names: str) -> torch.Tensor:
    return model(input_ids=IDS.repeat(len(names), 1), adapter_names=list(names)).logits


# An erasure that is named is on, or an error says why


def off_by_no_names(model: PeftModel) -> None:
    set_active(model, [])


def off_one_by_one(model: PeftModel) -> None:
    toggle(model, "one", on=False)


def off_by_peft(model: PeftModel) -> None:
    model.base_model.set_adapter([])


@pytest.mark.parametrize("switch_off", [off_by_no_names, off_one_by_one, off_by_peft])
def test_rows_that_name_an_erasure_have_it_after_all_were_switched_off(
    both: PeftModel, alone: dict[str, torch.Tensor], switch_off: Callable[[PeftModel], None]
) -> None:
    switch_off(both)
    assert active(both) == both.active_adapters == []
    assert torch.equal(logits(both)[0], alone["__base__"])
    mixed = by_rows(both, "one", "__base__", "one+other")
    for row, name in zip(mixed, ("one", "__base__", "one+other"), strict=True):
        assert torch.allclose(row, alone[name], atol=1e-4), name
    assert torch.equal(logits(both)[0], alone["__base__"])
    told: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    generated = both.generate(
        input_ids=PAIR, attention_mask=torch.ones_like(PAIR), adapter_names=["one", "__base__"], **told
    )
    for row, names in zip(generated, (["one"], []), strict=True):
        set_active(both, names)
        own = both.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **told)[0]
        assert torch.equal(row[: len(own)], own), names


@pytest.mark.parametrize("switch_off", [off_by_no_names, off_one_by_one, off_by_peft])
def test_set_adapter_switches_on_after_all_were_switched_off(
    both: PeftModel, alone: dict[str, torch.Tensor], switch_off: Callable[[PeftModel], None]
) -> None:
    switch_off(both)
    both.set_adapter("other")
    assert active(both) == both.active_adapters == ["other"]
    assert torch.equal(logits(both)[0], alone["other"])
    switch_off(both)
    both.base_model.set_adapter(["one", "other"], inference_mode=True)
    assert active(both) == ["one", "other"]
    if switch_off is not off_one_by_one:
        assert torch.equal(logits(both)[0], alone["one+other"])


@contextmanager
def for_good(model: PeftModel) -> Iterator[None]:
    model.base_model.disable_adapter_layers()
    yield
    model.base_model.enable_adapter_layers()


@pytest.mark.parametrize("off", [PeftModel.disable_adapter, for_good])
def test_what_is_named_while_peft_has_switched_all_off_is_refused(
    both: PeftModel, alone: dict[str, torch.Tensor], off: Callable[[PeftModel], Any]
) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: both.set_adapter("other"),
        lambda: both.base_model.set_adapter(["one"]),
        lambda: by_rows(both, "one", "__base__"),
        lambda: both.generate(input_ids=IDS, adapter_names=["one+other"], max_new_tokens=2),
        lambda: next(module for module in both.modules() if isinstance(module, EditLayer)).set_adapter("one"),
    ]
    if off is PeftModel.disable_adapter:
        ways += [lambda: set_active(both, ["one"]), lambda: toggle(both, "one")]
    with off(both):
        assert both.active_adapters == active(both) == []
        for way in ways:
            with pytest.raises(
                ValueError, match=r"'(one|other)'.* cannot be on.*leave the `disable_adapter\(\)` block"
            ):
                way()
        assert torch.equal(logits(both)[0], alone["__base__"])
        assert torch.allclose(by_rows(both, "__base__")[0], alone["__base__"], atol=1e-4)
    assert active(both) == ["one"]
    assert torch.equal(logits(both)[0], alone["one"])


def test_set_active_switches_on_what_peft_has_switched_off_for_good(
    both: PeftModel, alone: dict[str, torch.Tensor]
) -> None:
    both.base_model.disable_adapter_layers()
    set_active(both, ["other"])
    assert torch.equal(logits(both)[0], alone["other"])


def test_an_unknown_name_is_refused_by_the_tuner_too(both: PeftModel) -> None:
    with pytest.raises(ValueError, match="the model has no adapter 'two'; it has 'one', 'other'"):
        both.base_model.set_adapter(["one", "two"])
    assert active(both) == ["one"]


def test_an_adapter_that_is_deleted_leaves_the_others_on(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    set_active(both, ["one", "other"])
    both.delete_adapter("one")
    assert active(both) == both.active_adapters == ["other"]
    assert torch.allclose(logits(both)[0], alone["other"], atol=1e-4)
    assert not any(parameter.requires_grad for parameter in both.parameters())


def test_one_can_be_deleted_while_none_or_several_are_on(
    both: PeftModel, alone: dict[str, torch.Tensor], apart: Callable[..., Path]
) -> None:
    both.load_adapter(str(apart("third", 3)), "third")
    set_active(both, ["third", "one", "other"])
    both.delete_adapter("third")
    assert torch.allclose(logits(both)[0], alone["one+other"], atol=1e-4)
    set_active(both, ["one"])
    set_active(both, [])
    both.delete_adapter("one")
    assert torch.equal(logits(both)[0], alone["__base__"])
    assert torch.allclose(by_rows(both, "other")[0], alone["other"], atol=1e-4)


def test_one_that_is_added_while_all_are_off_leaves_the_choice_as_it_was(
    both: PeftModel, alone: dict[str, torch.Tensor], apart: Callable[..., Path]
) -> None:
    with both.disable_adapter():
        both.load_adapter(str(apart("third", 3)), "third")
        assert torch.equal(logits(both)[0], alone["__base__"])
    assert active(both) == ["one"]
    assert torch.equal(logits(both)[0], alone["one"])


def test_with_none_on_there_is_nothing_to_merge(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    set_active(both, [])
    for merge in (both.merge_adapter, both.merge_and_unload):
        with pytest.raises(ValueError, match="no adapter is on, so there is nothing to merge"):
            merge()
    both.merge_adapter(["other"])
    set_active(both, ["other"])
    assert torch.allclose(logits(both)[0], alone["other"], atol=1e-4)


def test_what_is_merged_is_what_is_on(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    both.merge_adapter(["other"])
    assert active(both) == ["other"]
    set_active(both, [])
    assert torch.equal(logits(both)[0], alone["__base__"])


# One state for each forward pass


class Hold:
    """Stops the first pass through a layer half way, until it is told to go on."""

    def __init__(self, model: Any) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        edits = [module for module in model.modules() if isinstance(module, EditLayer)]
        self.handle = edits[0].get_base_layer().register_forward_pre_hook(self.wait)

    def wait(self, *_: Any) -> None:
        self.handle.remove()
        self.reached.set()
        assert self.go_on.wait(30)

    @contextmanager
    def while_running(self, run: Callable[[], Any]) -> Iterator[list[Any]]:
        """Another thread's pass, stopped half way for the block; what came of it is there after it."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(run()))
        thread.start()
        assert self.reached.wait(30)
        try:
            yield found
        finally:
            self.go_on.set()
            thread.join(30)


ENTRIES: dict[str, Callable[[PeftModel], Any]] = {
    "PeftModel": lambda model: model,
    "the tuner": lambda model: model.base_model,
    "the base itself": lambda model: model.get_base_model(),
}
SWITCHES: dict[str, Callable[[PeftModel], Any]] = {
    "set_active": lambda model: set_active(model, ["other"]),
    "none": lambda model: set_active(model, []),
    "toggle": lambda model: toggle(model, "one"),
    "set_adapter": lambda model: model.set_adapter("other"),
    "disable_adapter_layers": lambda model: model.base_model.disable_adapter_layers(),
    "layer by layer": lambda model: [
        module.set_adapter("other") for module in model.modules() if isinstance(module, SwappingLayer)
    ],
    "a mixed batch": lambda model: by_rows(model, "other", "__base__"),
}


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_a_pass_sees_the_state_with_which_it_began(
    both: PeftModel, alone: dict[str, torch.Tensor], entry: Any, switch: Any
) -> None:
    with Hold(both).while_running(lambda: logits(entry(both))[0]) as found:
        switch(both)
    assert torch.equal(found[0], alone["one"])


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_mixed_batch_keeps_its_rows_beside_another(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    with Hold(both).while_running(lambda: by_rows(both, "one", "other")) as found:
        other = by_rows(both, "__base__", "one+other", "one")
        plain = logits(both)[0]
        set_active(both, [])
    for rows, names in ((found[0], ("one", "other")), (other, ("__base__", "one+other", "one"))):
        for row, name in zip(rows, names, strict=True):
            assert torch.allclose(row, alone[name], atol=1e-4), name
    assert torch.equal(plain, alone["one"])


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_generate_sees_one_state_from_its_first_token_to_its_last(both: PeftModel) -> None:
    told: dict[str, Any] = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "pad_token_id": 0}
    expected = both.generate(input_ids=IDS, do_sample=False, **told)
    with Hold(both).while_running(lambda: both.generate(input_ids=IDS, do_sample=False, **told)) as found:
        set_active(both, [])
    assert torch.equal(found[0], expected)
    assert not torch.equal(both.generate(input_ids=IDS, do_sample=False, **told), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_threads_that_toggle_and_threads_that_ask(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    stop, wrong = threading.Event(), []

    def ask() -> None:
        try:
            for _ in range(60):
                row = logits(both)[0]
                if not any(torch.allclose(row, state, atol=1e-4) for state in alone.values()):
                    wrong.append("neither on nor off")
        except Exception as error:
            wrong.append(repr(error))

    def switch(name: str) -> None:
        while not stop.is_set():
            toggle(both, name)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    togglers = [threading.Thread(target=switch, args=[name]) for name in ("one", "other")]
    for thread in (*togglers, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    for thread in togglers:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.merge_adapter(), "cannot merge"),
        (lambda model: model.merge_and_unload(), "cannot unload"),
        (lambda model: model.unload(), "cannot unload"),
        (lambda model: model.delete_adapter("one"), "cannot delete an adapter"),
    ],
    ids=["merge", "merge and unload", "unload", "delete"],
)
def test_what_would_change_a_pass_half_way_is_refused(
    both: PeftModel, alone: dict[str, torch.Tensor], change: Any, message: str
) -> None:
    with Hold(both).while_running(lambda: logits(both)[0]) as found:
        with pytest.raises(RuntimeError, match=f"{message} while a forward pass .* in another thread"):
            change(both)
        assert both.get_model_status().merged_adapters == []
        assert list(both.peft_config) == ["one", "other"]
    assert torch.equal(found[0], alone["one"])
    change(both)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_merged_model_is_not_switched_while_it_runs(both: PeftModel) -> None:
    both.merge_adapter()
    merged = logits(both)
    with Hold(both).while_running(lambda: logits(both)) as found:
        with pytest.raises(RuntimeError, match="cannot switch merged adapters while a forward pass"):
            set_active(both, ["other"])
        with pytest.raises(RuntimeError, match="cannot unmerge while a forward pass"), both.disable_adapter():
            logits(both)
    assert torch.equal(found[0], merged)


def enter_block(model: PeftModel, told: list[str]) -> None:
    """Enter a block without adapters, and write down that it was entered, or why it could not be."""
    try:
        with model.disable_adapter():
            told.append("inside")
    except RuntimeError as error:
        told.append(str(error))


def test_two_threads_cannot_have_a_block_without_adapters_at_once(
    both: PeftModel, alone: dict[str, torch.Tensor]
) -> None:
    """The one that leaves first would switch them on in the other's."""
    told: list[str] = []

    def second() -> None:
        enter_block(both, told)
        told.append(str(torch.allclose(by_rows(both, "__base__")[0], alone["__base__"], atol=1e-4)))

    with both.disable_adapter():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert torch.equal(logits(both)[0], alone["__base__"])
    assert "adapter_names=['__base__', …]" in told[0]
    assert told[1:] == ["True"]
    assert torch.allclose(by_rows(both, "other")[0], alone["other"], atol=1e-4)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_one_of_two_threads_that_enter_such_a_block_at_one_moment_is_refused_and_leaves_the_other_as_it_is(
    both: PeftModel, alone: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT reads whether adapters are on before it switches them off, and afterwards switches on what it saw on."""
    looked, entered, told = threading.Event(), threading.Event(), []
    status = both.get_model_status

    def slow() -> Any:
        found = status()
        if threading.current_thread() is not threading.main_thread():
            looked.set()
            entered.wait(30)
        return found

    monkeypatch.setattr(both, "get_model_status", slow)
    thread = threading.Thread(target=enter_block, args=(both, told))
    thread.start()
    assert looked.wait(30)
    with both.disable_adapter():
        entered.set()
        thread.join(30)
        assert torch.equal(logits(both)[0], alone["__base__"])
        with pytest.raises(ValueError, match="all adapters of the model are switched off"):
            set_active(both, ["one"])
    assert len(told) == 1
    assert "adapter_names=['__base__', …]" in told[0]
    assert torch.allclose(by_rows(both, "other")[0], alone["other"], atol=1e-4)
    set_active(both, ["one"])


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_an_error_or_an_interruption_leaves_no_state_behind(both: PeftModel, alone: dict[str, torch.Tensor]) -> None:
    layer = next(module for module in both.modules() if isinstance(module, EditLayer))
    for error in (ValueError, KeyboardInterrupt):
        for entry in ENTRIES.values():

            def fail(*_: Any, error: type[BaseException] = error) -> None:
                raise error

            handle = layer.register_forward_pre_hook(fail)
            with pytest.raises(error):
                logits(entry(both))
            handle.remove()
            set_active(both, ["other"])
            assert torch.equal(logits(entry(both))[0], alone["other"])
            set_active(both, ["one"])
            assert torch.equal(logits(entry(both))[0], alone["one"])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_is_switched_by_itself(both: PeftModel, alone: dict[str, torch.Tensor], way: Any) -> None:
    copied = way(both)
    set_active(copied, ["other"])
    for entry in ENTRIES.values():
        assert torch.equal(logits(entry(copied))[0], alone["other"])
        assert torch.equal(logits(entry(both))[0], alone["one"])


def test_a_base_without_adapters_has_nothing_of_them_left(kind: tuple[str, Path], apart: Callable[..., Path]) -> None:
    base = base_of(kind[1])
    for way in ("unload", "merge_and_unload"):
        getattr(load(base, apart("one", 1)), way)()
        assert not base._forward_hooks
        assert not base._forward_pre_hooks


# What fails leaves nothing behind


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def torn(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_another_shape(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in load_file(file).items()}, file)


def lacking_a_part(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(iter(tensors))]
    save_file(tensors, file)


def of_another_base(folder: Path) -> None:
    config = UniEraseConfig.from_pretrained(str(folder))
    config.base_fingerprint = f"sha256:{'0' * 64}"
    config.save_pretrained(str(folder))


@pytest.mark.parametrize("break_it", [without_weights, torn, of_another_shape, lacking_a_part, of_another_base])
@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_that_cannot_be_loaded_leaves_nothing_behind(
    kind: tuple[str, Path], apart: Callable[..., Path], break_it: Callable[[Path], None], first: bool
) -> None:
    base = base_of(kind[1])
    model = None if first else load(base, apart("one", 1))
    state = logits(base)
    modules, parameters = ([name for name, _ in found()] for found in (base.named_modules, base.named_parameters))
    broken, good = apart("broken", 2), apart("good", 2)
    break_it(broken)
    with pytest.raises(Exception, match=r".+"):
        PeftModel.from_pretrained(base, str(broken)) if model is None else model.load_adapter(str(broken), "other")
    assert [name for name, _ in base.named_modules()] == modules
    assert [name for name, _ in base.named_parameters()] == parameters
    assert torch.equal(logits(base), state)
    if model is None:
        assert not hasattr(base, "peft_config")
        assert active(PeftModel.from_pretrained(base, str(good))) == ["default"]
        return
    assert list(model.peft_config) == active(model) == model.active_adapters == ["one"]
    model.load_adapter(str(good), "other")
    set_active(model, ["other"])
    assert not torch.equal(logits(model), state)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_so_does_one_that_fails_while_another_thread_is_in_a_pass(
    both: PeftModel, alone: dict[str, torch.Tensor], apart: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_since(*_: Any) -> None:
        raise InputError("the weights are not those that were looked at")

    monkeypatch.setattr("peft_unierase.adapter.model.check_loaded", changed_since)
    parameters = [name for name, _ in both.named_parameters()]
    with Hold(both).while_running(lambda: logits(both)[0]) as found:
        with pytest.raises(InputError, match="not those that were looked at"):
            both.load_adapter(str(apart("third", 3)), "third")
        assert [name for name, _ in both.named_parameters()] == parameters
        assert list(both.peft_config) == ["one", "other"]
    assert torch.equal(found[0], alone["one"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_that_is_put_on_half_leaves_nothing_behind(
    kind: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, error: type[BaseException], first: bool
) -> None:
    base = base_of(kind[1])
    model = None if first else get_peft_model(base, config_of(base), adapter_name="one").eval()
    before, modules = logits(base), [name for name, _ in base.named_modules()]
    parameters = [name for name, _ in base.named_parameters()]
    made, make = [], EditLayer.update_layer

    def update_layer(self: Any, name: str, *told: Any, **rank: Any) -> None:
        make(self, name, *told, **rank)
        made.append(name)
        if len(made) == 2:
            raise error

    monkeypatch.setattr(EditLayer, "update_layer", update_layer)
    with pytest.raises(error):
        get_peft_model(base, config_of(base)) if model is None else model.add_adapter("other", config_of(base))
    assert [name for name, _ in base.named_modules()] == modules
    assert [name for name, _ in base.named_parameters()] == parameters
    assert torch.equal(logits(base), before)
    if model is None:
        assert not hasattr(base, "peft_config")
        assert not base._forward_hooks
    else:
        assert list(model.peft_config) == ["one"]
        assert active(model) == ["one"]
