"""Frames as compressed images: the three views of a frame stacked top to bottom in one picture.

One picture instead of three saves a third of the decoding time of small frames, and any viewer
opens it. JPEG keeps full chroma and, where the height is a multiple of 8, no block of it spans
two views, so the views are coded as if they were apart.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from contracts.constants import VIEWS

_JPEG_START = b"\xff\xd8"
Frame = UInt8[np.ndarray, "3 height width 3"]


@dataclass(frozen=True, slots=True)
class ImageCoding:
    """``png`` is lossless. ``jpeg`` at quality 95 is half its size and decodes three times faster.

    Both are deterministic: equal frames give equal bytes.
    """

    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95  # of jpeg, 1 to 100

    def __post_init__(self) -> None:
        if self.format not in ("jpeg", "png"):
            raise ValueError(f"image format {self.format!r} is not 'jpeg' or 'png'")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG quality {self.quality} must lie in 1..100")


def encode(frame: Frame, coding: ImageCoding) -> bytes:
    """All views of one frame as the bytes of one image file."""
    views, height, width, _ = frame.shape
    picture = Image.fromarray(frame.reshape(views * height, width, 3))
    buffer = io.BytesIO()
    if coding.format == "png":
        picture.save(buffer, "PNG", compress_level=1)  # 6 saves 6 % and takes half as long again
    else:
        picture.save(buffer, "JPEG", quality=coding.quality, subsampling=0)
    return buffer.getvalue()


def decode(blob: bytes) -> Frame:
    """Inverse of ``encode``; the array is read-only.

    Raises:
        ValueError: the bytes are no whole image of three stacked RGB views.
    """
    # Image.open would try every format it knows: an eighth of the time of a small frame.
    kind = JpegImageFile if blob.startswith(_JPEG_START) else PngImageFile
    try:
        pixels = np.asarray(kind(io.BytesIO(blob)))
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's "not a PNG file"
        raise ValueError(f"{len(blob)} bytes are not a whole JPEG or PNG: {error}") from error
    rows, width, *_ = pixels.shape
    if pixels.ndim != 3 or rows % len(VIEWS):
        raise ValueError(f"a picture of {pixels.shape} pixels is not {len(VIEWS)} stacked views")
    return pixels.reshape(len(VIEWS), rows // len(VIEWS), width, 3)
