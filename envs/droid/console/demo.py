"""A robot that is not there: moving test pictures and a loop of episodes, to try the console."""

import io
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw

from contracts.constants import CONTROL_HZ, VIEWS
from envs.droid.console.server import Rig
from envs.droid.desk import Desk

SIZE = (320, 192)
PAPER = {"exterior_1": "#d9d2c2", "exterior_2": "#c9d2d9", "wrist": "#cfd9c9"}


class DemoHost:
    """Behaves towards the desk as the robot's host does; its arm is a dot."""

    def __init__(
        self, desk: Desk, tasks: tuple[str, ...], max_ticks: int = 20 * CONTROL_HZ
    ) -> None:
        self._desk, self._tasks, self._max_ticks = desk, itertools.cycle(tasks), max_ticks
        self._closed = threading.Event()
        self.fault = ""
        self._tick = 0
        self._lateness_ms = 0.0

    def rig(self) -> Rig:
        return Rig(self.cameras, self.health, self.stop, self.clear_fault)

    def run(self) -> None:
        """Episode after episode until ``close``."""
        for number in itertools.count():
            name, task = f"demo-{uuid.uuid4().hex[:8]}", next(self._tasks)
            instruction = self._desk.expect(task, number)
            if not self._wait(self._desk.may_start):
                return
            episode = {
                "trajectory_id": name,
                "task": task,
                "instruction": instruction,
                "policy_version": number // 4,
                "max_ticks": self._max_ticks,
            }
            try:
                self._desk.began(episode)
            except ValueError:  # somebody stopped between the question and the start
                continue
            self._desk.ended(episode | {"ending": self._move()})
            if not self._wait(lambda name=name: self._desk.label(name) is not None):
                return

    def _move(self) -> str:
        began = time.monotonic()
        for tick in range(self._max_ticks):
            self._tick, due = tick, began + tick / CONTROL_HZ
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return "aborted:host closed"
            self._lateness_ms = 1000 * (time.monotonic() - due)
            if self._desk.stop_asked():
                return "aborted:operator stop"
            if self._desk.finished():
                return "done"
        return "timeout"

    def _wait(self, ready: Callable[[], bool]) -> bool:
        while not ready():
            if self._closed.wait(0.05):
                return False
        return True

    def cameras(self) -> dict[str, bytes]:
        return {view: _picture(view, time.monotonic()) for view in VIEWS}

    def health(self) -> dict[str, Any]:
        return {
            "tick": self._tick,
            "lateness_ms": self._lateness_ms,
            "fault": self.fault,
            "frame_age_ms": dict.fromkeys(VIEWS, 12.0),
        }

    def stop(self) -> None:
        """The desk is asked every tick; a real host holds the arm here."""

    def clear_fault(self) -> None:
        self.fault = ""

    def close(self) -> None:
        self._closed.set()


def _picture(view: str, now: float) -> bytes:
    image = Image.new("RGB", SIZE, PAPER[view])
    draw = ImageDraw.Draw(image)
    width, height = SIZE
    for column in range(0, width, 40):
        draw.line((column, height // 2, column * 3 - width, height), fill="#a9a294")
    turn = now + 2 * VIEWS.index(view)
    x, y = width / 2 + 90 * math.cos(turn), height / 2 + 50 * math.sin(1.3 * turn)
    draw.line((width / 2, 0, x, y), fill="#4a4a4a", width=9)
    draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill="#c0501c")
    for place, colour in ((70, "#c3141b"), (150, "#137a4f"), (230, "#1464b4")):
        draw.rectangle((place, 140, place + 24, 164), fill=colour)
    draw.text((8, 6), f"test picture, {view}, {now % 1000:.1f} s", fill="#333333")
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()
