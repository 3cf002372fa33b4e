"""The three views of a rig from real cameras, or from the stand-in of a control machine."""

import importlib
from typing import Any

from configs.checks import one_of
from contracts.constants import VIEWS
from envs.droid.rig import Cameras

KINDS = ("zed", "uvc", "shared")


def open_cameras(table: dict[str, Any], size: tuple[int, int]) -> Cameras:
    """What ``[cameras]`` of the rig's file describes, with pictures of ``size`` (height, width).
    Nothing is opened yet.

    Raises:
        ValueError: the table is wrong, or a camera's library is missing; it names what to change.
    """
    kind = table.get("kind", "")
    one_of("kind in [cameras]", kind, KINDS)
    needed = {"frames"} if kind == "shared" else set(VIEWS)
    if missing := sorted(needed - set(table)):
        raise ValueError(f"[cameras] kind = {kind!r} also needs {', '.join(missing)}")
    if unknown := sorted(set(table) - needed - {"kind"}):
        raise ValueError(f"[cameras] {unknown[0]} is unknown for kind = {kind!r}")
    return importlib.import_module(f"{__name__}.{kind}").open_cameras(table, size)
