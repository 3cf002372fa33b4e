"""One thread per camera that keeps its newest picture, so that the control loop never waits."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from contracts.constants import VIEWS
from envs.droid.rig import Frame

FIRST_PICTURE_S = 10.0
GOODBYE_S = 1.0  # that a thread in the middle of a picture gets; it is a daemon


@runtime_checkable
class Source(Protocol):
    """One camera. Opened by one thread, then used by another."""

    name: str

    def open(self) -> None:
        """Raises OSError naming what to do."""
        ...

    def grab(self) -> Frame:
        """Wait for the next picture. Raises OSError when the camera is gone."""
        ...

    def close(self) -> None: ...


class _Grabber:
    def __init__(self, view: str, source: Source) -> None:
        self._what, self._source = f"{view} ({source.name})", source
        self._newest: Frame | None = None
        self._why_not = ""
        self._closed, self._first = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {view}", daemon=True)

    def open(self) -> None:
        self._source.open()
        self._thread.start()

    def wait(self) -> None:
        """For the first picture. Raises OSError when none comes."""
        if not self._first.wait(FIRST_PICTURE_S):
            waited = f"within {FIRST_PICTURE_S:g} s"
            raise OSError(f"no picture of {self._what} {waited}: check its cable and USB port")
        self.newest()

    def newest(self) -> Frame:
        if self._why_not or self._newest is None:
            raise OSError(f"the camera {self._what} is gone: {self._why_not or 'never opened'}")
        return self._newest

    def close(self) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._thread.join(GOODBYE_S)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._newest = self._source.grab()
                self._first.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, this camera sees no more
            self._why_not = str(error) or type(error).__name__
        self._first.set()
        self._source.close()


class GrabbedCameras:
    """``Cameras`` of three sources, one for each view."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        first, second, third = (sources[view].name for view in VIEWS)
        self.names = (first, second, third)
        self._grabbers = [_Grabber(view, sources[view]) for view in VIEWS]

    def open(self) -> None:
        """Raises OSError when a camera does not open, or shows nothing within 10 s."""
        for grabber in self._grabbers:
            grabber.open()
        for grabber in self._grabbers:
            grabber.wait()

    def frames(self) -> Sequence[Frame]:
        """The newest pictures. Raises OSError when a camera is gone."""
        return [grabber.newest() for grabber in self._grabbers]

    def close(self) -> None:
        for grabber in self._grabbers:
            grabber.close()


def now() -> float:
    """The clock of ``Frame.captured_s``."""
    return time.monotonic()
