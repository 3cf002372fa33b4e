"""Films for the audit page: MP4 in memory, made when first asked for."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from contracts.constants import FRAME_HZ
from services.report_data import Film
from services.report_media import mp4, picture_of, strip

CACHE_BYTES = 128 * 2**20


class FilmCache:
    """The films that were asked for last. One is encoded at a time, so that a crowd of requests
    takes one core and the memory of one film."""

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._size = size
        self._films: OrderedDict[Hashable, bytes] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        with self._mutex:
            if key not in self._films:
                self._films[key] = make()
            self._films.move_to_end(key)
            film = self._films[key]
            while len(self._films) > 1 and sum(map(len, self._films.values())) > self._size:
                self._films.popitem(last=False)
            return film


def alone(frames: UInt8[np.ndarray, "time view height width 3"], wide: bool) -> bytes:
    """One trajectory as MP4 at 5 Hz; its views beside each other (``wide``) or above each other."""
    if wide:
        time, views, height, width, _ = frames.shape
        beside = frames.transpose(0, 2, 1, 3, 4).reshape(time, 1, height, views * width, 3)
        frames = np.ascontiguousarray(beside)
    return mp4(picture_of(Film("", "", frames)), FRAME_HZ)


def pair(
    real: UInt8[np.ndarray, "time view height width 3"],
    imagined: UInt8[np.ndarray, "time2 view height width 3"],
) -> bytes:
    """The real trajectory on the left, the imagined one on the right, from the same moment on."""
    return mp4(picture_of(Film("", "", imagined, real)), FRAME_HZ)


def still(frame: UInt8[np.ndarray, "view height width 3"]) -> bytes:
    """The views of one frame beside each other as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(strip(frame)).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()
