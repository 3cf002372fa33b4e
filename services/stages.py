"""Stage manifests: what a run has finished, so that the same command continues it."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

Note = Callable[[Any], None]  # told what the stage returned


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that is whole or absent after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or bytes that are no text
        raise ValueError(
            f"{path} is damaged ({error}); delete it and run the same command"
        ) from error


def fingerprint(value: object) -> str:
    """Short content hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _unseen(_name: str) -> AbstractContextManager[Note]:
    return nullcontext(lambda _result: None)


class Stages:
    """The finished stages under ``folder``, one manifest each; none of them runs again.

    ``around(name)`` is entered while a stage runs, as ``Reporter.within``.
    """

    def __init__(
        self, folder: Path, around: Callable[[str], AbstractContextManager[Note]] = _unseen
    ) -> None:
        self._folder = folder
        self._around = around

    def result(self, name: str) -> Any | None:
        path = self._path(name)
        return read_json(path)["result"] if path.exists() else None

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the stored result of ``name``, or do the work and store what it returned."""
        if (done := self.result(name)) is not None:
            return done
        return self.again(name, work)

    def again(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work whether or not it was done before, and store what it returned."""
        with self._around(name) as note:
            result = work()
            note(result)
            write_json(self._path(name), {"stage": name, "result": result})
        return result

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '-')}.json"
