"""Thresholds, Table 3 and purity, held against numbers worked by hand."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from contracts.statistics import Confusion, Interval, auc_interval, roc, wilson
from services.calibration import (
    ALPHAS,
    DIRECT,
    choose,
    judgements,
    purities,
    purity,
    thresholds,
)
from services.calibration_tables import tables
from services.report_calibration import held_out_labels
from services.report_data import Calibration, Imagined, ReportData

GOOD = [0.95, 0.9, 0.85, 0.4]
BAD = [0.82, 0.3, 0.2, 0.1]


def judged(name: str = "v1 (fine-tuned)", mass: float = 1.0, iteration: int = 1) -> Calibration:
    """Book: the first two successes and failures; draw: the others. Draw wants more."""
    return Calibration(
        name,
        0.8,
        np.array([*GOOD, *BAD]) * mass,
        np.array([True] * 4 + [False] * 4),
        "human",
        np.full(8, mass),
        ("book", "book", "draw", "draw") * 2,
        {"book": 0.8, "draw": 0.9},
        0.9,
        iteration,
    )


def cells(one: Confusion) -> tuple[int, int, int, int]:
    return one.true_positive, one.false_positive, one.false_negative, one.true_negative


def test_table_3_has_every_model_with_and_without_threshold():
    """Direct: .95 .9 .85 and .82 are above one half. Thresholds: book accepts .95 .9 .82, draw
    nothing above .9. Spread over other words, nothing exceeds alpha, and answers stay the same."""
    rows = judgements([judged("v0 (zero-shot)", mass=0.5, iteration=0), judged()])
    assert [row.model for row in rows] == ["v0 (zero-shot)"] * 2 + ["v1 (fine-tuned)"] * 2
    assert [row.rule for row in rows] == [DIRECT, "P('yes') > alpha of the task"] * 2
    assert [cells(row.counts) for row in rows] == [
        (3, 1, 1, 3),
        (0, 0, 4, 4),
        (3, 1, 1, 3),
        (2, 1, 2, 3),
    ]


def test_thresholds_are_by_task():
    """Three lines; book at .8 accepts .95 .9 and the failure of .82."""
    book, draw, everything = thresholds(judged())
    assert (book.task, cells(book.used)) == ("book", (2, 1, 0, 1))
    assert (draw.task, draw.used.alpha, cells(draw.used)) == ("draw", 0.9, (0, 0, 2, 2))
    assert (everything.used.alpha, cells(everything.used)) == (0.8, (3, 1, 1, 3))
    assert book.chosen is None  # two successes support no precision of 90 %
    assert book.needed == 35  # 35 of 35 has a Wilson lower bound of 35 / (35 + 1.96^2) = 0.901


def test_needed_count_is_the_least_that_suffices():
    for n, enough in ((34, False), (35, True)):
        assert (wilson(n, n).low >= 0.9) is enough
        p_yes, success = np.full(n, 0.7), np.ones(n, bool)
        assert (choose(p_yes, success, 0.9) is not None) is enough


def test_choice_is_the_lowest_threshold_that_is_pure_enough():
    """40 successes at .9, 40 failures at .62: alpha .65 is the first of the grid above them.

    Ten more failures at .88 move it nowhere (50 accepted, 40 right: bound 0.67), then target 0.6
    is met at .65 already, and 0.9 never below .9, where nothing is left.
    """
    p_yes = np.array([0.9] * 40 + [0.62] * 40)
    success = np.array([True] * 40 + [False] * 40)
    found = choose(p_yes, success, 0.9)
    assert found is not None
    assert (found.alpha, cells(found)) == (0.65, (40, 0, 0, 40))
    mixed, label = np.append(p_yes, [0.88] * 10), np.append(success, [False] * 10)
    assert choose(mixed, label, 0.9) is None
    loose = choose(mixed, label, 0.6)
    assert loose is not None
    assert loose.alpha == 0.65


def counts(tp: int, fn: int, fp: int, tn: int) -> Confusion:
    return Confusion(0.8, tp, fp, fn, tn)


def test_purity_by_bayes():
    """TPR .8, FPR .05. At a success rate of 10 % the accepted share is .08 + .045 = .125, of which
    .08 are right: 64 % (reference/reward_and_metrics.md, section 5). At 60 %: .48 of .5."""
    labels = counts(80, 20, 5, 95)
    rate, pure, around = purity(labels, 125, 1000)
    assert (rate, pure) == pytest.approx((0.1, 0.64))
    assert around.low < 0.64 < around.high
    assert purity(labels, 500, 1000)[:2] == pytest.approx((0.6, 0.96))
    assert purity(counts(800, 200, 50, 950), 125, 1000)[2].low > around.low  # more labels, surer


def test_purity_at_the_ends():
    labels = counts(80, 20, 5, 95)
    assert purity(labels, 30, 1000)[:2] == (0.0, 0.0)  # fewer accepted than false alarms alone
    assert purity(labels, 900, 1000)[:2] == (1.0, 1.0)
    nothing = purity(labels, 0, 1000)
    assert math.isnan(nothing[1])
    assert nothing[2] == Interval(0.0, 1.0)
    useless = purity(counts(5, 5, 5, 5), 10, 20)
    assert math.isnan(useless[1])
    assert math.isnan(purity(counts(0, 0, 1, 5), 10, 20)[1])


def test_purity_interval_holds_the_truth_as_often_as_it_says():
    """Drawn worlds: 60 labels of each outcome, 200 imagined at 30 % success, TPR .85, FPR .1."""
    rng = np.random.default_rng(0)
    base, hit, alarm = 0.3, 0.85, 0.1
    truth = base * hit / (base * hit + (1 - base) * alarm)
    inside = 0
    for _ in range(300):
        tp, fp = rng.binomial(60, hit), rng.binomial(60, alarm)
        accepted = rng.binomial(200, base * hit + (1 - base) * alarm)
        around = purity(counts(tp, 60 - tp, fp, 60 - fp), accepted, 200)[2]
        inside += around.low <= truth <= around.high
    assert inside >= 285


def test_every_iteration_is_judged_by_the_model_of_its_time():
    rows = [judged("v0", iteration=0), judged("v1"), judged("v3", mass=0.5, iteration=3)]
    dreams = [Imagined(i, "book", 40, 20, 20, 0, 1, 2) for i in (1, 2, 3)]
    found = purities(rows, [*dreams, Imagined(1, "stack", 9, 4, 5, 0, 1, 2)])
    assert [(row.iteration, cells(row.labels)) for row in found] == [
        (1, (2, 1, 0, 1)),
        (2, (2, 1, 0, 1)),
        (3, (0, 0, 2, 2)),
    ]
    assert purities([judged(iteration=0)], dreams) == []


def test_roc_runs_from_nothing_to_everything():
    points = roc(np.array([0.9, 0.5, 0.5, 0.1, np.nan]), np.array([1, 1, 0, 0, 1], bool))
    assert [(p.alpha, p.false_positive_rate, p.recall) for p in points] == [
        (0.9, 0.0, 0.0),
        (0.5, 0.0, 0.5),
        (0.1, 0.5, 1.0),
        (-math.inf, 1.0, 1.0),
    ]


def test_area_interval_closed_forms():
    """One pair, won: (1 - A)^2 = z^2 A (1 - A) at A = 1 / (1 + z^2), Wilson's bound of 1 of 1."""
    found = auc_interval(1.0, 1, 1)
    assert (found.low, found.high) == pytest.approx((wilson(1, 1).low, 1.0))
    lost = auc_interval(0.0, 1, 1)
    assert (lost.low, lost.high) == pytest.approx((0.0, wilson(0, 1).high))
    assert auc_interval(0.7, 0, 9) == Interval(0.0, 1.0)
    # Hanley and McNeil's variance at the bound, by Q1 = A / (2 - A) and Q2 = 2 A^2 / (1 + A), with
    # the mean of both sample sizes in the place of each.
    area, m, n = 0.8, 30, 20
    found = auc_interval(area, m, n)
    for true in (found.low, found.high):
        q1, q2 = true / (2 - true), 2 * true**2 / (1 + true)
        rest = (m + n) / 2 - 1
        variance = (true * (1 - true) + rest * (q1 - true**2) + rest * (q2 - true**2)) / (m * n)
        assert (area - true) ** 2 == pytest.approx(1.959963984540054**2 * variance, rel=1e-6)


def test_area_interval_covers():
    """Areas of two Gaussians a distance of 1.2 apart: true area Phi(1.2 / sqrt 2) = 0.8019."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        good, bad = rng.normal(1.2, 1, 25), rng.normal(0, 1, 20)
        found = auc_interval(float((good[:, None] > bad).mean()), 25, 20)
        inside += found.low <= 0.8019 <= found.high
    assert inside >= 372  # 95 % of 400, less two deviations


def test_a_row_without_its_task_is_refused():
    row = judged()
    with pytest.raises(ValueError, match="thresholds of tasks are missing"):
        Calibration(
            *("v1", 0.8, row.p_yes, row.success, "human", row.mass, row.tasks), {"book": 0.8}, 0.9
        )


def shown(data: ReportData) -> str:
    text = io.StringIO()
    console = Console(width=240, file=text)
    for table in tables(data):
        console.print(table)
    return text.getvalue()


def test_console_and_page_say_the_same():
    dream = Imagined(1, "book", 40, 20, 20, 0, 1, 2)
    data = ReportData(
        "t", "now", {}, calibrations=[judged("v0", 0.5, 0), judged()], imagined=[dream]
    )
    page, console = held_out_labels(data), shown(data)
    for words in ("v1 (fine-tuned)", "alpha of the task", "book"):
        assert words in page
        assert words in console
    assert console.count("> alpha of the task") == 2
    assert "75 % [30, 95]" in console  # 3 of 4, Wilson
    assert "75.0 % <small>30.1 % to 95.4 %</small>" in page
    assert "none: it takes 35 accepted successes" in console
    assert len(ALPHAS) == 19
    assert page.count("<svg") == 1
