"""What the host and its client say to each other: msgpack maps over one websocket.

The host greets with ``describe``. Then each request has a number, and every answer to it has the
same. Codec: ``contracts.wire``, the one that policy servers speak, too; nothing is ever unpickled.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.constants import ACTION_DIM
from contracts.types import Moment, RobotState
from contracts.wire import unpack
from envs.droid.tick import Tick

PROTOCOL = 2
MAX_REQUEST_BYTES = 1 << 16  # a plan of 1000 ticks has half of that
MAX_TICKS = 1000
MAX_TEXT = 200
EPISODE = re.compile(r"\w[\w .@=-]*")  # it becomes a folder of the records
ASKS = {  # what may be asked, and what belongs to it
    "describe": {},
    "health": {},
    "observe": {},
    "reset": {"task": str, "seed": int, "episode": str, "policy_version": int, "max_ticks": int},
    "play": {"actions": np.ndarray, "seen": int, "latency_s": float},  # NaN: unknown
    "hold": {},
    "end": {"ending": str},
    "label": {"episode": str},
}
DRIVES = ("reset", "play", "hold", "end")  # what only the one client that drives may ask


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    ask: str
    given: dict[str, Any]


def read_request(frame: str | bytes) -> Request:
    """Raises ValueError for anything that is not one whole, sensible request."""
    said = {} if isinstance(frame, str) else unpack(frame)
    if not isinstance(said, dict):
        raise ValueError("send one map")
    number, ask = said.pop("number", None), said.pop("ask", None)
    if type(number) is not int or not isinstance(ask, str) or ask not in ASKS:
        raise ValueError(f'send msgpack with "number" and "ask", one of {", ".join(ASKS)}')
    _check_fields(ask, said)
    if ask == "play":
        said["actions"] = _actions(said["actions"])
    return Request(number, ask, said)


def _check_fields(ask: str, said: dict[Any, Any]) -> None:
    if set(said) != set(ASKS[ask]):
        raise ValueError(f"{ask} takes {sorted(ASKS[ask])}, got {sorted(map(str, said))[:8]}")
    for name, kind in ASKS[ask].items():
        if type(said[name]) is not kind:
            raise ValueError(f"{ask}: {name} must be of type {kind.__name__}")
        if kind is str and len(said[name]) > MAX_TEXT:
            raise ValueError(f"{ask}: {name} is longer than {MAX_TEXT} characters")
    if "episode" in said and not EPISODE.fullmatch(said["episode"]):
        raise ValueError(
            f"{ask}: an episode's name is a folder's: letters, digits, spaces, . @ = -"
        )


def _actions(given: np.ndarray) -> np.ndarray:
    if given.dtype.kind != "f" or given.ndim != 2 or given.shape[1] != ACTION_DIM:
        raise ValueError(
            f"play: actions must be floats (ticks, 8), got {given.dtype} {given.shape}"
        )
    if not 1 <= len(given) <= MAX_TICKS:
        raise ValueError(f"play: {len(given)} ticks; send 1 to {MAX_TICKS}")
    return given.astype(np.float32)


def tick_message(tick: Tick) -> dict[str, Any]:
    """A tick as it travels; the images as one array (3, height, width, 3)."""
    state = tick.arm.state
    return {
        "tick": tick.number,
        "time_s": tick.time_s,
        "lateness_ms": 1000 * tick.lateness_s,
        "robot_time_s": state.time_s,
        "joint_position": state.joint_position,
        "joint_velocity": state.joint_velocity,
        "cartesian_position": state.cartesian_position,
        "gripper_position": state.gripper_position,
        "images": np.stack([frame.image for frame in tick.frames]),
        "sent": tick.sent.action if tick.sent else None,
        "limited_by": list(tick.sent.limited_by) if tick.sent else [],
    }


def moment(message: dict[str, Any], action: np.ndarray | None) -> Moment:
    """A tick that came over the wire; ``action`` is what was executed before it."""
    state = RobotState(
        joint_position=message["joint_position"],
        joint_velocity=message["joint_velocity"],
        cartesian_position=message["cartesian_position"],
        gripper_position=float(message["gripper_position"]),
        time_s=float(message["robot_time_s"]),
    )
    return Moment(state, message["images"], action)
