"""The formulas of the check, against values worked out by hand or with other means."""

from __future__ import annotations

import ast
import math
from itertools import product
from pathlib import Path

import numpy
import pytest

import peft_unierase
from peft_unierase.checking import scores


def test_truth_ratio_is_the_likelihood_of_right_over_wrong() -> None:
    right, wrong = math.log(2), [math.log(4), math.log(16)]  # probabilities per token of 1/2, 1/4 and 1/16
    assert scores.truth_ratio(right, wrong) == pytest.approx(0.5 / math.sqrt(1 / 4 / 16), abs=1e-6)
    assert scores.truth_ratio(0.0, [1e6]) > 1e300


def test_truth_terms_are_read_in_opposite_directions() -> None:
    ratios = [4.0, 0.25, 1.0]
    assert scores.forget_truth(ratios) == pytest.approx(1 - (0.25 + 0.25 + 1) / 3, abs=1e-6)
    assert scores.utility_truth(ratios) == pytest.approx((0.75 + 0 + 0) / 3, abs=1e-6)
    assert scores.utility_truth([0.0]) == 0.0
    assert scores.forget_truth([0.0]) == 1.0


def test_probability_among_answers() -> None:
    assert scores.chosen_probability(0.6, [0.1, 0.3, 0.2]) == pytest.approx(0.5, abs=1e-6)
    assert scores.chosen_probability(0.0, [0.0]) == 0.0


@pytest.mark.parametrize(
    ("tokens", "entropy"),
    [
        ("", 0.0),
        ("a", 0.0),
        ("aaaa", 0.0),
        ("abcd", 1.0),
        ("aabb", 0.5),
        ("aab", -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3)) / math.log2(3)),
    ],
)
def test_entropy_of_tokens(tokens: str, entropy: float) -> None:
    assert scores.token_entropy(tokens) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize(
    ("matches", "memorised", "extracted"),
    [
        ([True, True, True, True], 1.0, 1.0),
        ([True, True, True, False], 0.75, 0.0),
        ([False, True, False, True, True], 0.6, 0.4),
        ([], 0.0, 0.0),
    ],
)
def test_memorisation_counts_all_matches_and_extraction_those_at_the_end(
    matches: list[bool], memorised: float, extracted: float
) -> None:
    assert scores.exact_memorisation(matches) == pytest.approx(memorised)
    assert scores.extraction_strength(matches) == pytest.approx(extracted)


def test_forget_efficacy_is_one_less_the_mean_of_its_terms() -> None:
    figures = {
        "recall": 0.1,
        "probability": 0.2,
        "truth ratio": 0.3,
        "similarity": 0.4,
        "entailment": 0.0,
        "entropy": 1.0,
    }
    assert scores.forget_efficacy(figures) == pytest.approx(0.8, abs=1e-6)
    del figures["similarity"], figures["entailment"]
    assert scores.forget_efficacy(figures) == pytest.approx(0.8, abs=1e-6)
    assert scores.forget_efficacy({}) is None


def test_utility_is_the_harmonic_mean_over_all_sets() -> None:
    terms = [{"recall": 0.9, "entropy": 0.5}, {"recall": 0.6, "probability": 0.3, "exact memorisation": 0.01}]
    expected = 4 / (1 / 0.9 + 1 / 0.5 + 1 / 0.6 + 1 / 0.3)
    assert scores.model_utility(terms) == pytest.approx(expected, abs=1e-6)
    assert scores.model_utility([{"recall": 0.9}, {"recall": 0.0}]) == 0.0
    assert scores.model_utility([]) is None
    assert scores.balance(0.8, expected) == pytest.approx(2 * 0.8 * expected / (0.8 + expected), abs=1e-6)
    assert scores.balance(None, 1.0) is None


def test_forget_quality_is_the_exact_p_value_of_the_largest_gap_between_the_distributions() -> None:
    erased, reference_model = [0.1, 0.2, 0.9, 1.4], [0.3, 0.5, 1.1, 1.2, 2.0]

    def gap(one: list[float], other: list[float]) -> float:
        at = numpy.array(one + other)
        shares = [(numpy.array(side)[None] <= at[:, None]).mean(axis=1) for side in (one, other)]
        return float(abs(shares[0] - shares[1]).max())

    pooled, seen = erased + reference_model, gap(erased, reference_model)
    gaps = [
        gap(
            [v for v, own in zip(pooled, mask, strict=True) if own],
            [v for v, own in zip(pooled, mask, strict=True) if not own],
        )
        for mask in product([True, False], repeat=len(pooled))
        if sum(mask) == len(erased)
    ]
    expected = sum(each >= seen - 1e-9 for each in gaps) / len(gaps)
    assert scores.forget_quality(erased, reference_model) == pytest.approx(expected, abs=1e-6)
    assert scores.forget_quality(reference_model, reference_model) == pytest.approx(1.0)


def test_an_interval_holds_the_mean_and_shrinks_to_it_where_all_values_are_one() -> None:
    found = scores.interval([0.0] * 20 + [1.0] * 20)
    assert found.low < found.mean == 0.5 < found.high
    assert (found.low, found.high) == pytest.approx((0.35, 0.65), abs=0.03)  # 0.5 -+ 1.96 * sqrt(0.25 / 40)
    assert scores.interval([0.0] * 20 + [1.0] * 20) == found
    assert scores.interval([0.0] * 20 + [1.0] * 20, confidence=0.5).high < found.high
    assert scores.interval([0.3, 0.3]) == scores.Interval(0.3, 0.3, 0.3)


def test_what_an_attack_is_held_against_is_named_in_one_file() -> None:
    names = {scores.REFERENCE_MODEL, scores.RENAMED}
    package = Path(peft_unierase.__file__).parent
    holders = {
        file.name
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert holders == {"scores.py"}
