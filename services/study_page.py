"""The study as a page: the paper's Figures 7 and 9 with intervals, the differences, the tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from contracts.statistics import Interval
from services.report_charts import Mark, whiskers
from services.report_html import figure, grid, paragraph, section, table, text
from services.study import Difference, Row, Spent

STYLE = Path(__file__).with_name("report.css")
CONTROL, OTHERS = 1, 2  # tones of the control and of what is compared with the first variant


def study_page(
    rows: Sequence[Row],
    means: Mapping[str, Interval],
    gaps: Sequence[Difference],
    spent: Sequence[Spent],
) -> str:
    """``rows``: the base first; ``means``: the interval of each row's mean over tasks."""
    seeds, starts = next(iter(rows[0].success.values())).shape
    tones = {row.name: _tone(row.name, rows) for row in rows}
    title = f"Study: {', '.join(rows[0].tasks)}"
    known = f"Seeds: {seeds}. Starts per task and policy: {starts}, the same for all."
    body = "".join(
        [
            section("mean", "Mean over tasks", paragraph(_ABOUT), _means(rows, means, tones)),
            section("tasks", "By task (Figures 7 and 9)", _tasks(rows, tones)),
            section("differences", "Differences", paragraph(_PAIRED), _gaps(gaps)),
            section("cost", "Cost", _costs(spent)),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{text(title)}</h1><p>{text(known)}</p></header>"
        f"<main>{body}</main></body></html>\n"
    )


_ABOUT = (
    "Bars are 95 % intervals: of a mean by bootstrap over seeds and starts, of a task by Wilson. "
    "control: the base after as many steps on demonstrations alone."
)
_PAIRED = (
    "Mean over tasks of the first minus that of the second, from the same starts. A bar that "
    "touches the dashed line shows neither."
)


def _tone(name: str, rows: Sequence[Row]) -> int:
    first = rows[1].name.rpartition("-")[0] if len(rows) > 1 else ""
    if name == "control":
        return CONTROL
    return 0 if name == "base" or name.rpartition("-")[0] == first else OTHERS


def _means(rows: Sequence[Row], means: Mapping[str, Interval], tones: Mapping[str, int]) -> str:
    marks = [
        Mark(row.name, row.mean, means[row.name], f"{row.name}: {row.mean:.1%}", tones[row.name])
        for row in rows
    ]
    return figure("mean success", whiskers(marks, "mean success over tasks"))


def _tasks(rows: Sequence[Row], tones: Mapping[str, int]) -> str:
    return grid(
        figure(task, whiskers([_of_task(row, task, tones) for row in rows], f"success, {task}"))
        for task in rows[0].tasks
    )


def _of_task(row: Row, task: str, tones: Mapping[str, int]) -> Mark:
    good, n = row.counts(task)
    words = f"{row.name}: {good} of {n}"
    return Mark(row.name, good / n, row.interval(task), words, tones[row.name])


def _gaps(gaps: Sequence[Difference]) -> str:
    marks = [
        Mark(f"{g.better} - {g.worse}", g.value, g.interval, f"{g.value:+.1%}: {g.conclusion}")
        for g in gaps
    ]
    found = [
        (f"{g.better} - {g.worse}", f"{100 * g.value:+.1f}", _between(g.interval), g.conclusion)
        for g in gaps
    ]
    heads = ("difference of means", "points", "95 %", "")
    widest = max(abs(end) for g in gaps for end in (g.interval.low, g.interval.high))
    end = min(1.0, max(0.1, math.ceil(10 * widest) / 10))
    return figure("differences", whiskers(marks, "differences", -end, end)) + table(
        heads, [[text(cell) for cell in row] for row in found]
    )


def _between(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _costs(spent: Sequence[Spent]) -> str:
    heads = ("run", "seed", "minutes", "imagined", "per hour", "accepted", "really succeed")
    rows = [
        (
            one.variant,
            one.seed,
            f"{one.seconds / 60:.0f}",
            one.imagined,
            f"{one.per_hour:.0f}",
            one.accepted,
            f"{one.true} of {one.executed} executed",
        )
        for one in spent
    ]
    return table(heads, [[text(cell) for cell in row] for row in rows])
