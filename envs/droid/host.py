"""``python -m envs.droid.host``: the process beside the arm. It needs neither torch nor Ray."""

import argparse
import contextlib
import logging
import signal
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts import panda
from contracts.constants import CONTROL_HZ, VIEWS
from envs.droid.backends import BACKENDS, open_rig
from envs.droid.console.pictures import jpegs
from envs.droid.console.prompts import STANDARD, Prompts
from envs.droid.console.server import Console, ConsoleSettings, serving
from envs.droid.console.server import Rig as ConsoleRig
from envs.droid.control import Control, Rig
from envs.droid.desk import Desk
from envs.droid.endpoint import Endpoint, EndpointSettings
from envs.droid.messages import PROTOCOL
from envs.droid.operator import Unattended
from envs.droid.records import EpisodeRecords
from envs.droid.rig import Arm, Cameras, Scene
from envs.droid.serving import in_thread
from envs.safety import Limits

TABLES = ("limits", "arm", "cameras", "calibration")  # of the rig's file
GREETING = "DROID host: the arm is held; Ctrl-C holds it and ends"
GAINS = {  # of DROID's impedance law, under which every backend drives
    "joint_stiffness": panda.JOINT_STIFFNESS.tolist(),
    "joint_damping": panda.JOINT_DAMPING.tolist(),
    "cartesian_stiffness": panda.CARTESIAN_STIFFNESS.tolist(),
    "cartesian_damping": panda.CARTESIAN_DAMPING.tolist(),
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m envs.droid.host", description=__doc__)
    add = parser.add_argument
    add("--backend", choices=BACKENDS, required=True, help="what to drive")
    add(
        "--rig",
        type=Path,
        help="TOML file: [limits], [arm], [cameras], [calibration] (docs/robot.md)",
    )
    add("--size", default="192x320", help="of the stored views, height x width; as robot.height")
    add("--host", default="127.0.0.1", help="where the run connects; others need --token-file")
    add("--port", type=int, default=8090, help="0 takes a free one")
    add("--token-file", type=Path, help="its one line is what run and console must know")
    add("--console-port", type=int, default=8081, help="the operator's page; 0: a free one")
    add("--console-host", default="127.0.0.1", help="0.0.0.0 lets a phone in; needs a token")
    add("--records", type=Path, default=Path("robot_records"), help="every tick of every episode")
    add("--prompts", type=Path, default=STANDARD, help="instructions and scenes of the tasks")
    add("--speed", type=float, help="share of every commanded velocity; 0.25 for a first contact")
    add("--unattended", action="store_true", help="no person: simulation only")
    return parser.parse_args(given)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the rig's file say, checked. See ``read``."""

    wanted: argparse.Namespace
    token: str
    table: dict[str, Any]
    limits: Limits
    size: tuple[int, int]

    @classmethod
    def read(cls, wanted: argparse.Namespace) -> "Settings":
        """Raises ValueError naming what to change."""
        token = _text("--token-file", wanted.token_file).strip()
        try:
            table = tomllib.loads(_text("--rig", wanted.rig))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--rig {wanted.rig} is no TOML: {error}") from error
        if unknown := sorted(set(table) - set(TABLES)):
            raise ValueError(f"{wanted.rig}: [{unknown[0]}] is unknown; {', '.join(TABLES)}")
        limits = dict(table.get("limits", {}))
        if wanted.speed is not None:
            limits["speed"] = wanted.speed
        height, _, width = wanted.size.partition("x")
        if not (height.isdigit() and width.isdigit()):
            raise ValueError(f"--size {wanted.size} must read like 192x320")
        return cls(wanted, token, table, Limits.read(limits), (int(height), int(width)))


def _text(flag: str, path: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag} {path}: {error}") from error


@contextmanager
def hosting(settings: Settings) -> Iterator[tuple[str, str, Control]]:
    """Run everything while the block runs; yields where the run connects, the console's address
    ("" if unattended) and the control loop. At the end the arm is held.

    Raises:
        ValueError: a part cannot be opened, or a port is taken; the message says what to do.
    """
    wanted = settings.wanted
    with contextlib.ExitStack() as stack:
        arm, cameras, scene = open_rig(wanted.backend, settings.table, settings.size)
        if wanted.unattended and scene is None:
            raise ValueError("--unattended is for simulations: an arm needs a person beside it")
        facts = _facts(settings, arm, cameras, scene)
        kept = {"limits": asdict(settings.limits), "gains": GAINS}
        kept["calibration"] = settings.table.get("calibration", {})  # whatever the lab writes there
        record = EpisodeRecords(wanted.records, facts | kept)
        stack.callback(record.close)
        if wanted.unattended:
            assert scene is not None
            operator = Unattended(scene)
        else:
            operator = Desk(wanted.records / "desk.jsonl", Prompts(wanted.prompts))
            stack.callback(operator.close)
        rig = Rig(arm, cameras, operator, scene, record)
        control = Control(rig, settings.limits)
        thread = threading.Thread(target=control.run, name="control")
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(control.close)
        control.wait_until_open()
        page = ""
        if isinstance(operator, Desk):
            page = stack.enter_context(_console(operator, control, settings))
        endpoint = Endpoint(control, rig, facts, _endpoint_settings(settings))
        address = (wanted.host, wanted.port)
        port = stack.enter_context(in_thread(endpoint.listening, "endpoint", address))
        yield f"ws://{wanted.host}:{port}", page, control


def _endpoint_settings(settings: Settings) -> EndpointSettings:
    return EndpointSettings(settings.wanted.host, settings.wanted.port, settings.token)


def _facts(settings: Settings, arm: Arm, cameras: Cameras, scene: Scene | None) -> dict[str, Any]:
    """What a client is greeted with."""
    return {
        "protocol": PROTOCOL,
        "backend": arm.name,
        "simulated": scene is not None,
        "control_hz": CONTROL_HZ,
        "action_space": "joint_velocity and gripper_position, DROID units",
        "views": list(VIEWS),
        "cameras": list(cameras.names),
        "height": settings.size[0],
        "width": settings.size[1],
        "speed": settings.limits.speed,
    }


def _console(desk: Desk, control: Control, settings: Settings) -> contextlib.AbstractContextManager:
    wanted = settings.wanted
    where = ConsoleSettings(wanted.console_host, wanted.console_port, settings.token)
    rig = ConsoleRig(lambda: jpegs(control.latest), control.health, control.stop, control.clear)
    return serving(Console(desk, rig, where), where)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with hosting(Settings.read(arguments())) as (address, page, _):
            print(f"{GREETING}\nrobot.address={address}", flush=True)  # noqa: T201
            if page:
                print(f"operator's page: {page}", flush=True)  # noqa: T201
            ended.wait()
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
