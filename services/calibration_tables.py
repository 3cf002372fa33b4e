"""A calibration as tables on the console: the numbers of the report's part on held-out labels."""

import math
from collections.abc import Iterable

from rich.table import Table

from contracts.statistics import Confusion, Interval, auc, auc_interval, sweep
from services.calibration import (
    ALPHAS,
    Threshold,
    judgements,
    purities,
    thresholds,
)
from services.report_data import Calibration, ReportData

COUNTS = ("n", "TP", "FP", "FN", "TN")
RATES = ("precision", "recall", "false positives")


def tables(data: ReportData) -> list[Table]:
    """Table 3 of the paper; of the models in use the sweep and the thresholds; purity of D_syn+."""
    rows = [row for row in data.calibrations if len(row.success)]
    used = [row for row in rows if row.iteration]
    found = [_table3(rows)]
    for row in used:
        found += [_sweep(row), _thresholds(row)]
    return [*found, *_purity(data)]


def rate(value: float, interval: Interval) -> str:
    """``71 % [60, 80]``; a dash where there is no such rate."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _cells(one: Confusion) -> list[str]:
    counts = (one.n, one.true_positive, one.false_positive, one.false_negative, one.true_negative)
    return [
        *map(str, counts),
        rate(one.precision, one.precision_interval),
        rate(one.recall, one.recall_interval),
        rate(one.false_positive_rate, one.false_positive_interval),
    ]


def _made(title: str, headers: Iterable[str]) -> Table:
    table = Table(title=title)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _table3(rows: list[Calibration]) -> Table:
    table = _made(
        "held-out labels, with and without threshold (95 % Wilson intervals)",
        ("reward model", "accepted if", *COUNTS, *RATES),
    )
    for row in judgements(rows):
        table.add_row(row.model, row.rule, *_cells(row.counts))
    table.caption = "\n".join(map(_area, rows))
    return table


def _area(row: Calibration) -> str:
    n, good = len(row.success), int(row.success.sum())
    area = auc(row.p_yes, row.success)
    bounds = auc_interval(area, good, n - good)
    return (
        f"{row.version}: area under the ROC curve {area:.3f} [{bounds.low:.3f}, {bounds.high:.3f}],"
        f" {good} successes and {n - good} failures labelled by {row.label_source},"
        f" P('yes') + P('no') {row.mean_mass:.3f}"
    )


def _sweep(row: Calibration) -> Table:
    table = _made(f"reward {row.version} at every alpha", ("alpha", *COUNTS, *RATES))
    for one in sweep(row.p_yes, row.success, ALPHAS):
        table.add_row(f"{one.alpha:.2f}", *_cells(one))
    return table


def _thresholds(row: Calibration) -> Table:
    table = _made(
        f"reward {row.version}: alpha for a precision of {row.target:.0%} (Wilson lower bound)",
        ("task", "alpha in use", *COUNTS, *RATES, "alpha that labels support"),
    )
    for line in thresholds(row):
        table.add_row(line.task, f"{line.used.alpha:g}", *_cells(line.used), supported(line))
    return table


def supported(line: Threshold) -> str:
    """The threshold that a task's labels support, in words."""
    if line.chosen is None:
        return f"none: it takes {line.needed} accepted successes, more if a failure is among them"
    one = line.chosen
    return (
        f"{one.alpha:g}: precision {rate(one.precision, one.precision_interval)}, "
        f"{one.true_positive} of {one.accepted} accepted"
    )


def _purity(data: ReportData) -> list[Table]:
    rows = purities(data.calibrations, data.imagined)
    if not rows:
        return []
    table = _made(
        "purity of D_syn+ by Bayes, if imagined clips are judged as well as real ones",
        ("iteration", "task", "accepted", "labels", "imagined success", "purity (joint 95 %)"),
    )
    for row in rows:
        table.add_row(
            str(row.iteration),
            row.task,
            f"{row.accepted} of {row.scored}",
            str(row.labels.n),
            "-" if math.isnan(row.success_rate) else f"{row.success_rate:.0%}",
            rate(row.purity, row.interval),
        )
    return [table]
