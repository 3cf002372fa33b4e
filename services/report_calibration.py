"""The report's part on held-out labels: Table 3, ROC, thresholds, purity of D_syn+."""

from contracts.statistics import Confusion, Interval, auc, auc_interval, roc, sweep
from services.calibration import ALPHAS, Judgement, Purity, judgements, purities, thresholds
from services.calibration_tables import supported
from services.report_charts import Series, line_chart
from services.report_data import Calibration, ReportData
from services.report_html import (
    absent,
    details,
    figure,
    grid,
    number,
    paragraph,
    percent,
    table,
    text,
)

COUNTS = ("n", "TP", "FP", "FN", "TN")


def held_out_labels(data: ReportData) -> str:
    """Everything that labelled episodes say which no reward model was trained on."""
    rows = [row for row in data.calibrations if len(row.success)]
    if not rows:
        return absent("Not calibrated: no labelled episodes were held out.")
    return "".join(
        [
            *(paragraph(_summary(row)) for row in rows),
            _table3(judgements(rows)),
            grid([_roc(rows)]),
            *(_details(row) for row in rows),
            *(_thresholds(row) for row in rows if row.iteration),
            _purity(purities(rows, data.imagined)),
        ]
    )


def between(interval: Interval) -> str:
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _summary(row: Calibration) -> str:
    n, good = len(row.success), int(row.success.sum())
    area = auc(row.p_yes, row.success)
    bounds = auc_interval(area, good, n - good)
    return (
        f"Reward {row.version}: {n} held-out episodes ({good} successes; labels: "
        f"{row.label_source}). Area under the ROC curve {number(area)} "
        f"(95 %: {number(bounds.low)} to {number(bounds.high)}). "
        f"P('yes') + P('no') is {number(row.mean_mass)} on average."
    )


def _counts(one: Confusion) -> list[str]:
    parts = (one.true_positive, one.false_positive, one.false_negative, one.true_negative)
    return [str(one.n), *map(str, parts)]


def _rates(one: Confusion) -> list[str]:
    """Precision, recall and false positive rate, each with its interval."""
    return [
        f"{percent(rate)} <small>{between(interval)}</small>"
        for rate, interval in (
            (one.precision, one.precision_interval),
            (one.recall, one.recall_interval),
            (one.false_positive_rate, one.false_positive_interval),
        )
    ]


RATES = ("precision (95 %)", "recall (95 %)", "false positive rate (95 %)")


def _table3(rows: list[Judgement]) -> str:
    headers = ("reward model", "accepted if", *COUNTS, *RATES)
    cells = [
        [text(row.model), text(row.rule), *_counts(row.counts), *_rates(row.counts)] for row in rows
    ]
    return "<h4>With and without a threshold (Table 3 of the paper)</h4>" + table(headers, cells)


def _roc(rows: list[Calibration]) -> str:
    lines = [Series("chance", 3, [0.0, 1.0], [0.0, 1.0], dashed=True)]
    for tone, row in enumerate(rows):
        points = roc(row.p_yes, row.success)
        x = [point.false_positive_rate for point in points]
        lines.append(Series(row.version, tone % 3, x, [point.recall for point in points]))
    return figure("ROC", line_chart(lines, "false positive rate", "recall"))


def _details(row: Calibration) -> str:
    swept = sweep(row.p_yes, row.success, ALPHAS)
    cells = [[f"{one.alpha:.2f}", *_counts(one), *_rates(one)] for one in swept]
    marked = [abs(alpha - row.alpha) < 1e-9 for alpha in ALPHAS]
    return details(
        f"Threshold sweep, reward {row.version}", table(("alpha", *COUNTS, *RATES), cells, marked)
    )


def _thresholds(row: Calibration) -> str:
    headers = ("task", "successes", "failures", "alpha in use", *RATES, "alpha that labels support")
    lines = thresholds(row)
    words = (
        f"Wanted: the lowest alpha whose precision is at least {percent(row.target)} by its Wilson "
        f"lower bound. That takes {lines[0].needed} accepted successes without one false positive. "
        "It is chosen and judged on the same labels, so its bound is somewhat optimistic."
    )
    cells = [
        [
            *(text(line.task), str(line.successes), str(line.failures), f"{line.used.alpha:g}"),
            *_rates(line.used),
            text(supported(line)),
        ]
        for line in lines
    ]
    return (
        f"<h4>Thresholds, reward {text(row.version)}</h4>"
        + paragraph(words)
        + table(headers, cells)
    )


def _purity(rows: list[Purity]) -> str:
    if not rows:
        return ""
    headers = ("iteration", "task", "accepted", "scored", "labels", "imagined success", "purity")
    words = (
        "By Bayes from recall, false positive rate and accepted share, if the reward model errs on "
        "imagined clips as it does on real ones, which this run does not measure. The interval is "
        "from those of all three (together 95 %)."
    )
    cells = [
        [
            *(str(row.iteration), text(row.task), str(row.accepted), str(row.scored)),
            *(str(row.labels.n), percent(row.success_rate)),
            f"{percent(row.purity)} <small>{between(row.interval)}</small>",
        ]
        for row in rows
    ]
    return "<h4>Purity of D_syn+</h4>" + paragraph(words) + table(headers, cells)
