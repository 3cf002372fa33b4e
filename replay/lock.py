"""The lock that keeps a second writer out of a store."""

import fcntl
import os
import time
from pathlib import Path


class WriterLock:
    """Held while a process writes to a store; the kernel frees it when the process dies.

    Raises:
        ValueError: another process still holds it after ``wait_s`` seconds.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        self._file = path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                self._file.seek(0)
                holder = self._file.read().strip()
                self._file.close()
                raise ValueError(
                    f"{path.parent} is being written by process {holder}: a store has one writer; "
                    "stop that process, or open the folder for reading"
                )
            time.sleep(0.1)  # a restarted service may be faster than its predecessor's end
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
