"""[UNL]'s output row, solved: what tells the starts of answers to forget questions from all other places.

With the updates as they are, the row that wins at the ones and stays silent at the others is the minimum of a convex
function of what goes into the head there. Solved anew every few steps, it asks no more of the updates than it must;
trained beside them it made them several times as large.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ...lm.logits import Logits
from ..run_context import RunContext
from ..silence import Silence, Tensors
from .texts import Text, taken

LEAD = 3.0  # nats by which [UNL] is to lead all other tokens together
RIDGE = 0.2  # on the mean square of what the row makes of states that are alike in all directions
TURNS = 60  # of L-BFGS
ANSWER_START, NEAR_START, REFUSAL, KEPT = 3, 4, 5, 6  # kinds of places with the updates; see `Silence`


class OutputRow:
    """Solves the row as the updates change.

    Args:
        run: With the adapter in place.
        refused: Forget prompts with [UNL], which is the first place's target, and the refusal after it.
        near: Retained texts whose first place is the start of the answer.
        general: Other retained texts.
        quiet: Where [UNL] must not come up without the updates.
        head: What the model makes of its head's outputs.
        most: What its log-probability must stay under there, and with the updates at retained texts and in refusals, in
            nats.
    """

    def __init__(
        self,
        run: RunContext,
        refused: Sequence[Text],
        near: Sequence[Text],
        general: Sequence[Text],
        quiet: Silence,
        head: Logits,
        most: float,
    ) -> None:
        self.run, self.refused, self.near, self.general = run, refused, near, general
        self.quiet, self.head, self.most = quiet, head, most

    @torch.no_grad()
    def solve(self, step: int, count: int) -> None:
        """Set the row.

        Args:
            step: Of the fit; what is looked at depends on it.
            count: How many texts of each kind are looked at, and four times as many starts of retained answers.
        """
        order = random.Random(f"{self.run.seed} {step}")
        refused = self._read(self.refused, count, order, ANSWER_START, REFUSAL)
        starts = [
            Text(text.ids[: text.places[0] + 1], text.places[:1], text.top, text.probabilities) for text in self.near
        ]
        near = self._read(starts, 4 * count, order, NEAR_START, KEPT)
        kept = self._read([*self.near, *self.general], count, order, KEPT, KEPT)
        found = Silence.joined([*refused, *near, *kept])
        there = found.kinds == ANSWER_START
        row = self.run.rows()[1]
        row.copy_(solved(found.some(there), Silence.joined([self.quiet, found.some(~there)]), row, self.most))

    def _read(self, texts: Sequence[Text], count: int, order: random.Random, first: int, others: int) -> list[Silence]:
        """The places of some texts, with the kind of each one's first and that of its others."""
        run, some = self.run, order.sample(list(texts), min(len(texts), count))
        sequences, places = [text.ids for text in some], [text.places for text in some]

        def silent(number: int, logits: torch.Tensor, states: torch.Tensor) -> Tensors:
            kinds = torch.tensor([first, *[others] * (len(places[number]) - 1)])
            return Silence.at(states, logits, kinds, run.spare.token_id, self.head).tensors

        found = taken(run.model, sequences, places, run.pad, run.device, silent, run.processes)
        return [Silence(*tensors, run.spare.token_id, self.head) for _, tensors in found]


def solved(starts: Silence, quiet: Silence, row: torch.Tensor, most: float) -> torch.Tensor:
    """The row, `(d,)`, with the least squares of what it lacks at `starts` and has too much elsewhere.

    Args:
        starts: Where [UNL] must win.
        quiet: Where its log-probability must stay under `most`.
        row: Where the search begins.
        most: In nats.
    """
    # In nats, whatever the model makes of its head's outputs.
    spread = starts.states.pow(2).mean().sqrt() * starts.logits.slope
    with torch.enable_grad():
        found = (row.detach().float() * spread).requires_grad_(True)
        search = torch.optim.LBFGS([found], max_iter=TURNS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            search.zero_grad()
            own = found / spread
            lacking = torch.relu(LEAD - starts.lead(own)).pow(2).mean()
            value = lacking + quiet.excess(own, most, 2) + RIDGE * found.pow(2).sum()
            value.backward()
            return value

        search.step(loss)
    return (found.detach() / spread).to(row)
