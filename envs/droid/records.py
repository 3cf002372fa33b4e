"""Every tick of every episode on the robot's own disk, whatever becomes of the cluster."""

import json
import logging
import math
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from contracts.constants import ACTION_DIM, CONTROL_HZ, NUM_JOINTS, VIEWS
from envs.droid.operator import Episode
from envs.droid.tick import Planned, Tick

QUEUED = 20 * CONTROL_HZ  # ticks that may wait for the disk before the newest are dropped

log = logging.getLogger(__name__)


class EpisodeRecords:
    """``<folder>/<trajectory id>/``: ``ticks.npz``, one video per view, ``episode.json``.

    Written by a thread of its own while the episode runs, so that the control loop never waits.
    ``episode.json`` comes last: a folder without it is of an episode whose host died.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """``facts`` about the rig go into every ``episode.json``.

        Raises:
            ValueError: the folder cannot be made or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (probe := folder / ".writable").touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"records folder {folder} cannot be written: {error}") from error
        self._folder, self._facts = folder, dict(facts or {})
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._writing: _Episode | None = None
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def begin(self, episode: Episode) -> None:
        self._dropped = 0
        self._queue.put(("begin", episode))

    def tick(self, tick: Tick) -> None:
        if self._queue.qsize() < QUEUED:
            self._queue.put(("tick", tick))
        else:  # a disk that hangs costs the record, not the arm
            self._dropped += 1

    def end(self, episode: Episode) -> None:
        self._queue.put(("end", episode | {"ticks_not_recorded": self._dropped}))

    def close(self) -> None:
        """Wait for what is still to be written."""
        self._queue.put(("close", None))
        self._thread.join(30)

    def _run(self) -> None:
        while True:
            what, value = self._queue.get()
            try:
                if what == "begin":
                    self._writing = _Episode(self._folder / value["trajectory_id"])
                elif what == "tick" and self._writing:
                    self._writing.add(value)
                elif self._writing:
                    ended = value or {"ending": "the host was ended"}
                    self._writing.finish(ended | {"rig": self._facts})
                    self._writing = None
            except Exception as error:  # noqa: BLE001 - the next episode is to be recorded again
                log.error("an episode is not recorded: %r", error)
                self._writing = None
            if what == "close":
                return


class _Episode:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._videos: list[tuple[OutputContainer, VideoStream]] = []

    def add(self, tick: Tick) -> None:
        self._rows.append(_row(tick))
        if not self._videos:
            self._videos = [
                _open(self._folder / f"{view}.mp4", frame.image.shape)
                for view, frame in zip(VIEWS, tick.frames, strict=True)
            ]
        for (container, stream), frame in zip(self._videos, tick.frames, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))

    def finish(self, episode: Episode) -> None:
        for container, stream in self._videos:
            container.mux(stream.encode())
            container.close()
        columns = self._rows[0] if self._rows else {}
        rows = {name: np.asarray([row[name] for row in self._rows]) for name in columns}
        np.savez_compressed(self._folder / "ticks.npz", allow_pickle=False, **rows)
        (self._folder / "episode.json").write_text(json.dumps(episode, indent=1, default=str))


def _row(tick: Tick) -> dict[str, Any]:
    """../shared/reference/droid.md section 3.4; NaN where nothing was sent at this tick."""
    nothing = Planned(np.full(ACTION_DIM, np.nan, np.float32), -1, -1, math.nan)
    state, sent, planned = tick.arm.state, tick.sent, tick.planned or nothing
    target = np.full(NUM_JOINTS, np.nan) if tick.target is None else tick.target
    return {
        "tick": tick.number,
        "time_s": tick.time_s,
        "lateness_ms": 1000 * tick.lateness_s,
        "robot_time_s": state.time_s,
        "command_ok": tick.arm.command_ok,
        "joint_position": state.joint_position,
        "joint_velocity": state.joint_velocity,
        "cartesian_position": state.cartesian_position,
        "gripper_position": state.gripper_position,
        "action_planned": planned.action,
        "chunk": planned.chunk,
        "row_in_chunk": planned.row,
        "query_latency_ms": 1000 * planned.latency_s,
        "action_sent": sent.action if sent else nothing.action,
        "limited_by": ",".join(sent.limited_by) if sent else "",
        "joint_target": np.asarray(target, np.float32),
        "captured_s": np.asarray([frame.captured_s for frame in tick.frames]),
    }


def _open(file: Path, shape: tuple[int, ...]) -> tuple[OutputContainer, VideoStream]:
    # Fragments: what was written of an episode can be played even if its host dies.
    container = av.open(str(file), "w", options={"movflags": "frag_keyframe+empty_moov"})
    stream = container.add_stream("libx264", rate=CONTROL_HZ)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.options = {"crf": "20", "preset": "ultrafast"}
    return container, stream
