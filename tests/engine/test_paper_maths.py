"""Recipe `paper`'s closed forms: the cheap way gives what the published formula gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from peft_unierase.engine.paper.null_space import SecondMoment, null_space
from peft_unierase.engine.paper.token import one_cycle
from peft_unierase.engine.paper.update import earlier_keys, exact_factors, pad_rank, ridge_rows, truncate

WIDTH, KEY_WIDTH = 6, 40


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    moment = SecondMoment()
    for keys in blocks:
        moment.add(keys)
    return moment.mean()


def explicit_projector(moment: torch.Tensor, threshold: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(moment)
    null = vectors[:, values <= threshold * values.mean()]
    return null @ null.T


def published(
    residuals: torch.Tensor, keys: torch.Tensor, earlier: torch.Tensor, projector: torch.Tensor, ridge: float
):
    """`R K^T P (K K^T P + K_p K_p^T P + lambda I)^-1` as it is written, with columns for keys."""
    inner = keys @ keys.T @ projector + earlier @ earlier.T @ projector + ridge * torch.eye(len(keys)).double()
    return residuals @ keys.T @ projector @ torch.linalg.inv(inner)


@pytest.mark.parametrize("count", [4, 12], ids=["fewer keys than outputs", "more keys than outputs"])
@pytest.mark.parametrize("before", [0, 5])
def test_the_push_through_form_is_the_published_update(count: int, before: int) -> None:
    retained = draw(300, KEY_WIDTH, seed=1) * torch.linspace(0.01, 3, KEY_WIDTH).double()
    moment = second_moment([retained[:100], retained[100:]])
    keys, earlier, residuals = (
        draw(count, KEY_WIDTH, seed=2),
        draw(before, KEY_WIDTH, seed=3),
        draw(WIDTH, count, seed=4),
    )
    space = null_space(moment, 0.3)
    a, b = exact_factors(residuals, ridge_rows(space.project(keys), space.project(earlier), 0.1))
    wanted = published(residuals, keys.T, earlier.T, explicit_projector(moment, 0.3), 0.1)
    assert (b @ a - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    assert a.shape == (min(count, WIDTH), KEY_WIDTH)
    assert b.shape == (WIDTH, min(count, WIDTH))


@pytest.mark.parametrize("threshold", [0.02, 1.5], ids=["thin null space", "thin complement"])
def test_the_projector_as_an_operator_is_the_explicit_one(threshold: float) -> None:
    moment = second_moment([draw(300, KEY_WIDTH) * torch.linspace(0.01, 3, KEY_WIDTH).double()])
    space, keys = null_space(moment, threshold), draw(7, KEY_WIDTH, seed=9)
    assert torch.allclose(space.project(keys), keys @ explicit_projector(moment, threshold), atol=1e-12, rtol=0)
    assert space.basis.shape[1] == min(space.dimension, KEY_WIDTH - space.dimension)
    assert 0 < space.dimension < KEY_WIDTH


def test_blocks_of_keys_of_any_size_give_one_moment_and_none_are_refused() -> None:
    keys = draw(30, KEY_WIDTH)
    assert torch.allclose(second_moment([keys[:1], keys[1:]]), keys.T @ keys / 30, atol=1e-12)
    with pytest.raises(ValueError, match=r"no retained keys.*give retain facts"):
        second_moment([])


def test_one_by_one_with_the_keys_of_those_before_equals_one_batch() -> None:
    keys, targets, ridge = draw(8, KEY_WIDTH), draw(WIDTH, 8, seed=1), 0.1
    batch = targets @ ridge_rows(keys, keys[:0], ridge)
    edit = torch.zeros_like(batch)
    for number in range(8):
        missing = targets[:, number : number + 1] - edit @ keys[number : number + 1].T
        edit += missing @ ridge_rows(keys[number : number + 1], keys[:number], ridge)
    assert (edit - batch).abs().max() <= 1e-10 * batch.abs().max()


def test_the_edit_does_what_it_is_for_and_leaves_retained_and_earlier_keys_alone() -> None:
    retained = draw(200, 20, seed=1) @ draw(20, KEY_WIDTH, seed=2)
    space = null_space(second_moment([retained]), 1e-9)
    keys, earlier, residuals = draw(5, KEY_WIDTH), draw(4, KEY_WIDTH, seed=3), draw(WIDTH, 5, seed=4)
    rows = ridge_rows(space.project(keys), space.project(earlier), 1e-9)
    assert torch.allclose(residuals @ rows @ keys.T, residuals, atol=1e-6)
    assert (rows @ earlier.T).abs().max() <= 1e-6
    assert (rows @ retained.T).abs().max() <= 1e-9
    unprotected = ridge_rows(space.project(keys), earlier[:0], 1e-9)
    assert (unprotected @ earlier.T).abs().max() >= 1e-2


@pytest.mark.parametrize("count", [5, 15], ids=["fewer keys than outputs", "more keys than outputs"])
def test_the_keys_of_an_earlier_erasure_come_back_from_its_rows(count: int) -> None:
    first = draw(count, KEY_WIDTH)
    a, b = exact_factors(draw(WIDTH, count, seed=1), ridge_rows(first, first[:0], 1e-10))
    found = earlier_keys(pad_rank(a, b, 20)[0], largest=100.0)
    assert found.shape == (min(count, WIDTH), KEY_WIDTH)
    if count <= WIDTH:
        assert torch.allclose(found.T @ found, first.T @ first, atol=1e-6)
    second = draw(4, KEY_WIDTH, seed=2)
    later = draw(WIDTH, 4, seed=3) @ ridge_rows(second, found, 1e-9)
    # What the later edit writes must not reach what the first one reads.
    assert (a @ later.T).abs().max() <= 1e-6 * later.abs().max()


def test_keys_that_cannot_be_told_apart_are_cut_to_the_largest() -> None:
    rows = torch.diag(torch.tensor([1.0, 1e-3, 0.0])).double()
    assert earlier_keys(rows, largest=10.0).norm(dim=1).tolist() == pytest.approx([1.0, 10.0])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_truncation_keeps_what_it_says(share: float) -> None:
    a = draw(6, KEY_WIDTH) * torch.logspace(0, -2, 6).double()[:, None]
    b = draw(8, 6, seed=1)
    whole = b @ a
    rows, columns, kept = truncate(a, b, share)
    edit, values = columns @ rows, torch.linalg.svdvals(whole)
    rank = len(rows)
    assert kept >= share - 1e-12
    assert kept == pytest.approx(float(values[:rank].square().sum() / values.square().sum()))
    assert float((whole - edit).square().sum()) == pytest.approx(float(values[rank:].square().sum()), abs=1e-12)
    if rank > 1:
        assert float(values[: rank - 1].square().sum() / values.square().sum()) < share
    if share < 1:
        assert rank < 6


def test_padding_changes_the_rank_alone() -> None:
    a, b = draw(3, KEY_WIDTH), draw(WIDTH, 3, seed=1)
    rows, columns = pad_rank(a, b, 5)
    assert (rows.shape, columns.shape) == ((5, KEY_WIDTH), (WIDTH, 5))
    assert torch.equal(columns @ rows, b @ a)


@pytest.mark.parametrize("steps", range(1, 40))
def test_a_rate_rises_if_there_is_time_and_falls_in_the_end(steps: int) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    schedule, rates = one_cycle(optimizer, 2.0, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 1.0 <= max(rates) <= 2.0
    assert (rates[0] < 0.1) == (0.1 * steps > 1)
    assert steps < 2 or rates[-1] < 1e-3
