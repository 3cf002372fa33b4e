"""Recorded videos as 5 Hz frames of the wanted size. One episode is decoded at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

Frames = UInt8[np.ndarray, "frame height width 3"]


@dataclass(frozen=True, slots=True)
class View:
    """One camera of one episode: ``count`` pictures of a video from ``start_s`` seconds on.

    Every ``step``-th of them is a 5 Hz frame. ``rate`` is how many pictures per second there
    should be, None where the layout does not tell. ``shared``: other episodes lie in the same
    file, so it may go on behind this one.
    """

    file: Path
    count: int
    step: int = 1
    start_s: float = 0.0
    rate: int | None = None
    shared: bool = False


def read_video(file: Path, height: int, width: int) -> Frames:
    """Every frame of a video, RGB, resized: area means when it shrinks, bilinear when it grows.

    Raises:
        ValueError: the file is missing or not a whole video.
    """
    frames = [resize(picture, height, width) for _, picture in _pictures(View(file, 0))]
    if not frames:
        raise ValueError(f"{file} has no frames")
    return np.stack(frames)


def read_view(view: View, height: int, width: int) -> Frames:
    """The 5 Hz frames of one view, resized as in ``read_video``.

    One picture more or less than ``count`` is what a recorder's last tick makes of it; anything
    else means a damaged video.

    Raises:
        ValueError: the video is missing, damaged, of another rate or length; the message names it.
    """
    seen, frames = 0, []
    for number, picture in _pictures(view):
        if view.shared and number >= view.count:
            break
        if number % view.step == 0:
            frames.append(resize(picture, height, width))
        seen += 1
    if abs(seen - view.count) > 1 or not frames:
        where = f" at {view.start_s:g} s" if view.shared else ""
        raise ValueError(
            f"{view.file} has {seen} frames{where}, its episode's rows ask for {view.count}: the "
            "video is cut off or belongs to other rows. Record or copy it again"
        )
    return np.stack(frames)


def read_views(
    views: Sequence[View], num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "frame view height width 3"]:
    """The views of one episode side by side: as many frames as all have, at most ``num_frames``.

    Raises:
        ValueError: a video is missing or damaged; the message names it.
    """
    read = [read_view(view, height, width) for view in views]
    common = min(num_frames, *map(len, read))
    return np.stack([frames[:common] for frames in read], axis=1)


def _pictures(view: View) -> Iterator[tuple[int, np.ndarray]]:
    """(number from ``start_s`` on, RGB pixels) of every ``step``-th picture, None pixels between.

    In a shared file the number follows from the time stamp, in an own file from the order.
    """
    try:
        with av.open(str(view.file)) as container:
            stream = container.streams.video[0]
            _check_rate(view, stream)
            if view.start_s:
                container.seek(int(view.start_s / (stream.time_base or 1)), stream=stream)
            for order, frame in enumerate(container.decode(stream)):
                number = order
                if view.shared and view.rate:
                    number = round((float(frame.time or 0) - view.start_s) * view.rate)
                if number >= 0:
                    yield number, _pixels(frame, number % view.step == 0)
    except (FFmpegError, OSError, IndexError) as error:  # IndexError: there is no video stream
        raise ValueError(f"{view.file} is no readable video: {error}") from error


def _pixels(frame: av.VideoFrame, wanted: bool) -> np.ndarray:
    """Colour conversion takes longer than decoding: only for pictures that are kept."""
    return frame.to_ndarray(format="rgb24") if wanted else np.empty(0)


def _check_rate(view: View, stream: av.VideoStream) -> None:
    found = float(stream.average_rate or 0)
    if view.rate is not None and abs(found - view.rate) > 0.01 * view.rate:
        raise ValueError(
            f"{view.file} plays {found:g} frames per second, its dataset has {view.rate:g}: "
            "encode it again at that rate, or mend fps in meta/info.json"
        )


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area means when it shrinks, bilinear when it grows, untouched where the size is right."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))
