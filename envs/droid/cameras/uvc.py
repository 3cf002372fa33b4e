"""Any camera that Linux knows as /dev/video*, through PyAV; also a video file, for trying out."""

from collections.abc import Iterator
from typing import Any

import av
import av.container
from av.error import FFmpegError

from contracts.constants import VIEWS
from envs.droid.cameras.grabbing import GrabbedCameras, now
from envs.droid.rig import Frame

FPS = 30
# The kernel's driver takes the nearest that the camera has.
WANTED = {"video_size": "1280x720", "framerate": str(FPS), "input_format": "mjpeg"}


class UvcSource:
    """One camera by its number or path."""

    def __init__(self, device: str | int, size: tuple[int, int]) -> None:
        self.name = f"/dev/video{device}" if isinstance(device, int) else device
        self._size = size
        self._container: av.container.InputContainer | None = None
        self._pictures: Iterator[av.VideoFrame] = iter(())

    def open(self) -> None:
        """Raises OSError when there is no such camera."""
        camera = self.name.startswith("/dev/")
        try:
            self._container = av.open(
                self.name,
                format="v4l2" if camera else None,
                options=WANTED if camera else {},
            )
            self._container.streams.video[0].thread_type = "SLICE"  # by frames would lag behind
            self._pictures = self._container.decode(video=0)
        except (FFmpegError, OSError, IndexError) as error:
            raise OSError(
                f"no camera at {self.name} ({error}): 'v4l2-ctl --list-devices' lists those there "
                "are; write its path into [cameras], /dev/v4l/by-id/... stays the same"
            ) from error

    def grab(self) -> Frame:
        """Wait for the next picture. Raises OSError when there is none."""
        try:
            picture = next(self._pictures, None)
        except FFmpegError as error:
            raise OSError(str(error)) from error
        if picture is None:
            raise OSError("its pictures have ended")
        captured = now() - 1 / FPS  # exposed and sent within about one picture's time
        height, width = self._size
        small = picture.reformat(width, height, "rgb24", interpolation="AREA")
        return Frame(small.to_ndarray(), captured)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


def open_cameras(table: dict[str, Any], size: tuple[int, int]) -> GrabbedCameras:
    """Raises ValueError where a device is neither a number nor a path."""
    for view in VIEWS:
        if isinstance(table[view], bool) or not isinstance(table[view], int | str):
            raise ValueError(f"[cameras] {view} = {table[view]!r} must be like 0 or '/dev/video0'")
    return GrabbedCameras({view: UvcSource(table[view], size) for view in VIEWS})
