"""The formulas: from log-likelihoods and matches to figures, and from figures to scores. No model in here.

Every term is 1 where a model knows the answers and 0 where it does not, so that forget efficacy is one less their mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import Any

from ..errors import MissingPackageError

FORGET_TERMS = ("recall", "probability", "truth ratio", "similarity", "entailment")
UTILITY_TERMS = ("recall", "probability", "truth ratio", "entropy", "similarity", "entailment")
RESAMPLES = 2000
REFERENCE_MODEL, RENAMED, FLOOR = "reference model", "renamed base", "floor"  # what an attack is held against
LEFT = 0.2  # of what luck leaves, the least that excesses are shares of


def truth_ratio(paraphrased: float, perturbed: Sequence[float]) -> float:
    """How much likelier a right answer is than wrong ones of the same form (TOFU, arXiv 2401.06121, section 2.2.2).

    Args:
        paraphrased: Mean negative log-likelihood of the right answer in other words, in nats per token.
        perturbed: The same of the wrong answers, at least one.

    Returns:
        `exp(mean(perturbed) - paraphrased)`: above 1 where the right answer is likelier.
    """
    return math.exp(min(fmean(perturbed) - paraphrased, 700.0))


def forget_truth(ratios: Sequence[float]) -> float:
    """`1 - mean(min(r, 1/r))`: 0 for a model that takes right and wrong answers for equally likely."""
    return 1 - fmean(min(ratio, 1 / ratio) if ratio else 0.0 for ratio in ratios)


def utility_truth(ratios: Sequence[float]) -> float:
    """`mean(max(0, 1 - 1/r))`: 1 for a model that finds right answers far likelier than wrong ones."""
    return fmean(max(0.0, 1 - 1 / ratio) if ratio else 0.0 for ratio in ratios)


def chosen_probability(true: float, wrong: Sequence[float]) -> float:
    """Probability of the true answer among the true and the wrong ones, from their probabilities per token."""
    total = true + sum(wrong)
    return true / total if total else 0.0


def token_entropy(tokens: Sequence[Hashable]) -> float:
    """Unigram entropy of a text over the most it could have, `log2(len)`; 0 for one token or none.

    It is low where a model repeats itself.
    """
    if len(tokens) < 2:
        return 0.0
    shares = [count / len(tokens) for count in Counter(tokens).values()]
    return -sum(share * math.log2(share) for share in shares) / math.log2(len(tokens))


def exact_memorisation(matches: Sequence[bool]) -> float:
    """Share of the answer's tokens that are the likeliest where the ones before it are given (arXiv 2205.10770)."""
    return fmean(matches) if matches else 0.0


def extraction_strength(matches: Sequence[bool]) -> float:
    """How much of an answer comes by itself once its beginning is given, `1 - k / n` for the shortest one (2004.15011).

    With these `k` tokens given, greedy decoding says the other `n - k` to the letter.
    """
    given = len(matches)
    while given and matches[given - 1]:
        given -= 1
    return 1 - given / len(matches) if matches else 0.0


def forget_efficacy(figures: Mapping[str, float]) -> float | None:
    """FE: one less the mean of the forget set's terms (UniErase, arXiv 2505.15674); those that are missing are left
    out.
    """
    terms = [figures[name] for name in FORGET_TERMS if name in figures]
    return 1 - fmean(terms) if terms else None


def model_utility(figures: Sequence[Mapping[str, float]]) -> float | None:
    """MU: harmonic mean of the terms of every retain set, 0 as soon as one of them is; missing ones are left out."""
    terms = [max(0.0, each[name]) for each in figures for name in UTILITY_TERMS if name in each]
    return harmonic_mean(terms) if terms else None


def balance(efficacy: float | None, utility: float | None) -> float | None:
    """Harmonic mean of FE and MU."""
    if efficacy is None or utility is None:
        return None
    return harmonic_mean([max(0.0, efficacy), max(0.0, utility)])


def beyond_chance(leaks: Sequence[float], chance: Sequence[float]) -> list[float]:
    """How far each leak is beyond luck, as a share of what luck leaves: 0 on average for a model with luck alone.

    What is below the mean of `chance` counts as that mean, on both sides. Otherwise facts that are declined, which
    share less with the answer than any honest try, would make up for facts that come back. Of figures that are 0 or 1
    the mean is the difference between both means.

    Args:
        leaks: One a fact, 0 to 1.
        chance: What luck gives, 0 to 1, any number of figures but none.
    """
    least = fmean(chance)
    lucky = fmean(max(value, least) for value in chance)
    return [(max(leak, least) - lucky) / max(1 - least, LEFT) for leak in leaks]


def statistics() -> Any:
    """scipy's statistics.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingPackageError('the check needs scipy: pip install "peft-unierase[check]"') from error
    return stats


def forget_quality(erased: Sequence[float], reference_model: Sequence[float]) -> float:
    """TOFU's forget quality: p-value of a two-sample Kolmogorov-Smirnov test between truth ratios.

    Near 1 where the erased model cannot be told from one that never saw the facts. With few facts it is never small.
    """
    return float(statistics().ks_2samp(erased, reference_model).pvalue)


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int = 0, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap of a mean.

    Args:
        values: One a fact, at least one.
        seed: Of the resamples.
        confidence: Two-sided.
    """
    import numpy

    mean = fmean(values)
    if len(values) < 2 or min(values) == max(values):
        return Interval(mean, mean, mean)
    found = (
        statistics()
        .bootstrap(
            (numpy.asarray(values, dtype=float),),
            numpy.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="percentile",
            rng=numpy.random.default_rng(seed),
        )
        .confidence_interval
    )
    return Interval(mean, float(found.low), float(found.high))
