"""What follows from a report's data by arithmetic, and all of it as JSON."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from contracts.statistics import (
    Confusion,
    Interval,
    auc,
    auc_interval,
    counted,
    difference,
    roc,
    sweep,
)
from services.calibration import ALL_TASKS, ALPHAS, judgements, purities, thresholds
from services.report_data import Calibration, Evaluation, ReportData

RATES = ("frames_per_second", "trajectories_per_hour")
TRUTH = ("purity", "interval", "recall", "base_rate")


def stages(evaluations: Iterable[Evaluation]) -> list[str]:
    """Stage names in the order of their first row, controls last."""
    rows = sorted(evaluations, key=lambda row: row.control)
    return list(dict.fromkeys(row.stage for row in rows))


def tasks(evaluations: Iterable[Evaluation]) -> list[str]:
    return list(dict.fromkeys(row.task for row in evaluations))


def pooled(evaluations: list[Evaluation]) -> list[Evaluation]:
    """One row per stage over the tasks that every evaluated stage has; empty if there are none.

    A stage that lacks some task is not compared on easier ones: it is pooled as "not evaluated".
    """
    every = set(tasks(evaluations))
    rows = []
    for stage in stages(evaluations):
        own = [row for row in evaluations if row.stage == stage]
        counts = {row.task: row.successes for row in own if row.successes is not None}
        whole = set(counts) == every and bool(every)
        total = sum(counts.values()) if whole else None
        n = sum(row.n for row in own) if whole else 0
        seeds = _together(row.seeds for row in own) if whole else ""
        rows.append(Evaluation(stage, ALL_TASKS, total, n, seeds, own[0].control))
    return rows


def _together(seeds: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(one for one in seeds if one))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rate of ``after`` minus that of ``before``, over all tasks."""

    before: str
    after: str
    change: float
    interval: Interval
    n: tuple[int, int]
    seeds: str

    @property
    def conclusion(self) -> str:
        if self.interval.low > 0:
            return "higher, beyond chance at 95 %"
        if self.interval.high < 0:
            return "lower, beyond chance at 95 %"
        return "not distinguishable from no change"


def comparisons(evaluations: list[Evaluation]) -> list[Comparison]:
    """The newest policy against the base and against every control."""
    known = [row for row in pooled(evaluations) if row.successes is not None and row.n]
    own = [row for row in known if not row.control]
    if not own:
        return []
    last = own[-1]
    before = [*own[:1], *(row for row in known if row.control)]
    return [_compare(row, last) for row in before if row.stage != last.stage]


def _compare(before: Evaluation, after: Evaluation) -> Comparison:
    a, b = (before.successes or 0, before.n), (after.successes or 0, after.n)
    change = after.rate - before.rate
    seeds = _together((before.seeds, after.seeds))
    return Comparison(
        before.stage, after.stage, change, difference(a, b), (before.n, after.n), seeds
    )


def _confusion(row: Confusion) -> dict[str, Any]:
    derived = {
        "precision": row.precision,
        "precision_interval": row.precision_interval,
        "recall": row.recall,
        "recall_interval": row.recall_interval,
        "false_positive_rate": row.false_positive_rate,
        "false_positive_interval": row.false_positive_interval,
        "n": row.n,
    }
    return plain(row) | plain(derived)


def calibrated(row: Calibration) -> dict[str, Any]:
    """Area under the ROC curve and its points, the sweep, and every task's threshold."""
    good = int(row.success.sum())
    area = auc(row.p_yes, row.success)
    return {
        "mean_mass": plain(row.mean_mass),
        "auc": plain(area),
        "auc_interval": plain(auc_interval(area, good, len(row.success) - good)),
        "at_alpha": _confusion(counted(row.p_yes > row.thresholds, row.success, row.alpha)),
        "sweep": [_confusion(one) for one in sweep(row.p_yes, row.success, ALPHAS)],
        "roc": [
            plain({"alpha": one.alpha, "recall": one.recall, "fpr": one.false_positive_rate})
            for one in roc(row.p_yes, row.success)
        ],
        "thresholds": [
            plain(line)
            | {"needed": line.needed, "used": _confusion(line.used)}
            | {"chosen": line.chosen and _confusion(line.chosen)}
            for line in thresholds(row)
        ],
    }


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN and infinities become null, pictures become their shape."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        pictures = value.dtype == np.uint8
        return {"shape": list(value.shape)} if pictures else plain(value.tolist())
    unknown = isinstance(value, float) and not math.isfinite(value)
    return None if unknown else value


def to_json(data: ReportData) -> dict[str, Any]:
    """Every number of the page: the data as given, and what was derived from it."""
    derived = {
        "evaluations": [_rate(row) for row in data.evaluations],
        "imagined": [
            plain({"missing": row.missing, "accepted_share": row.accepted_share})
            for row in data.imagined
        ],
        "truths": [plain({name: getattr(row, name) for name in TRUTH}) for row in data.truths],
        "throughput": [
            plain({name: getattr(row, name) for name in RATES}) for row in data.throughput
        ],
        "calibrations": [calibrated(row) for row in data.calibrations],
    }
    numbers = plain(data)
    for name, rows in derived.items():
        numbers[name] = [given | more for given, more in zip(numbers[name], rows, strict=True)]
    return numbers | {
        "judgements": [
            plain(row) | {"counts": _confusion(row.counts)} for row in judgements(data.calibrations)
        ],
        "purity": [
            plain(row) | {"labels": _confusion(row.labels)}
            for row in purities(data.calibrations, data.imagined)
        ],
        "pooled": [plain(row) | _rate(row) for row in pooled(data.evaluations)],
        "comparisons": [
            plain(row) | {"conclusion": row.conclusion} for row in comparisons(data.evaluations)
        ],
    }


def _rate(row: Evaluation) -> dict[str, Any]:
    return plain({"rate": row.rate, "interval": row.interval})
