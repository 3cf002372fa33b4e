"""Ctrl-C and ``kill`` end a run in one line, wherever they strike."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INSIST_S = 2.0  # between two attempts to end a run that did not listen
CLEAN_UP_S = 60.0  # after which a clean-up that hangs is cut off
STOPPED = "stopped; the same command continues where it stopped"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stop:
    """Raises KeyboardInterrupt, again and again, until the run unwinds.

    One that strikes while a module is imported or an object is destroyed is lost there, and one
    that strikes while a result of Ray arrives may come out as another error.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, INSIST_S, INSIST_S)
        raise KeyboardInterrupt


_stop = _Stop()


@contextmanager
def one_line() -> Iterator[None]:
    """Whatever ends the block after a stop was asked for, the process ends with ``STOPPED``."""
    for number in (*_SIGNALS, signal.SIGALRM):
        signal.signal(number, _stop)
    try:
        yield
    except BaseException:  # also what Ray makes of an interrupt in another process
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _stop.asked:
            sys.exit(STOPPED)
        raise


@contextmanager
def kept() -> Iterator[None]:
    """Put the handlers back that the block replaces, as the start of Ray does."""
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A clean-up that a second Ctrl-C does not cut short: it would leave processes behind.

    A clean-up that hangs is ended by the system's own alarm.
    """
    with kept():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, CLEAN_UP_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
