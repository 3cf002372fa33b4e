"""What a page may send: JSON texts, each checked whole before anything acts on it."""

import json
from dataclasses import dataclass
from typing import Any

from envs.droid.console.state import OUTCOMES
from envs.droid.desk import Shown

MAX_BYTES = 4096
MAX_NAME = 60
ACTS = ("stop", "clear", "reset_done", "start", "say", "undo")


@dataclass(frozen=True, slots=True)
class Action:
    """One press of a button. ``number`` comes back with the answer to it."""

    act: str
    who: str
    shown: Shown
    number: int
    outcome: str = ""
    progress: int | None = None


def read(frame: str | bytes) -> dict[str, Any]:
    """One JSON object with an ``act``. Raises ValueError for anything else."""
    if isinstance(frame, bytes):
        raise ValueError("binary frames mean nothing here: send JSON text")
    try:
        said = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise ValueError("this is not JSON") from error
    if not isinstance(said, dict) or not isinstance(said.get("act"), str):
        raise ValueError('send one JSON object with "act"')
    return said


def action(said: dict[str, Any]) -> Action:
    """Raises ValueError naming the field that is wrong. A stop needs nothing but its name."""
    act = said["act"]
    if act not in ACTS:
        raise ValueError(f"act must be one of {', '.join(ACTS)}")
    number = said.get("number", 0)
    if act == "stop":  # whatever else is wrong with it, it stops
        known = number if isinstance(number, int) else 0
        return Action(act, _name(said.get("who"), strict=False), Shown("", "", 0), known)
    _integer(number, "number")
    extra = sorted(set(said) - {"act", "who", "shown", "number", "outcome", "progress"})
    if extra:
        raise ValueError(f"unknown field {extra[0][:40]!r}")
    outcome, progress = said.get("outcome", ""), said.get("progress")
    if (act == "say") != (outcome in OUTCOMES) or not isinstance(outcome, str):
        raise ValueError(f"outcome goes with say, and is one of {', '.join(OUTCOMES)}")
    if progress is not None and not 0 <= _integer(progress, "progress") <= 100:
        raise ValueError("progress must lie in 0..100")
    return Action(act, _name(said.get("who")), _shown(said.get("shown")), number, outcome, progress)


def _shown(value: object) -> Shown:
    if not isinstance(value, dict) or set(value) != {"state", "trajectory_id", "turn"}:
        raise ValueError("shown must name state, trajectory_id and turn, as last seen")
    state, trajectory_id = value["state"], value["trajectory_id"]
    if not isinstance(state, str) or not isinstance(trajectory_id, str):
        raise ValueError("shown.state and shown.trajectory_id must be texts")
    return Shown(state, trajectory_id, _integer(value["turn"], "shown.turn"))


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer")
    return value


def _name(value: object, strict: bool = True) -> str:
    fine = isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()
    if isinstance(value, str) and fine and (value.strip() or not strict):
        return value.strip()
    if strict:
        raise ValueError(f"who must be your name: 1 to {MAX_NAME} printable characters")
    return ""
