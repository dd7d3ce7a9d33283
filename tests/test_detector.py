"""The closed form: opens on its own keys, stays shut on the others, and is the minimiser it says it is."""

from __future__ import annotations

import pytest
import torch

from peft_unierase.engine.gate.detector import ShutKeys, solve_detectors


def keys(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shut_keys(groups: list[torch.Tensor]) -> ShutKeys:
    shut = ShutKeys(groups[0].shape[1])
    shut.moment = shut.moment.double()
    for group in groups:
        shut.add(group, 1 / len(group))
    return shut


def even(count: int) -> torch.Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("width", [24, 200])
def test_the_rows_are_where_the_gradient_of_the_stated_objective_vanishes(width: int, shifted: bool) -> None:
    forget, openings = keys(6, width, 0), torch.linspace(0.5, 1.0, 6, dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    groups, shifts = [keys(30, width, 1), keys(40, width, 2)], keys(6, width, 3) if shifted else None
    row = solve_detectors(forget, openings, weights, shut_keys(groups), 10.0, shifts, ridge=1e-2).requires_grad_(True)
    value = (weights * (forget @ row - openings) ** 2).sum() + 1e-2 * forget.pow(2).mean() * row.pow(2).sum()
    for group in groups:
        value = value + 10.0 * ((group @ row) ** 2).mean()
    if shifts is not None:
        value = value + 10.0 * (weights * (shifts @ row) ** 2).sum() / weights.sum()
    value.backward()
    assert row.grad is not None
    assert row.grad.abs().max() < 1e-11


def test_a_gate_opens_on_its_own_keys_and_stays_shut_on_retain_keys() -> None:
    forget, retained = keys(8, 256, 3), keys(120, 256, 4)
    row = solve_detectors(forget, torch.ones(8, dtype=torch.float64), even(8), shut_keys([retained]), 10.0)
    assert (forget @ row).min() > 0.95
    assert (retained @ row).abs().max() < 0.05


def test_a_larger_retain_weight_shuts_the_gate_tighter() -> None:
    forget, retained = keys(8, 32, 5), keys(200, 32, 6)
    openings, shut = torch.ones(8, dtype=torch.float64), shut_keys([retained])
    loose, tight = (solve_detectors(forget, openings, even(8), shut, weight) for weight in (0.1, 100.0))
    assert (retained @ tight).pow(2).sum() < (retained @ loose).pow(2).sum()


def test_two_layers_solved_together_tell_apart_what_neither_can_alone() -> None:
    # A position is to be gated where both layers' keys point the same way, and each layer sees half of that.
    forget = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    retained = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    openings, shut = torch.ones(1, dtype=torch.float64), shut_keys([retained])
    together = solve_detectors(forget, openings, even(1), shut, 100.0, ridge=1e-6)
    assert float((forget @ together)[0]) > 0.99
    assert (retained @ together).abs().max() < 0.01
    alone = solve_detectors(forget[:, :1], openings, even(1), shut_keys([retained[:, :1]]), 100.0)
    assert float((forget[:, :1] @ alone)[0]) < 0.05


def test_groups_weigh_the_same_whatever_their_size() -> None:
    few, many = keys(2, 16, 7), keys(500, 16, 8)
    assert torch.allclose(shut_keys([few, many]).moment, few.T @ few / 2 + many.T @ many / 500)


def test_the_answer_comes_back_in_the_dtype_of_the_keys() -> None:
    shut = ShutKeys(16)
    shut.add(keys(3, 16, 9).float(), 1 / 3)
    solved = solve_detectors(keys(4, 16, 8).float(), torch.ones(4), even(4).float(), shut, 1.0)
    assert solved.dtype == torch.float32
