"""The results of a replay evaluation as a table on the terminal."""

import math

from rich.table import Table

from services.replay_report_data import ReplayReport
from services.replay_report_numbers import Distance, Mean, outcomes, table


def results_table(report: ReplayReport) -> Table:
    """Wrist and all views of every variant; what a metric lacks is said, not left out."""
    rows = [row for row in table(report) if row.view in ("wrist", "all")]
    drawn = Table(title=_title(report))
    for name in ("variant", "view", "clips", "PSNR [dB]", "SSIM", "LPIPS", "FID", "FVD"):
        drawn.add_column(name)
    for row in rows:
        drawn.add_row(
            row.variant,
            row.view,
            str(row.clips),
            mean(row.psnr, 2),
            mean(row.ssim, 3),
            mean(row.lpips, 3) if row.lpips else "unavailable",
            _distance(row.fid),
            _distance(row.fvd),
        )
    for name, reason in report.unavailable.items():
        drawn.caption = f"{drawn.caption or ''}{name}: unavailable ({reason})\n"
    matrix = [o for o in outcomes(report) if not o.task and o.truth == "label" and o.counts.n]
    for one in matrix:
        c = one.counts
        words = f"TP {c.true_positive} FP {c.false_positive} FN {c.false_negative} "
        words += f"TN {c.true_negative} of {c.n} labelled"
        drawn.caption = f"{drawn.caption or ''}success, {one.variant}: {words}\n"
    return drawn


def _title(report: ReplayReport) -> str:
    seconds = report.config["seconds"]
    return f"recorded actions replayed for {seconds:g} s (mean, 95 % over episodes)"


def mean(value: Mean, digits: int) -> str:
    low, high = value.interval.low, value.interval.high
    between = f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else ""
    return f"{value.value:.{digits}f}{between}"


def _distance(value: Distance | None) -> str:
    if value is None:
        return "unavailable"
    if math.isnan(value.value):
        return f"unavailable: {value.reason}"
    return f"{value.value:.1f} (n={value.n}; floor {value.floor:.1f} at n={value.half_n})"
