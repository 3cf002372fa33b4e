"""The newest value of one kind, from one process to others, without anybody waiting.

A file that all of them map. It belongs into /dev/shm, where it never meets a disk.
``multiprocessing.shared_memory`` would do, but in Python 3.11 every process that attaches to a
block also destroys it at its end.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 1000  # copies that a writer may spoil in a row; two never happened


class Newest:
    """One writer, any number of readers: a sequence lock over two slots.

    The writer fills the slot that is not being shown and then counts up. A reader that finds the
    count unchanged after its copy has a whole value: only then was nobody in that slot. Processors
    of the x86 family keep the order of these writes.
    """

    def __init__(self, block: np.memmap) -> None:
        self._block = block

    @classmethod
    def create(cls, file: Path, dtype: np.dtype) -> "Newest":
        """For the writer. The file appears whole or not at all."""
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        block = np.memmap(partial, _block(dtype), "w+", shape=(1,))
        partial.rename(file)
        return cls(block)

    @classmethod
    def attach(cls, file: Path, dtype: np.dtype) -> "Newest":
        """For a reader. Raises OSError where there is no such file, or one of another layout."""
        wanted = _block(dtype)
        if not file.is_file() or file.stat().st_size != wanted.itemsize:
            raise OSError(
                f"{file} does not hold what is looked for: start the stand-in with --frames {file} "
                "and the same --size as the host"
            )
        return cls(np.memmap(file, wanted, "r", shape=(1,)))

    def put(self, **fields: Any) -> None:
        """A new value. Fields that are not given are as they were two values ago; an array may be
        smaller than its field."""
        count = int(self._block["count"][0])
        for name, value in fields.items():
            part = tuple(slice(length) for length in np.shape(value))
            self._block["slots"][name][(0, (count + 1) % 2, *part)] = value
        self._block["count"][0] = count + 1

    def get(self) -> np.ndarray | None:
        """A copy of the newest value; None before the first. Raises OSError: never a whole one."""
        for _ in range(PATIENCE):
            count = int(self._block["count"][0])
            slot = self._block["slots"][0, count % 2 :][:1]  # np.array() of one record is a view
            value = np.asarray(slot.copy()).reshape(())
            if int(self._block["count"][0]) == count:
                return value if count else None
        raise OSError("the shared file is written faster than it can be read")


def _block(dtype: np.dtype) -> np.dtype:
    return np.dtype([("count", np.int64), ("slots", dtype, 2)], align=True)
