"""Recorded videos as frames of the wanted size."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image


def read_video(file: Path, height: int, width: int) -> UInt8[np.ndarray, "frame height width 3"]:
    """Every frame of a video, RGB, resized: area means when it shrinks, bilinear when it grows.

    Raises:
        ValueError: the file is missing or not a whole video.
    """
    try:
        with av.open(str(file)) as container:
            frames = [
                _resize(frame.to_ndarray(format="rgb24"), height, width)
                for frame in container.decode(video=0)
            ]
    except (FFmpegError, OSError, IndexError) as error:  # IndexError: there is no video stream
        raise ValueError(f"{file} is no readable video: {error}") from error
    if not frames:
        raise ValueError(f"{file} has no frames")
    return np.stack(frames)


def read_views(
    files: Sequence[Path], num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "frame view height width 3"]:
    """The views of one episode side by side, as many frames as all of them have.

    ``num_frames`` is how many there should be. One more or one less is what a recorder's last
    tick makes of it; anything else means a damaged video.

    Raises:
        ValueError: a video is missing or damaged; the message names it.
    """
    views = [read_video(file, height, width) for file in files]
    for file, view in zip(files, views, strict=True):
        if abs(len(view) - num_frames) > 1:
            raise ValueError(f"{file} has {len(view)} frames, its annotation asks for {num_frames}")
    common = min(num_frames, *(len(view) for view in views))
    return np.stack([view[:common] for view in views], axis=1)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))
