"""Tells people how far a run is: bars on a terminal, lines elsewhere, JSON lines always.

This is the one place that every number passes: it feeds ``events.jsonl``, the terminal, the metrics
of Prometheus, and the sinks (TensorBoard, W&B).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from contracts.errors import room
from contracts.metrics import (
    GPU_SECONDS,
    LEARNER_LOSS,
    LEARNER_STEP,
    RETRIES,
    STAGE,
    STAGE_DONE,
    STAGE_UNITS,
    Meter,
    NoMeter,
)
from services.folders import bytes_below
from services.sinks import Sink, numbers_in, tag_of

QUIET_S = 60.0  # between two lines about a stage that goes on
Number = float | int


def describe(numbers: Mapping[str, Number]) -> str:
    """``{"loss": 0.1234567}`` -> ``loss 0.123``; counts stay whole."""
    parts = (f"{k} {v:d}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in numbers.items())
    return "  ".join(parts)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What the run in ``folder`` has reported, without a line that a crash or a full disk tore."""
    path, found = folder / "events.jsonl", []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # half a line: the event it told of is lost, the others are not
            continue
    return found


def _cut_torn_line(path: Path) -> None:
    """Remove a last line without an end: what is written next would be lost with it."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


class Bar:
    """One long stage. Its methods may be called from any thread."""

    def __init__(
        self, owner: "Reporter", name: str, total: int, unit: str, learner: str = ""
    ) -> None:
        self._owner = owner
        self.learner = learner  # whose steps these are
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.begun_with = 0  # units that an earlier process had done
        self.first: tuple[int, float] | None = None  # units that came first, and when [s]
        self.numbers: dict[str, Number] = {}
        self.tasks: dict[str, dict[str, Number]] = {}
        self.gpu_seconds = 0.0
        self._gpus = 0.0
        self._start = self._accounted = time.monotonic()
        self._lock = threading.Lock()
        self.said = self._start  # when a line last told how far it is
        self._task = owner.open_bar(self)

    @property
    def rate(self) -> float:
        """Units per second since the stage began."""
        return (self.done - self.begun_with) / max(self.seconds, 1e-9)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def begin_with(self, done: int) -> None:
        """So many units were there before this process began: they say nothing about its rate."""
        self.begun_with = done
        self.at(done)

    def advance(self, count: int = 1, **numbers: Number) -> None:
        self.at(self.done + count, **numbers)

    def lost(self, message: str) -> None:
        """Tell of a process that died and whose work begins again, here and in the events."""
        self._owner.say(f"  {self.name}: {message}")
        self._owner.event("lost", stage=self.name, message=message)
        self._owner.meter.count(RETRIES, stage=self.name)

    def at(self, done: int, **numbers: Number) -> None:
        self.done = done
        self.numbers |= numbers
        if self.first is None and done > self.begun_with:
            self.first = done - self.begun_with, self.seconds
        self.account()
        self._owner.move_bar(self, self._task, numbers)

    def hold(self, gpus: Number) -> None:
        """From now on the stage holds so many GPUs; they count until it ends or says otherwise."""
        self.account()
        self._gpus = gpus

    def by_task(self, rows: Mapping[str, Mapping[str, Number]]) -> None:
        """The newest numbers of each task, for the run's page: ``{"draw": {"workers": 2}}``."""
        self.tasks = {task: dict(row) for task, row in rows.items()}
        self.account()

    def account(self) -> None:
        """Add the GPU-seconds since the last time."""
        with self._lock:
            now = time.monotonic()
            spent = self._gpus * (now - self._accounted)
            self._accounted = now
            self.gpu_seconds += spent
        self._owner.meter.count(GPU_SECONDS, spent, stage=self.name)


class Reporter:
    """Where every stage reports. ``events.jsonl`` under ``folder`` keeps one JSON object a line.

    On a terminal each stage is a bar with rate and ETA; elsewhere, as in the log of a submitted
    job, one line when it ends and one every ``QUIET_S`` while it goes on.
    """

    def __init__(
        self,
        folder: Path,
        console: Console | None = None,
        meter: Meter | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._path = folder, folder / "events.jsonl"
        _cut_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks = sinks
        self._bars: Progress | None = None
        self._gpu_seconds = 0.0  # of the bars that ended in the present stage
        self.console = console or Console()
        self.meter: Meter = meter or NoMeter()
        self.open_bars: list[Bar] = []
        self.stage_name = ""  # of the stage that runs now
        self.ended: list[tuple[str, float]] = []  # stages and their seconds, of this process
        self.after_stage: list[Callable[[], None]] = []  # called when a stage has ended well

    def __enter__(self) -> "Reporter":
        if self.console.is_terminal:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>14}"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[numbers]}"),
                console=self.console,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        for sink in self._sinks:
            sink.close()
        with room(self._path):
            self._file.close()

    def event(self, kind: str, **fields: object) -> None:
        """Append one event; ``time`` is seconds since the epoch."""
        with room(self._path):
            self._file.write(json.dumps({"time": time.time(), "event": kind, **fields}) + "\n")
            self._file.flush()

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)  # a log has no width

    def open_bar(self, bar: Bar) -> TaskID | None:
        if self._bars is None:
            return None
        return self._bars.add_task(bar.name, total=bar.total, rate="", numbers="")

    def move_bar(self, bar: Bar, task: TaskID | None, numbers: Mapping[str, Number]) -> None:
        self.meter.set(STAGE_DONE, bar.done, stage=bar.name)
        if bar.learner and "loss" in numbers:
            self.meter.set(LEARNER_STEP, bar.done, learner=bar.learner)
            self.meter.set(LEARNER_LOSS, numbers["loss"], learner=bar.learner)
        for sink in self._sinks if numbers else ():
            sink.scalars(bar.done, {f"{tag_of(bar.name)}/{k}": v for k, v in numbers.items()})
        if self._bars is not None and task is not None:
            rate = f"{bar.rate:.3g} {bar.unit}/s"
            self._bars.update(task, completed=bar.done, rate=rate, numbers=describe(bar.numbers))
        elif time.monotonic() - bar.said > QUIET_S:
            bar.said = time.monotonic()
            self.say(
                f"{bar.name:<28} at     {bar.done}/{bar.total} {bar.unit} after {bar.seconds:.0f} s"
                f" ({bar.rate:.3g}/s)  {describe(bar.numbers)}"
            )

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "items", learner: str = "") -> Iterator[Bar]:
        """Report one long piece of work from its beginning to its end, an error included."""
        self.event("begin", stage=name, total=total, unit=unit)
        bar = Bar(self, name, total, unit, learner)
        self.meter.set(STAGE_UNITS, total, stage=name)
        self.meter.set(STAGE_DONE, 0, stage=name)
        self.open_bars.append(bar)
        outcome = "failed"
        try:
            yield bar
            outcome = "done"
        finally:
            bar.hold(0)
            self.open_bars.remove(bar)
            self._gpu_seconds += bar.gpu_seconds
            self.event(
                "end",
                stage=name,
                outcome=outcome,
                done=bar.done,
                new=bar.done - bar.begun_with,
                first=bar.first,
                seconds=bar.seconds,
                gpu_seconds=bar.gpu_seconds,
                **bar.numbers,
            )
            if self._bars is None:
                self.say(
                    f"{name:<28} {outcome:<6} {bar.done}/{total} {unit} in {bar.seconds:.1f} s"
                    f" ({bar.rate:.3g}/s)  {describe(bar.numbers)}"
                )

    @contextmanager
    def within(self, name: str) -> Iterator[Callable[[Any], None]]:
        """A stage that leaves a manifest, bars or not; call what this yields with its result.

        Its event ``stage`` holds seconds, GPU-seconds, and the bytes that the run's folder holds
        afterwards.
        """
        began, self.stage_name, self._gpu_seconds = time.monotonic(), name, 0.0
        self.meter.set(STAGE, 1, stage=name)
        outcome, results = "failed", []
        try:
            yield results.append
            outcome = "done"
        finally:
            seconds = time.monotonic() - began
            numbers = {"seconds": seconds, "gpu_seconds": self._gpu_seconds}
            disk = bytes_below(self._folder)
            self.event("stage", stage=name, outcome=outcome, disk_bytes=disk, **numbers)
            self.meter.set(STAGE, 0, stage=name)
            self.ended.append((name, seconds))
            self.stage_name = ""
            for sink in self._sinks:
                sink.stage(name, numbers | numbers_in(results))
        for call in self.after_stage:
            call()
