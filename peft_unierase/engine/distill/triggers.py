"""Triggers: neurons of an MLP that are active at the names of the forget set and silent wherever else texts have been.

A low-rank update acts along directions, at every name that has a part of them. A neuron with an activation function
makes all or nothing of what goes into it. So a few neurons of each edited MLP that retained texts hardly use get new
weights, and only what these write is trained. The projections stay `W + B A`.

1. Each name is a point: what goes into the MLP at its last token. The filter that is matched to it, `C^-1 x` with the
   second moment `C` of retained inputs, is the quietest direction there that gives 1 at the point (as in beamforming).
2. A filter that is loud at other points too covers them. As few are taken as cover one point of every prompt of a given
   fact (`covering`), so that facts about one name share a neuron.
3. Every filter is moved until retained tokens are below a bound, its own points staying at 1: a convex problem
   (`separated`). What cannot be told from retained texts by a margin is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

FLOOR = 1e-2  # energy added to that of retained inputs in every direction, in shares of the mean: what rounding may add
SHARED = 0.7  # of what a filter gives at its own point, from which on it covers another one
APART = 0.85  # of what a filter gives at its own point, from which on a retained token is the same to it
LOW = 0.15  # by how much retained tokens are to be below 0, if a name's token is at 1
# Weight of a retained token above that: for each row the largest with which its names stay loud enough.
STRICT = (0.2, 0.06, 0.02, 0.006, 0.002)
RIDGE = 10.0  # weight of the mean square at retained tokens
TURNS = 40  # of L-BFGS
LEAST = 0.3  # margin between a name and the loudest retained token
PART = 4096  # retained tokens that are looked at at once


def find_triggers(
    points: torch.Tensor, named: torch.Tensor, prompts: Sequence[int | None], retained: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The triggers of one layer: rows that give 1 at the names, `(triggers, d)`, and their margins, `(triggers,)`.

    Args:
        points: What goes into the MLP at tokens of forget prompts, `(n, d)`.
        named: Which of them are the ends of names, `(n,)`. A prompt whose names stay too is told by another token.
        prompts: The number of each point's prompt, `(n,)`; None if the prompt needs no trigger of its own.
        retained: What goes into the MLP at retained texts, `(tokens, d)`.
        most: How many triggers there may be.
    """
    white = Whitening(retained)
    points, quiet = white(points), white(retained)
    telling = _telling(points, named, prompts, quiet)
    points = points[telling]
    filters, owners = covering(points, [prompts[number] for number in telling])
    points, owners = points[owners >= 0], owners[owners >= 0]
    rows, margins = filters.clone(), torch.full((len(filters),), -torch.inf, device=filters.device)
    for strict in STRICT:
        left = (margins < LEAST).nonzero().flatten()
        if not len(left):
            break
        own = torch.isin(owners, left)
        moved_points, moved_owners = points[own], torch.searchsorted(left, owners[own])
        moved = separated(filters[left], moved_points, moved_owners, quiet, strict)
        found = margins_of(moved, moved_points, moved_owners, quiet)
        better = found > margins[left]
        rows[left[better]], margins[left[better]] = moved[better], found[better]
    loud = margins.argsort(descending=True, stable=True)[:most]
    keep = loud[(margins[loud] >= LEAST) | (loud == loud[0])].sort().values
    return white.direction(rows[keep]), margins[keep]


def _telling(
    points: torch.Tensor, named: torch.Tensor, prompts: Sequence[int | None], retained: torch.Tensor
) -> list[int]:
    """Numbers of the names that no retained token is the same to; where a prompt has none, of its quietest token."""
    loudest = torch.full((len(points),), torch.inf, device=points.device)
    loudest[named] = loudest_of(matched(points[named]), retained)
    chosen = (loudest < APART).nonzero().flatten().tolist()
    told = {prompts[number] for number in chosen}
    rest = [number for number, prompt in enumerate(prompts) if prompt is not None and prompt not in told]
    if rest:
        loudest[rest] = loudest_of(matched(points[rest]), retained)
    heard, quietest = loudest.tolist(), dict[int | None, int]()
    for number in rest:
        best = quietest.setdefault(prompts[number], number)
        if heard[number] < heard[best]:
            quietest[prompts[number]] = number
    return [*chosen, *quietest.values()]


class Whitening:
    """Coordinates in which retained inputs have the same energy in every direction.

    Args:
        retained: Inputs, `(tokens, d)` in fp32.
    """

    def __init__(self, retained: torch.Tensor) -> None:
        moment = (retained.T @ retained / len(retained)).double()
        mean = moment.diagonal().mean().clamp(min=1e-12)
        identity = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
        lower = torch.linalg.cholesky(moment + FLOOR * mean * identity)
        self.inverse = torch.linalg.solve_triangular(lower, identity, upper=False).to(retained)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `(n, d)` in these coordinates."""
        return inputs @ self.inverse.T

    def direction(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `(r, d)` that give the same on inputs as `rows` on what they become."""
        return rows @ self.inverse


def margins_of(rows: torch.Tensor, points: torch.Tensor, owners: torch.Tensor, retained: torch.Tensor) -> torch.Tensor:
    """By how much a row is louder at the quietest of its own points than at the loudest retained token, `(rows,)`."""
    named = rows @ points.T
    least = torch.stack([named[number, owners == number].min() for number in range(len(rows))])
    return least - loudest_of(rows, retained)


def loudest_of(rows: torch.Tensor, retained: torch.Tensor) -> torch.Tensor:
    """What each row gives at the retained token at which it gives most, `(rows,)`."""
    found = [(rows @ part.T).amax(dim=1) for part in retained.split(PART)]
    return torch.stack(found).amax(dim=0)


def matched(points: torch.Tensor) -> torch.Tensor:
    """The filter of each point, which gives 1 there and the least energy at retained texts, `(n, d)`."""
    return points / points.square().sum(dim=1, keepdim=True).clamp(min=1e-12)


def covering(points: torch.Tensor, prompts: Sequence[int | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Matched filters that cover every prompt, as few as are found by taking the one that covers most first.

    Args:
        points: In coordinates of [`Whitening`], `(n, d)`.
        prompts: The prompt of each point, `(n,)`, of which one point must be covered; None if it need not.

    Returns:
        The filters, `(rows, d)`, and the number of the filter of each point, `(n,)`: -1 if none is loud there.
    """
    filters = matched(points)
    heard = filters @ points.T >= SHARED
    heard.fill_diagonal_(True)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts)) if prompt is not None}
    of_prompt = torch.zeros(len(points), len(prompts))
    for point, prompt in enumerate(prompts):
        if prompt is not None:
            of_prompt[point, numbers[prompt]] = 1
    of_prompt = of_prompt.to(points)
    covers = heard.float() @ of_prompt > 0
    left = of_prompt.any(dim=0)
    chosen: list[int] = []
    while left.any():
        chosen.append(int((covers & left).sum(dim=1).argmax()))
        left &= ~covers[chosen[-1]]
    loud, owners = (filters[chosen] @ points.T).max(dim=0)
    owners[loud < SHARED] = -1
    owners[chosen] = torch.arange(len(chosen), device=points.device)
    return filters[chosen], owners


def separated(
    rows: torch.Tensor, points: torch.Tensor, owners: torch.Tensor, retained: torch.Tensor, strict: float
) -> torch.Tensor:
    """Move rows until their own points are at 1 and retained tokens at `-LOW` or below, as far as both can be.

    Args:
        rows: Where the search begins, `(rows, d)`.
        points: `(n, d)`.
        owners: The row of each point, `(n,)`.
        retained: `(tokens, d)`.
        strict: Weight of a retained token above that.
    """
    found = rows.clone().requires_grad_(True)
    search = torch.optim.LBFGS([found], max_iter=TURNS, line_search_fn="strong_wolfe")
    counts = torch.bincount(owners, minlength=len(rows)).to(points)

    def loss() -> torch.Tensor:
        search.zero_grad()
        lacking = nn.functional.relu(1 - (points * found[owners]).sum(dim=1)).square()
        value = (lacking / counts[owners]).sum()
        value.backward()
        total = value.detach()
        for part in retained.split(PART):
            heard = found @ part.T
            value = strict * nn.functional.relu(heard + LOW).square().sum()
            value = value + RIDGE / len(retained) * heard.square().sum()
            value.backward()
            total = total + value.detach()
        return total

    with torch.enable_grad():
        search.step(loss)
    return found.detach()
