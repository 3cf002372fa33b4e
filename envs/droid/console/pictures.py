"""The newest picture of each camera as a JPEG, for pages."""

import io

from PIL import Image

from contracts.constants import VIEWS
from envs.droid.tick import Tick

QUALITY = 80


def jpegs(tick: Tick | None) -> dict[str, bytes]:
    """One per view; none before the first tick."""
    if tick is None:
        return {}
    pictures = {}
    for view, frame in zip(VIEWS, tick.frames, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(frame.image).save(buffer, "JPEG", quality=QUALITY)
        pictures[view] = buffer.getvalue()
    return pictures
