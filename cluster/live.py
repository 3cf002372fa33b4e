"""Keeps ``report.html`` up to date while a run goes on; the whole report takes its place after."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError

from cluster import summary
from cluster.context import Context
from cluster.handles import answer
from services.progress import Bar
from services.replay import StoreCounts
from services.report import sections, write_live
from services.report_data import ReportData
from services.report_live import RELOAD_S, Now, Work


@contextmanager
def live_page(run: Context) -> Iterator[None]:
    """Write the run's page every ``RELOAD_S`` seconds and at the end of every stage."""
    page = _Page(run)
    run.reporter.after_stage.append(page.stage_ended)
    page.stage_ended()
    page.start()
    try:
        yield
    except BaseException as error:  # whatever it was: the page must not say that the run goes on
        page.end(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise
    else:
        page.end()
    finally:
        run.reporter.after_stage.remove(page.stage_ended)


class _Page(threading.Thread):
    """The thread writes, so a stage that waits for others is seen to wait, and costs nothing."""

    def __init__(self, run: Context) -> None:
        super().__init__(daemon=True, name="live page")
        self._run = run
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._data: ReportData | None = None
        self._sections = ""  # of the finished stages: made once a stage, not once a page
        self._asked: Any = None  # how much the stores hold; never waited for
        self._stores: dict[str, StoreCounts] = {}

    def run(self) -> None:
        while not self._over.wait(RELOAD_S):
            self._write()

    def stage_ended(self) -> None:
        try:
            self._data = summary.gather(self._run, media=False)
            self._sections = sections(self._data)
        except (ValueError, OSError) as error:  # the page is no reason to stop a run
            self._run.reporter.event("page", error=str(error))
        self._write()

    def end(self, stopped: str = "") -> None:
        self._over.set()
        if self.is_alive():
            self.join(timeout=RELOAD_S)
        if stopped:
            self._write(f"{stopped.rstrip('.')}.")

    def _write(self, stopped: str = "") -> None:
        if self._data is None:
            return
        with self._lock:
            try:
                write_live(self._data.title, self._sections, self._now(stopped), self._run.folder)
            except OSError as error:
                self._run.reporter.event("page", error=str(error))

    def _now(self, stopped: str) -> Now:
        reporter = self._run.reporter
        bars = list(reporter.open_bars)
        self._ask()
        return Now(
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            stage=reporter.stage_name,
            works=[_work(bar) for bar in bars],
            tasks={task: row for bar in bars for task, row in bar.tasks.items()},
            versions=self._run.newest(),
            stores=self._stores,
            ended=list(reporter.ended),
            stopped=stopped,
        )

    def _ask(self) -> None:
        """What the replay service said since the last page; then ask again."""
        try:
            if self._asked is None or ray.wait([self._asked], timeout=0)[0]:
                self._stores = answer(self._asked) if self._asked is not None else self._stores
                self._asked = self._run.replay.counts.remote()
        except RayError:  # it is being started again
            self._asked = None


def _work(bar: Bar) -> Work:
    numbers = dict(bar.numbers)
    return Work(bar.name, bar.done, bar.total, bar.unit, bar.rate, bar.seconds, numbers)
