"""``python -m envs.droid.standin``: a control machine without an arm, for tests and rehearsals."""

import argparse
import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.robot import TASKS
from envs.droid.cameras.newest import Newest
from envs.droid.cameras.shared import layout
from envs.droid.link import import_zerorpc
from envs.droid.standin.franka import StandIn
from envs.droid.standin.physics import WORLD, Physics


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m envs.droid.standin", description=__doc__)
    add = parser.add_argument
    add("--task", choices=TASKS, default="stack", help="the scene at the start")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=4242, help="0 takes a free one")
    add("--frames", type=Path, default=Path("/dev/shm/vlaw-standin"), help="frames of [cameras]")
    add("--size", default="192x320", help="of the pictures, height x width; as the host's")
    add("--renderer", default="auto", choices=("auto", "egl", "ray"))
    return parser.parse_args(given)


def _free_port(wanted: int) -> int:
    with socket.create_server(("127.0.0.1", wanted)) as found:
        return found.getsockname()[1]


def _draw(given: argparse.Namespace, size: tuple[int, int], world: Path) -> subprocess.Popen[bytes]:
    """Start the cameras."""
    command = [sys.executable, "-m", "envs.droid.standin.views"]
    command += ["--world", str(world), "--frames", str(given.frames), "--parent", str(os.getpid())]
    command += ["--height", str(size[0]), "--width", str(size[1]), "--renderer", given.renderer]
    return subprocess.Popen(command)


def main() -> None:
    """Serve until a signal ends it. It listens on this machine only."""
    given = arguments()
    zerorpc, gevent = import_zerorpc(), importlib.import_module("gevent")
    height, _, width = given.size.partition("x")
    size = (int(height), int(width))
    world = given.frames.with_name(f"{given.frames.name}.world")
    physics = Physics(Newest.create(world, WORLD))
    physics.lay(given.task, given.seed)
    given.frames.unlink(missing_ok=True)
    cameras = _draw(given, size, world)
    try:
        pictures = _first_pictures(given.frames, size, cameras, gevent.sleep)
        machine = StandIn(physics, gevent.sleep, lambda: _scene(pictures))
        address = f"tcp://127.0.0.1:{_free_port(given.port)}"
        server = zerorpc.Server(machine)
        server.bind(address)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, server.stop)
        gevent.spawn(physics.run, gevent.sleep).link_exception(lambda _: os._exit(1))
        print(f"address={address}", flush=True)  # noqa: T201
        server.run()
    finally:
        cameras.terminate()
        cameras.wait(10)
        for file in (given.frames, world):
            file.unlink(missing_ok=True)


def _first_pictures(
    file: Path, size: tuple[int, int], cameras: subprocess.Popen[bytes], sleep: Any
) -> Newest:
    """Raises SystemExit when the cameras' process ends."""
    while True:
        if cameras.poll() is not None:
            sys.exit("the stand-in's cameras have ended: see above")
        if file.is_file() and (pictures := Newest.attach(file, layout(size))).get() is not None:
            return pictures
        sleep(0.02)


def _scene(pictures: Newest) -> int:
    """The number of the scene that the newest pictures show."""
    newest = pictures.get()
    return 0 if newest is None else int(newest["scene"])


if __name__ == "__main__":
    main()
