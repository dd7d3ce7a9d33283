"""The methods that are compared, in the order of the tables. Their modules are loaded when they are used."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from peft_unierase import Fact
from peft_unierase.data.facts import DEFAULT_REFUSALS

from ..budget import Budget, Erased

REFERENCE = "reference_model"


@dataclass(frozen=True)
class Method:
    """One way to make a model forget.

    Attributes:
        name: What commands and results call it.
        title: What tables call it.
        paper: Where it was published.
        module: Where it is; `None` for the reference model, which is loaded and not made.
    """

    name: str
    title: str
    paper: str
    module: str | None

    def load(self) -> ModuleType:
        """Its module, which has `erase` and `GRID`.

        Raises:
            ValueError: It is the reference model.
        """
        if self.module is None:
            raise ValueError(f"{self.name} is loaded from its folder and not made; it has no module")
        return import_module(self.module)

    @property
    def grid(self) -> tuple[dict[str, Any], ...]:
        """Settings to try, the paper's first; a single empty one for the reference model."""
        return self.load().GRID if self.module else ({},)

    def erase(
        self,
        model: Any,
        tokenizer: Any,
        forget: Sequence[Fact],
        retain: Sequence[Fact],
        budget: Budget,
        *,
        seed: int = 0,
        refusals: Sequence[str] = DEFAULT_REFUSALS,
        **settings: Any,
    ) -> Erased:
        """Run it.

        Args:
            model: A plain causal language model, which may be wrapped or changed in place.
            tokenizer: Its tokenizer, which may be changed.
            forget: What must go: questions and answers alone.
            retain: What must stay.
            budget: What may be used.
            seed: Of everything random.
            refusals: Sentences that decline, for methods that teach them.
            **settings: Of the method; see `grid`.
        """
        make = self.load().erase
        if "refusals" in inspect.signature(make).parameters:
            settings = {"refusals": refusals, **settings}
        return make(model, tokenizer, forget, retain, budget, seed=seed, **settings)


def _method(name: str, title: str, paper: str) -> Method:
    return Method(name, title, paper, f"{__name__}.{name}")


_ALL = (
    _method("ga", "Gradient ascent", "arXiv 2210.01504"),
    _method("gd", "Gradient difference", "arXiv 2203.12817"),
    _method("ga_kl", "GA + KL", "arXiv 2401.06121"),
    _method("npo_gd", "NPO + GD", "arXiv 2404.05868"),
    _method("npo_kl", "NPO + KL", "arXiv 2404.05868"),
    _method("simnpo", "SimNPO", "arXiv 2410.07163"),
    _method("dpo", "DPO to refusals", "arXiv 2305.18290"),
    _method("idk", "IDK + GD", "arXiv 2401.06121"),
    _method("idk_ap", "IDK + AP", "arXiv 2410.08109"),
    _method("me", "Maximised entropy + GD", "arXiv 2410.08109"),
    _method("rmu", "RMU", "arXiv 2403.03218"),
    _method("undial", "UNDIAL", "arXiv 2402.10052"),
    _method("elm", "ELM-like", "arXiv 2410.02760"),
    _method("task_vector", "Task vector", "arXiv 2212.04089"),
    _method("alphaedit", "AlphaEdit to a refusal", "arXiv 2410.02355"),
    _method("lunar", "LUNAR-like", "arXiv 2502.07218"),
    _method("selective", "CIR-like", "arXiv 2509.11816"),
    _method("in_context", "System prompt", "arXiv 2403.03329"),
    _method("embedding_filter", "Embedding filter", "arXiv 2604.14644"),
    _method("unierase_paper", "UniErase, as published", "arXiv 2505.15674"),
    _method("unierase", "UniErase, default", "this package"),
    Method(REFERENCE, "Reference model", "arXiv 2401.06121", None),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
