"""Imagination workers by hand, while a run goes on: ``python -m cluster.scale draw=6 stack=auto``.

python -m cluster.scale status                      # who imagines what, and how fast
python -m cluster.scale draw=6 stack=2              # from now on, for the rest of the run
python -m cluster.scale draw=default                # as the run's settings say again
python -m cluster.scale out=/data/run1 draw=auto    # another run than outputs/run
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.checks import one_of
from services.board import ask, read_shown, read_wishes
from services.stages import read_json

USAGE = "usage: python -m cluster.scale [status] [<task>=<workers>|auto|default ...] [out=<folder>]"
STALE_S = 30.0
COLUMNS = {  # heading: key
    "wanted": "wanted", "starting": "starting", "working": "working", "lost": "lost",
    "waiting": "waiting", "in hand": "leased", "done": "done",
    "accepted": "accepted", "rejected": "rejected", "errors": "errors",
    "traj/h": "trajectories_per_hour", "net frames/s": "net_frames_per_s",
}  # fmt: skip


def main(arguments: list[str], cwd: Path, console: Console) -> None:
    """Do what the command line says.

    Raises:
        ValueError: one message that names what to change; nothing was asked for.
    """
    words = [word for word in arguments if "=" not in word]
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    folder = (cwd / given.pop("out", "outputs/run")).resolve()
    if words not in ([], ["status"]) or not (words or given):
        raise ValueError(USAGE)
    if not (folder / "run.json").exists():
        raise ValueError(f"{folder} holds no run (no run.json): give out=<folder of a run>")
    if given:
        known = _tasks(folder)
        for task in given:
            one_of("task", task, known)
        ask(folder, {task: _count(task, text) for task, text in given.items()})
    _print(folder, console)


def _tasks(folder: Path) -> list[str]:
    """Tasks of the run; those of recordings are known from the first imagination on."""
    shown = read_shown(folder)
    names = (
        list(shown[0]["tasks"])
        if shown
        else list(read_json(folder / "run.json")["settings"]["task"])
    )
    if not names:
        raise ValueError(f"{folder}: its tasks are those of its recordings; wait until it imagines")
    return names


def _count(task: str, text: str) -> int | str | None:
    if text in ("auto", "default"):
        return None if text == "default" else text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{task}={text} must be a number of at least 1, auto, or default")
    return int(text)


def _print(folder: Path, console: Console) -> None:
    wishes = read_wishes(folder)
    if wishes:
        asked = ", ".join(f"{task}={count}" for task, count in wishes.items())
        console.print(f"asked for by hand: {asked}", highlight=False)
    shown = read_shown(folder)
    if shown is None:
        console.print(f"{folder}: nothing was imagined yet", highlight=False)
        return
    found, age_s = shown
    console.print(_state(found, age_s), highlight=False)
    table = Table("task", *COLUMNS)
    for task, row in found["tasks"].items():
        table.add_row(task, *(_cell(row.get(key)) for key in COLUMNS.values()))
    console.print(table)


def _state(found: dict[str, object], age_s: float) -> str:
    name = f"imagination of iteration {found['iteration']}"
    if not found["running"]:
        return f"{name} has ended; wishes hold for the next one"
    if age_s > STALE_S:
        return f"{name} was last seen {age_s:.0f} s ago: is the run still alive?"
    return f"{name} goes on, seen {max(age_s, 0):.0f} s ago"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:d}" if isinstance(value, int) else f"{value:.3g}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Path.cwd(), Console())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
