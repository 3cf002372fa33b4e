"""Pictures and films as data URIs, within the page's byte budget."""

import base64
import io

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from services.report_data import Film

COLUMN = 320  # pixels that one half of a film is scaled up to, at most
MAX_SCALE = 4
GAP = 8  # pixels between real and imagined


class Budget:
    """Bytes of base64 that a page may still hold. What does not fit is counted, not embedded."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.refused = 0

    def uri(self, kind: str, content: bytes) -> str:
        """A data URI, or "" when it does not fit any more."""
        address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if len(address) > self.left:
            self.refused += 1
            return ""
        self.left -= len(address)
        return address


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def strip(frames: UInt8[np.ndarray, "column height width 3"]) -> UInt8[np.ndarray, "height all 3"]:
    """The pictures of one row beside each other, two pixels apart."""
    spaced = np.pad(frames, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=128)
    return np.concatenate(list(spaced), axis=1)[:, :-2]


def scale_of(width: int) -> int:
    """By how much a view is enlarged: pixels are repeated, never blurred."""
    return max(1, min(MAX_SCALE, COLUMN // width))


def _stacked(
    frames: UInt8[np.ndarray, "time view height width 3"], length: int
) -> UInt8[np.ndarray, "length tall wide 3"]:
    """Views above each other, enlarged; the last frame is held until ``length``."""
    held = frames[np.minimum(np.arange(length), len(frames) - 1)]
    time, views, height, width, _ = held.shape
    scale = scale_of(width)
    tall = held.reshape(time, views * height, width, 3)
    return tall.repeat(scale, axis=1).repeat(scale, axis=2)


def picture_of(film: Film) -> UInt8[np.ndarray, "time height width 3"]:
    """Every frame of a film as shown: real on the left (if there is one), imagined on the right.

    The shorter of both holds its last frame. Sides are even, as H.264 in 4:2:0 asks.

    Raises:
        ValueError: a film without frames, or views of another size than the real ones.
    """
    parts = [film.imagined] if film.real is None else [film.real, film.imagined]
    if any(not len(part) for part in parts):
        raise ValueError(f"film {film.caption!r} has no frames")
    if len({part.shape[1:] for part in parts}) != 1:
        raise ValueError(f"film {film.caption!r}: real and imagined views differ in size")
    length = max(len(part) for part in parts)
    columns = [_stacked(part, length) for part in parts]
    if len(columns) == 2:
        gap = np.full((*columns[0].shape[:2], GAP, 3), 128, np.uint8)
        columns.insert(1, gap)
    whole = np.concatenate(columns, axis=2)
    odd = [(0, size % 2) for size in whole.shape[1:3]]
    return np.pad(whole, ((0, 0), *odd, (0, 0)), mode="edge")


def mp4(frames: UInt8[np.ndarray, "time height width 3"], fps: int) -> bytes:
    """H.264 in an MP4; equal frames give equal bytes."""
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact"}  # no date, no version of the encoder
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        # With its macroblock tree x264 gave up to 9 different files in 10 runs on equal frames.
        stream.options = {"crf": "24", "preset": "medium", "x264-params": "mbtree=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
