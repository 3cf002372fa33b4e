"""What a host can drive. Each module brings one kind of hardware and is imported when asked for."""

import importlib
from typing import Any

from envs.droid.rig import Arm, Cameras, Scene

BACKENDS = ("mujoco", "droid_zerorpc", "franky", "panda_py")


def open_rig(
    backend: str, table: dict[str, Any], size: tuple[int, int]
) -> tuple[Arm, Cameras, Scene | None]:
    """The arm, the cameras with pictures of ``size`` (height, width), and a simulator's scene.

    ``table`` is the rig's file. Raises ValueError naming what to change.
    """
    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend} is unknown; there are: {', '.join(BACKENDS)}")
    return importlib.import_module(f"{__name__}.{backend}").open_rig(table, size)
