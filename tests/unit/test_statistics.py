"""Intervals and counts against published and hand-worked numbers."""

import math

import numpy as np
import pytest

from contracts.statistics import (
    Interval,
    agreement,
    auc,
    auc_interval,
    confusion,
    difference,
    sweep,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(successes, n, low, high):
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_by_hand():
    # z = 2, 8 of 16: (1/2 + 1/8 -+ 2 sqrt(1/64 + 1/256)) / (1 + 1/4), sqrt = sqrt(5)/16
    half = 2 * math.sqrt(5) / 16 / 1.25
    found = wilson(8, 16, z=2.0)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_wilson_edges():
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)
    with pytest.raises(ValueError, match="-1 successes"):
        wilson(-1, 10)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 10), (10, 10), 0.6075, 1.0000),
        ((0, 10), (0, 10), -0.2775, 0.2775),
    ],
)
def test_difference_equals_published_intervals(first, second, low, high):
    found = difference(first, second)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    swapped = difference(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-high, -low), abs=6e-5)


def test_difference_to_nothing_says_nothing():
    assert difference((0, 0), (5, 10)) == Interval(-1.0, 1.0)


P_YES = np.array([0.9, 0.8, 0.3, 0.95, 0.1, np.nan])
SUCCESS = np.array([True, True, True, False, False, True])


def test_confusion_is_strict_and_never_accepts_an_error():
    found = confusion(P_YES, SUCCESS, 0.8)
    counts = (found.true_positive, found.false_positive, found.false_negative, found.true_negative)
    assert counts == (1, 1, 3, 1)
    assert (found.precision, found.recall, found.false_positive_rate) == (0.5, 0.25, 0.5)


def test_rates_of_nothing_are_nan():
    nothing = confusion(np.array([]), np.array([], dtype=bool), 0.5)
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.recall)
    assert math.isnan(nothing.false_positive_rate)


def test_sweep_conserves_every_episode():
    for one in sweep(P_YES, SUCCESS, [0.0, 0.25, 0.5, 0.99]):
        assert one.true_positive + one.false_negative == 4
        assert one.false_positive + one.true_negative == 2


def test_auc_counts_pairs():
    # successes 0.9 0.8 0.3 against failures 0.95 0.1: each beats 0.1 only
    assert auc(P_YES, SUCCESS) == 0.5
    assert auc(np.array([0.5, 0.5, 0.2]), np.array([True, False, False])) == 0.75  # a tie is half
    assert math.isnan(auc(np.array([0.5]), np.array([True])))


def test_agreement_compares_accepted_shares_of_starts_with_what_happened_there():
    """Shares of successes 1, 1/2; of failures 1/2, 0: pairs 1 > 1/2, 1 > 0, 1/2 = 1/2, 1/2 > 0."""
    said = {"a": [True, True], "b": [True, False], "c": [False, True], "d": [False, False]}
    real = {"a": True, "b": True, "c": False, "d": False, "never imagined": True}
    found = agreement(said | {"nobody labelled": [True], "nobody scored": []}, real)
    assert found.area == (1 + 1 + 0.5 + 1) / 4
    assert (found.successes, found.failures) == (2, 2)
    assert found.interval == auc_interval(found.area, 2, 2)


def test_a_judge_that_says_yes_to_all_tells_no_starts_apart():
    said = {str(k): [True] * 6 for k in range(50)}
    assert agreement(said, {str(k): k % 3 > 0 for k in range(50)}).area == 0.5


@pytest.mark.parametrize("outcome", [True, False])
def test_with_one_real_outcome_nobody_can_tell(outcome):
    found = agreement({"a": [True], "b": [False]}, {"a": outcome, "b": outcome})
    assert math.isnan(found.area)
    assert found.interval == Interval(0.0, 1.0)
