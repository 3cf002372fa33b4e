"""The part of a run's page that changes while it runs: what goes on now, and how fast."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.replay import StoreCounts
from services.report_html import (
    DASH,
    absent,
    duration,
    grid,
    number,
    paragraph,
    section,
    table,
    text,
    tile,
)

RELOAD_S = 10
PLACE = ("now", "Running now")


@dataclass(frozen=True, slots=True)
class Work:
    """One bar. ``rate`` is in units per second."""

    name: str
    done: int
    total: int
    unit: str
    rate: float | int
    seconds: float | int
    numbers: Mapping[str, float | int] = field(default_factory=dict)

    @property
    def eta_s(self) -> float:
        """Seconds until the end at this rate; NaN before anything is done."""
        left = max(0, self.total - self.done)
        return left / self.rate if self.rate > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Now:
    """One moment of a run. ``stopped`` says why it no longer goes on; "": it does."""

    written: str
    stage: str
    works: list[Work] = field(default_factory=list)
    tasks: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    stores: Mapping[str, StoreCounts] = field(default_factory=dict)
    ended: list[tuple[str, float]] = field(default_factory=list)  # stages, seconds
    stopped: str = ""


def running(now: Now) -> str:
    """The section: stage, progress, rate and ETA, tasks, versions, stores."""
    title = "Stopped" if now.stopped else PLACE[1]
    told = (
        paragraph(f"Stopped: {now.stopped} The same command continues the run.", "warn")
        if now.stopped
        else paragraph(
            f"Written {now.written}; this page loads itself again every {RELOAD_S} s. If that time "
            "is minutes ago, the run was killed: the same command continues it. Films and pictures "
            "follow when the run has ended."
        )
    )
    works = "".join(_work(work) for work in now.works)
    if not now.works and not now.stopped:
        works = paragraph(f"{now.stage or 'Between two stages'}.")
    return section(
        PLACE[0], title, told, works, _tasks(now.tasks), _versions(now), _stores(now), _ended(now)
    )


def _work(work: Work) -> str:
    share = work.done / work.total if work.total else 0.0
    tiles = [
        tile("Running for", duration(work.seconds), "this process"),
        tile("Done", f"{number(work.done)} of {number(work.total)}", work.unit),
        tile("Rate", f"{number(3600 * work.rate)} / h", f"{number(work.rate)} {work.unit}/s"),
        tile("Left", duration(work.eta_s), "at this rate"),
    ]
    tiles += [tile(key, number(value), "newest") for key, value in work.numbers.items()]
    bar = f'<div class="bar"><i class="b0" style="flex:0 0 {100 * min(1.0, share):.1f}%"></i></div>'
    return f"<h3>{text(work.name)}</h3>{bar}{grid(tiles, 'tiles progress')}"


def _tasks(tasks: Mapping[str, Mapping[str, float | int]]) -> str:
    """One row a task; the columns are whatever the stage counts, in its order."""
    if not tasks:
        return ""
    columns = list(dict.fromkeys(key for row in tasks.values() for key in row))
    rows = [
        [text(task), *(number(row[key]) if key in row else DASH for key in columns)]
        for task, row in tasks.items()
    ]
    return "<h3>Tasks</h3>" + table(("task", *(c.replace("_", " ") for c in columns)), rows)


def _versions(now: Now) -> str:
    if not now.versions:
        return ""
    named = ", ".join(f"{kind.replace('_', ' ')} v{v}" for kind, v in now.versions.items())
    return paragraph(f"Newest versions: {named}.")


def _stores(now: Now) -> str:
    if not now.stores:
        return ""
    rows = [
        [
            *(text(name), number(one.trajectories), number(one.labelled), number(one.successes)),
            f"{one.bytes_on_disk / 2**20:.1f}",
        ]
        for name, one in now.stores.items()
    ]
    headers = ("store", "trajectories", "labelled", "successes", "MiB")
    return "<h3>Stores</h3>" + table(headers, rows)


def _ended(now: Now) -> str:
    if not now.ended:
        return absent("No stage has ended since this process began.")
    rows = [[text(name), duration(seconds)] for name, seconds in reversed(now.ended)]
    return "<h3>Stages that ended, newest first</h3>" + table(("stage", "time"), rows)
