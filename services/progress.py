"""Tells people how far a run is: bars on a terminal, lines elsewhere, JSON lines always."""

import json
import os
import time
from collections.abc import Iterator
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

QUIET_S = 60.0  # between two lines about a stage that goes on


def describe(numbers: dict[str, float]) -> str:
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
    """One long stage. ``advance`` and ``at`` may be called from any thread."""

    def __init__(self, owner: "Reporter", name: str, total: int, unit: str) -> None:
        self._owner = owner
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.numbers: dict[str, float] = {}
        self._start = time.monotonic()
        self.said = self._start  # when a line last told how far it is
        self._task = owner.open_bar(self)

    @property
    def rate(self) -> float:
        """Units per second since the stage began."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def advance(self, count: int = 1, **numbers: float) -> None:
        self.at(self.done + count, **numbers)

    def lost(self, message: str) -> None:
        """Tell of a process that died and whose work begins again, here and in the events."""
        self._owner.say(f"  {self.name}: {message}")
        self._owner.event("lost", stage=self.name, message=message)

    def at(self, done: int, **numbers: float) -> None:
        self.done = done
        self.numbers |= numbers
        self._owner.move_bar(self, self._task)


class Reporter:
    """Where every stage reports. ``events.jsonl`` under ``folder`` keeps one JSON object a line.

    On a terminal each stage is a bar with rate and ETA; elsewhere, as in the log of a submitted
    job, one line when it ends and one every ``QUIET_S`` while it goes on.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "events.jsonl"
        _cut_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self.console = console or Console()
        self._bars: Progress | None = None

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

    def move_bar(self, bar: Bar, task: TaskID | None) -> None:
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
    def stage(self, name: str, total: int, unit: str = "items") -> Iterator[Bar]:
        """Report one stage from its beginning to its end, an error included."""
        self.event("begin", stage=name, total=total, unit=unit)
        bar = Bar(self, name, total, unit)
        outcome = "failed"
        try:
            yield bar
            outcome = "done"
        finally:
            self.event(
                "end",
                stage=name,
                outcome=outcome,
                done=bar.done,
                seconds=bar.seconds,
                **bar.numbers,
            )
            if self._bars is None:
                self.say(
                    f"{name:<28} {outcome:<6} {bar.done}/{total} {unit} in {bar.seconds:.1f} s"
                    f" ({bar.rate:.3g}/s)  {describe(bar.numbers)}"
                )
