"""The study as a page: the paper's Figures 7 and 9 with intervals, the differences, the tables."""

import math
from collections.abc import Mapping, Sequence

from contracts.statistics import Interval
from services.report_charts import Mark, whiskers
from services.report_html import document, figure, grid, paragraph, section, table, text
from services.study import (
    Difference,
    Row,
    Spent,
    Table,
    cost_table,
    gap_table,
    success_table,
)

PLACES = {"mean": "Mean", "tasks": "Tasks", "differences": "Differences", "cost": "Cost"}

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
    by_task = _table(success_table(rows))
    body = "".join(
        [
            section("mean", "Mean over tasks", paragraph(_ABOUT), _means(rows, means, tones)),
            section("tasks", "By task (Figures 7 and 9)", _tasks(rows, tones), by_task),
            section("differences", "Differences", paragraph(_PAIRED), _gaps(gaps)),
            section("cost", "Cost", _table(cost_table(spent))),
        ]
    )
    return document((title, known), PLACES, body)


def _table(found: Table) -> str:
    heads, rows = found
    return table(heads, [[text(cell) for cell in row] for row in rows])


_ABOUT = (
    "Bars are 95 % intervals: of a mean by bootstrap over seeds and starts, of a task by Wilson. "
    "control (where there is one): the base after as many steps on demonstrations alone. A base "
    "that all seeds share is counted once."
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
    widest = max(abs(end) for g in gaps for end in (g.interval.low, g.interval.high))
    end = min(1.0, max(0.1, math.ceil(10 * widest) / 10))
    shown = whiskers(marks, "differences", -end, end)
    return figure("differences", shown) + _table(gap_table(gaps))
