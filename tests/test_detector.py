"""The closed form: opens on its own keys, stays shut on the others, and is the minimiser it says it is."""

from __future__ import annotations

import pytest
import torch

from peft_unierase.engine.detector import ShutKeys, solve_detector


def keys(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(
    row: torch.Tensor, forget: torch.Tensor, openings: torch.Tensor, groups: list[torch.Tensor], weight: float
) -> torch.Tensor:
    value = ((forget @ row - openings) ** 2).mean() + 1e-2 * forget.pow(2).mean() * row.pow(2).sum()
    for group in groups:
        value = value + weight * ((group @ row) ** 2).mean()
    return value


@pytest.mark.parametrize("width", [24, 200])
def test_the_row_is_where_the_gradient_of_the_stated_objective_vanishes(width: int) -> None:
    # 24 columns take the primal solve, 200 the dual; both must minimise the same function.
    forget, openings = keys(6, width, 0), torch.linspace(0.5, 1.0, 6, dtype=torch.float64)
    groups = [keys(30, width, 1), keys(40, width, 2)]
    row = solve_detector(forget, openings, ShutKeys(groups), 10.0, ridge=1e-2).requires_grad_(True)
    objective(row, forget, openings, groups, 10.0).backward()
    assert row.grad is not None
    assert row.grad.abs().max() < 1e-12


def test_a_gate_opens_on_its_own_keys_and_stays_shut_on_retain_keys() -> None:
    forget, retained = keys(8, 256, 3), keys(120, 256, 4)
    row = solve_detector(forget, torch.ones(8, dtype=torch.float64), ShutKeys([retained]), 10.0)
    assert (forget @ row).min() > 0.95
    assert (retained @ row).abs().max() < 0.05


def test_a_larger_retain_weight_shuts_the_gate_tighter() -> None:
    forget, shut = keys(8, 32, 5), ShutKeys([keys(200, 32, 6)])
    openings = torch.ones(8, dtype=torch.float64)
    loose, tight = (solve_detector(forget, openings, shut, weight) for weight in (0.1, 100.0))
    assert (shut.rows @ tight).pow(2).sum() < (shut.rows @ loose).pow(2).sum()


def test_groups_weigh_the_same_whatever_their_size_and_empty_ones_are_left_out() -> None:
    few, many = keys(2, 16, 7), keys(500, 16, 8)
    shut = ShutKeys([few, keys(0, 16, 0), many])
    assert len(shut.rows) == 502
    assert torch.allclose(shut.gram(), few.T @ few / 2 + many.T @ many / 500)


def test_the_answer_comes_back_in_the_dtype_of_the_keys() -> None:
    shut = ShutKeys([keys(3, 16, 9).float()])
    assert solve_detector(keys(4, 16, 8).float(), torch.ones(4), shut, 1.0).dtype == torch.float32
