"""What a running imagination stage shows, and what people ask of it: two small files of a run.

Files, because a run's folder is what every node and person can reach, Ray's dashboard up or not.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.checks import worker_count
from services.stages import read_json, write_json

SHOWN, ASKED = "imagination.json", "workers.json"
EVERY_S = 1.0
Table = Mapping[str, Mapping[str, float | int]]


class Board:
    """``imagination.json``: numbers per task, renewed every second. ``workers.json``: numbers of
    workers that people asked for; they hold for the rest of the run."""

    def __init__(self, folder: Path) -> None:
        self._shown, self._asked = folder / SHOWN, folder / ASKED
        self._due_s = 0.0
        self._read_at, self._wishes = -1, dict[str, int | str]()

    def show(self, iteration: int, tasks: Table) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + EVERY_S
            self._write(iteration, tasks, running=True)

    def end(self, iteration: int, tasks: Table) -> None:
        """The last numbers; nothing runs any more."""
        self._write(iteration, tasks, running=False)

    def _write(self, iteration: int, tasks: Table, running: bool) -> None:
        shown = {name: dict(row) for name, row in tasks.items()}
        write_json(self._shown, {"iteration": iteration, "running": running, "tasks": shown})

    def wishes(self) -> dict[str, int | str]:
        """Workers by task, of those that somebody asked for."""
        changed = self._asked.stat().st_mtime_ns if self._asked.exists() else -1
        if changed != self._read_at:
            self._read_at, self._wishes = changed, read_wishes(self._asked.parent)
        return self._wishes


def read_wishes(folder: Path) -> dict[str, int | str]:
    """Raises ValueError: the file is damaged."""
    path = folder / ASKED
    wishes: dict[str, int | str] = read_json(path) if path.exists() else {}
    for task, count in wishes.items():
        worker_count(f"{path}: {task}", count)
    return wishes


def ask(folder: Path, wishes: Mapping[str, int | str | None]) -> dict[str, int | str]:
    """Add to what is asked for; None takes a wish back. Returns all of them."""
    every = {**read_wishes(folder), **wishes}
    kept = {task: count for task, count in every.items() if count is not None}
    write_json(folder / ASKED, kept)
    return kept


def read_shown(folder: Path) -> tuple[dict[str, Any], float] | None:
    """What was shown last and how many seconds ago; None: no stage has imagined yet."""
    path = folder / SHOWN
    if not path.exists():
        return None
    return read_json(path), time.time() - path.stat().st_mtime
