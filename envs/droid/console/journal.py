"""An append-only file of JSON lines: what happened at the robot, one entry a line, never lost."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    """Open for one process at a time. ``entries`` are those that were there when it was opened.

    A last line that a crash cut short is dropped: whoever wrote it was never told that it is done.

    Raises:
        ValueError: another process has it open, or a line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            whole = path.read_bytes()
            self._size = whole.rfind(b"\n") + 1
            os.ftruncate(self._file, self._size)
            self.entries = [
                self._read(number, line)
                for number, line in enumerate(whole[: self._size].splitlines(), start=1)
            ]
        except ValueError:
            os.close(self._file)
            raise

    def append(self, entry: Entry) -> None:
        """On the disk when this returns; on an error the file is as it was.

        Raises:
            OSError: it could not be written.
        """
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(f"{self.path}: the disk took only a part of a line")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is open in another process: one robot has one desk. End the other "
                "host, or give this one another file"
            ) from error

    def _read(self, number: int, line: bytes) -> Entry:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number} is damaged: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("act"), str):
            raise ValueError(f"{self.path}, line {number} is no entry of a desk: {line[:80]!r}")
        return entry
