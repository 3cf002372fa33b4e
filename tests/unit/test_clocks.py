"""Whoever waits or measures asks the monotonic clock: a wall clock may jump, back and forth."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("actors", "cluster", "configs", "contracts", "envs", "learners", "models", "replay")
WALL = {"time": {"time", "time_ns", "localtime", "gmtime"}, "datetime": {"now", "utcnow", "today"}}
MAY_TELL_THE_TIME = {  # they write it down for people; nothing is computed from it
    "services/progress.py": 1,  # events.jsonl
    "cluster/summary.py": 1,  # report.json: created
    "cluster/judging.py": 1,  # replay.json: created
    "cluster/live.py": 1,  # when the page was written
    "envs/droid/desk.py": 1,  # when a person said what
    "envs/droid/standin/physics.py": 2,  # what the control machine it stands for writes down
    "services/audit_labels.py": 1,  # likewise
    "services/board.py": 1,  # how old the numbers are that a person looks at
}


def wall_clocks(source: str) -> int:
    """How often the wall clock is asked."""
    return sum(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in WALL.get(node.value.id, ())
        for node in ast.walk(ast.parse(source))
    )


def test_the_wall_clock_is_only_written_down():
    files = [ROOT / "ray_job.py"]
    for floor in (*FLOORS, "services"):
        files += (ROOT / floor).rglob("*.py")
    found = {str(f.relative_to(ROOT)): wall_clocks(f.read_text(encoding="utf-8")) for f in files}
    assert {name: count for name, count in found.items() if count} == MAY_TELL_THE_TIME


def test_what_asks_the_wall_clock_is_seen():
    assert wall_clocks("import time\nuntil = time.time() + 5") == 1
    assert wall_clocks("a = time.monotonic(); b = datetime.now(UTC)") == 1
