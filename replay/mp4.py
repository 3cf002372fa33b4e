"""Writes frames into H.264 files that every player and training script reads."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8


class Mp4Writer:
    """One mp4 file, 4:2:0, no B-frames, a key frame per second: quick to seek.

    ``rate`` is in frames per second; ``crf`` is x264's quality, 0 lossless to 51 worst, 18 hardly
    to be told from the original.
    """

    def __init__(self, file: Path, rate: int, size: tuple[int, int], crf: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(file), "w")
        options = {"crf": str(crf), "preset": "veryfast", "bf": "0", "g": str(rate)}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_count = 1
        self._base = Fraction(1, rate)
        self.count = 0
        self.num_bytes = 0

    def write(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        picture.pts, picture.time_base = self.count, self._base
        self._mux(picture)
        self.count += 1

    def close(self) -> None:
        self._mux(None)
        self._container.close()

    def _mux(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self.num_bytes += packet.size
            self._container.mux(packet)
