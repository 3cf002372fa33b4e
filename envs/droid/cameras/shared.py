"""Pictures that another process on this machine draws: those of the stand-in's simulation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contracts.constants import VIEWS
from envs.droid.cameras.newest import Newest
from envs.droid.rig import Frame


def layout(size: tuple[int, int]) -> np.dtype:
    """One set of pictures: which scene they show, when each was taken, and the RGB pixels."""
    views = len(VIEWS)
    images = ("images", np.uint8, (views, *size, 3))
    return np.dtype([("scene", np.int64), ("captured_s", np.float64, views), images])


class SharedCameras:
    """``Cameras`` of a file that the stand-in was given as --frames."""

    names = (f"stand-in {VIEWS[0]}", f"stand-in {VIEWS[1]}", f"stand-in {VIEWS[2]}")

    def __init__(self, file: Path, size: tuple[int, int]) -> None:
        self._file, self._size = file, size
        self._pictures: Newest | None = None

    def open(self) -> None:
        """Raises OSError when nobody draws there, or draws in another size."""
        self._pictures = Newest.attach(self._file, layout(self._size))

    def frames(self) -> Sequence[Frame]:
        """Raises OSError before a first picture."""
        newest = self._pictures.get() if self._pictures else None
        if newest is None:
            raise OSError(f"no pictures in {self._file}: is the stand-in running?")
        return [
            Frame(image, float(captured_s))
            for image, captured_s in zip(newest["images"], newest["captured_s"], strict=True)
        ]

    def close(self) -> None:
        self._pictures = None


def open_cameras(table: dict[str, Any], size: tuple[int, int]) -> SharedCameras:
    return SharedCameras(Path(table["frames"]), size)
