"""Stereolabs' stereo cameras, as on a DROID rig: the left lens of each, HD720 at 60 Hz.

``pyzed`` comes with the ZED SDK; the package of that name on PyPI is another. Not run with a camera
yet: the calls are those that DROID makes, written for the SDK's versions 3.8 and 4.0.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from contracts.constants import VIEWS
from envs.droid.cameras.grabbing import GrabbedCameras, now
from envs.droid.rig import Frame

FPS = 60
EVERY = 2  # of its pictures one is converted: 15 Hz need no more, and 3 cameras cost a core
LATENCY_S = 2.5 / FPS  # from exposure until the SDK has a picture, as DROID estimates it


class ZedSource:
    """One ZED by its serial number."""

    def __init__(self, sl: ModuleType, serial: int, size: tuple[int, int]) -> None:
        self.name = str(serial)
        self._sl, self._serial, self._size = sl, serial, size
        self._camera: Any = None

    def open(self) -> None:
        """Raises OSError when it does not open."""
        sl: Any = self._sl
        wanted = sl.InitParameters()
        wanted.set_from_serial_number(self._serial)
        wanted.camera_resolution = sl.RESOLUTION.HD720
        wanted.camera_fps = FPS
        wanted.depth_mode = sl.DEPTH_MODE.NONE
        self._camera, self._picture, self._runtime = sl.Camera(), sl.Mat(), sl.RuntimeParameters()
        status = self._camera.open(wanted)
        if status != sl.ERROR_CODE.SUCCESS:
            raise OSError(
                f"the ZED camera {self._serial} does not open ({status}): close whatever else uses "
                "it, check its USB 3 port, and its serial number in [cameras]"
            )

    def grab(self) -> Frame:
        """Wait for the next picture. Raises OSError when there is none."""
        for _ in range(EVERY):
            status = self._camera.grab(self._runtime)
            if status != self._sl.ERROR_CODE.SUCCESS:
                raise OSError(f"it did not grab ({status})")
        captured = now() - LATENCY_S  # ``grab`` returns with the newest picture
        self._camera.retrieve_image(self._picture, self._sl.VIEW.LEFT)
        return Frame(shrink_bgra(self._picture.get_data(), self._size), captured)

    def close(self) -> None:
        self._camera.close()


def shrink_bgra(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As RGB of ``size`` (height, width), by area means."""
    height, width = pixels.shape[:2]
    # RGBX and not RGBA: with an alpha channel PIL multiplies it in, which takes three times as long
    whole = Image.frombuffer(
        "RGBX", (width, height), np.ascontiguousarray(pixels), "raw", "RGBX", 0, 1
    )
    small = whole.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small)[..., 2::-1])


def open_cameras(table: dict[str, Any], size: tuple[int, int]) -> GrabbedCameras:
    """Raises ValueError where the SDK is missing or a serial number is none."""
    try:
        sl = importlib.import_module("pyzed.sl")
    except ImportError as error:
        raise ValueError(
            "[cameras] kind = 'zed' needs the ZED SDK with its Python API: run the SDK's installer "
            f"and its get_python_api.py in this environment, not pip install pyzed ({error})"
        ) from error
    for view in VIEWS:
        if not isinstance(table[view], int):
            raise ValueError(f"[cameras] {view} = {table[view]!r} must be a serial number")
    return GrabbedCameras({view: ZedSource(sl, table[view], size) for view in VIEWS})
