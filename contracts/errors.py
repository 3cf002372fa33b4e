"""Failures that one part must be able to tell from another part's mistakes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the words of the system, of Lance and safetensors, and of torch, which names a place in its own
# source file where a write fell short.
_FULL = ("No space left on device", "Disk quota exceeded", "fail at inline_container")


class PolicyUnavailableError(ConnectionError):
    """Whoever decides for the arm did not: it is unreachable, silent, refuses, or answers nonsense.

    A rollout that meets it holds the arm and ends as aborted; nothing about the task is learned.
    """


class ArmStoppedError(RuntimeError):
    """The robot's host holds the arm and lets nothing move until a person clears it. The message
    is the reason."""


class DiscardedError(RuntimeError):
    """The person at the robot says that an episode does not count: it is to be run again."""


class StoppedError(RuntimeError):
    """The run cannot go on: a process or a node that it needs is gone or silent, or a learner
    failed for good. The message says what to do; what is stored stays."""


class DiskFullError(OSError):
    """There is no room for what was to be written. What was written before is whole."""


class DivergedError(RuntimeError):
    """Training produced a loss, a gradient or a measurement that is not finite."""


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Give "no space left" one form, whatever library met it first, and name the folder.

    Raises:
        DiskFullError: the block could not write because the disk, or a quota of it, is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not any(words in str(error) for words in _FULL):
            raise
        raise DiskFullError(
            f"no space left for {folder}: {_free_mb(folder):.1f} MB free on its disk. What was "
            "stored before is whole: make room, then run the same command"
        ) from error


def _free_mb(folder: Path) -> float:
    """Of the nearest folder that exists."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free / 1e6
